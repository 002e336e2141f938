"""The networks that Zhao et al. 2023 compare IICnet with, table 3.

The option `init` of each is that of `initialise` in blocks.py. Its default is "he" because of VGG16 and GoogLeNet,
which have no BatchNorm: before the first step, the standard deviation of a feature over images of noise is 4e-7 with
"torch" and 0.2 with "he".
"""
