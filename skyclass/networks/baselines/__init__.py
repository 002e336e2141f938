"""The networks that Zhao et al. 2023 compare IICnet with, table 3.

The option `init` of each is that of `initialise` in blocks.py, by default "he": without BatchNorm, VGG16 and GoogLeNet
learn nothing from the weights that torch draws.
"""
