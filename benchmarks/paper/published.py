"""What the paper prints (Zhao et al. 2023, RAA 23, 085010), as far as its text and tables could be read.

None stands for a number that is only in a figure, or that could not be read. The paper's sources are real (SDSS
classes, WISE images, 2,175 test images in balanced classes); ours are simulated: the columns stand side by side so
that the tables are whole, not so that they may be compared.
"""

from __future__ import annotations

from typing import Any

SPLIT = {"galaxy": (5838, 730, 730), "quasar": (5772, 722, 721), "star": (5778, 723, 722)}
"""Table 1: training, validation and test images of each class."""

IICNET: dict[str, dict[str, float | None]] = {
    "galaxy": {"class_accuracy": 0.962, "recall": 0.932, "f1": 0.943, "precision": None, "specificity": None},
    "quasar": {"class_accuracy": 0.979, "recall": 0.971, "f1": 0.968, "precision": None, "specificity": 0.983},
    "star": {"class_accuracy": 0.964, "recall": 0.954, "f1": 0.945, "precision": None, "specificity": None},
}
"""Table 2: each class against the rest."""
IICNET_ACCURACY = 0.9522
"""104 of 2,175 test images were given another class."""

COST: dict[str, dict[str, Any]] = {
    "iicnet": {"macs": "218.66M", "parameters": "1.75M", "px": 80},
    "vgg16": {"macs": "15.5G", "parameters": "134.27M", "px": 224},
    "googlenet": {"macs": "1.59G", "parameters": "5.98M", "px": 224},
    "resnet34": {"macs": "12.25G", "parameters": "46.99M", "px": 224},
    "mobilenet": {"macs": "587.94M", "parameters": "3.22M", "px": 224},
    "efficientnetv2": {"macs": "2.97G", "parameters": "24.18M", "px": 224},
    "repvgg": {"macs": "3.83G", "parameters": "30.07M", "px": 224},
}
"""Table 3. The size at which costs were counted is not stated: these sizes fit. Its accuracies could not be read."""

INPUTS = {
    "images W1 W2 W3": 0.9522,
    "images W1 W2 W3 + colours": 0.962,
    "images W1 W2 W3 W4": None,
    "colours": None,
    "spectra": None,
}
"""Fig. 17, read from words: colours alone are worst, colours add "about 1 %" to images, three bands are slightly
better than four. The other bars are in the figure only."""
