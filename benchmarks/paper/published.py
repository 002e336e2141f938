"""What the paper prints (Zhao et al. 2023, RAA 23, 085010) in its tables and in the captions and text of its figures.

Numbers have the digits of the paper. A number that follows from printed ones is `Derived`, with its formula. A value
that exists as a curve or picture only is not here. The paper's sources are real (SDSS classes, WISE images, balanced
classes); those of the study are simulated.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Derived:
    """A number that the paper does not print, and the formula that gives it from printed ones."""

    value: float
    formula: str


SPLIT = {
    "galaxy": {"train": 5838, "test": 730, "val": 730},
    "quasar": {"train": 5772, "test": 722, "val": 721},
    "star": {"train": 5778, "test": 723, "val": 722},
}
"""Table 1: images of each class, in the paper's order: training, test, validation. Drawn at random, 8:1:1."""
SETS = ("train", "test", "val")
TOTALS = {"galaxy": 7298, "quasar": 7215, "star": 7223}

RATES = ("precision", "recall", "specificity", "f1", "class_accuracy")
IICNET = {
    "galaxy": (95.4, 93.2, 97.7, 94.3, 96.2),
    "quasar": (96.6, 97.1, 98.3, 96.8, 97.9),
    "star": (93.7, 95.4, 96.8, 94.5, 96.4),
}
"""Table 2: `RATES` in per cent on the test set, each class against the rest."""

COST = {
    "iicnet": ("218.66 M", "1.75 M"),
    "vgg16": ("15.5 G", "134.27 M"),
    "googlenet": ("1.59 G", "5.98 M"),
    "resnet34": ("12.25 G", "46.99 M"),
    "mobilenet": ("587.94 M", "3.22 M"),
    "efficientnetv2": ("2.97 G", "24.18 M"),
    "repvgg": ("3.83 G", "30.07 M"),
}
"""Table 3: FLOPs and parameters. It has no accuracies."""

SAMPLE_ORDER = ("galaxy", "star", "quasar")
SAMPLES = {
    "galaxy": (0.999486, 0.000453, 0.000061),
    "star": (0.000157, 0.999814, 0.000029),
    "quasar": (0.024439, 0.000004, 0.975557),
}
"""Table 4: probabilities of galaxy, star and quasar (`SAMPLE_ORDER`) for one image of each class."""

BEST_SIZE_PX, BEST_SIZE_ACCURACY = 80, 0.9521
"""Fig. 12: the input size with the greatest accuracy."""
VALIDATION_ABOVE_PERCENT = 95
"""Figs. 13, 15a and 17: IICnet reaches this validation accuracy, alone of the seven networks."""
AUC_ABOVE = 0.99
"""Fig. 14, from the abstract."""
MISCLASSIFIED = 104
"""Fig. 18: test images that were given another class."""
GROUPS, NO_SOURCE = (37, 13, 45), 9
"""Fig. 19: the misclassified images by K-means group, and those without a source at the centre."""
UNSURE, UNSURE_BELOW = 14, 0.6
"""Figs. 20 and 21: correctly classified test images whose confidence is below 0.6."""

EPOCHS, HALVING_EPOCH, LEARNING_RATE = 200, 50, 0.0001
DEVICE = "Tesla V100"

N_TEST = Derived(2175, "730 + 722 + 723")
ACCURACY = Derived(0.9522, "1 - 104 / 2175")
COLOURS_ACCURACY = Derived(0.9622, "0.9522 + 0.01")
"""Fig. 17 says "about 1 %" above images alone."""
N_TRAIN = Derived(17_388, "5838 + 5772 + 5778")
IMAGE_VIEWS = Derived(3_477_600, "(5838 + 5772 + 5778) * 200")
"""Training images times epochs."""

INPUTS = {
    "iicnet": "above 95",
    "fusion": "about 1 above images",
    "iicnet-4": "slightly below three bands",
    "colours": "lowest",
    "spectra": "highest",
}
"""Figs. 17 and 15b in words, validation accuracy in per cent: the values exist as curves only."""
INPUTS_DERIVED = {"iicnet": ACCURACY, "fusion": COLOURS_ACCURACY}
