"""Records -> the paper's tables and figures in numbers, ours beside the printed ones, as Markdown. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from skyclass.types import DEFAULT_CLASSES

from . import checks, published
from .cells import (
    EFFORT,
    MISSING,
    PAPER_EFFORT,
    Records,
    accuracy,
    derived,
    effort,
    known_mean,
    over_seeds,
    percent,
    table,
)
from .study import BASELINES, SIZES, Preset

NETWORK_NAMES = {
    "iicnet": "IICnet (reconstruction)",
    "vgg16": "VGG16",
    "googlenet": "GoogLeNet (Inception v1)",
    "resnet34": "ResNet34 (widths 128/256/512/512)",
    "mobilenet": "MobileNet v1",
    "efficientnetv2": "EfficientNetV2-S",
    "repvgg": "RepVGG-A2 (nearest official: the paper's variant is unresolved)",
}
SET_NAMES = {"train": "training", "test": "test", "val": "validation"}
STRETCHED = (
    "Photometry adds little to images whose stretch keeps flux and colour: the simulated catalogue measures it on the "
    "same pixels. Where each band of each cutout is stretched between its own percentiles, as a viewer does, flux and "
    "colour are lost to the image, and photometry brings them back.\n"
)
HEAD = """# The study of Zhao et al. 2023, again, on a SIMULATED sky

Made by `python -m benchmarks.paper`. **Our sources are simulated** (`skyclass mock`) in every table but the last, the
network is a reconstruction, and the paper's sources are real: the columns stand side by side so that the tables are
whole, not so that they may be compared. Accuracies hold for equal class shares unless the table says otherwise; none is
the purity of a catalogue. "-" in a cell of the paper: it prints no number. "derived": the paper does not print the
number; it follows by the formula from numbers that it prints.
"""


def load_records(folder: Path) -> Records:
    """Return the records in a folder, by experiment, ordered by seed."""
    found: Records = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["experiment"], []).append(record)
    return {name: sorted(records, key=lambda r: r["seed"]) for name, records in found.items()}


def document(records: Records, preset: Preset, pictures: Sequence[Path] = ()) -> str:
    """Return all tables of a study, and links to its pictures, as one Markdown page."""
    parts = [HEAD, conditions(preset), table1(records), table2(records), table3(records), table4(records)]
    parts += [sweeps(records), fig14(records), fig15(records), fig17(records), fig18(records), fig20(records)]
    parts += [checks.controls(records), checks.margins(records), checks.natural(records), checks.real(records)]
    return "\n".join([*parts, gallery(pictures)])


def conditions(preset: Preset) -> str:
    """Return the effort of the preset beside the paper's, and how to read the columns of effort."""
    return (
        f"Preset `{preset.name}`: recipe {preset.recipe}, {preset.epochs} epochs for Table 2 and Fig. 17, "
        f"{preset.small_epochs} epochs on {preset.small_rows or 'all'} training rows in batches of "
        f"{preset.small_batch} for Table 3, the sweeps and shuffled labels. The paper trains {published.EPOCHS} epochs "
        "on all its training images. Each row states its seeds, epochs, training images times epochs (and their share "
        f"of the paper's {published.IMAGE_VIEWS.value:,}, derived: {published.IMAGE_VIEWS.formula}), device, and the "
        "version of the simulated sky: the first digits of the digest of its pixels, or the date of its code. Rows of "
        "different versions or efforts are not comparable, and a single seed ranks nothing. Intervals are 95 % "
        "bootstrap intervals over the test rows.\n"
    )


def table1(records: Records) -> str:
    """Return Table 1: the set."""
    iicnet = records.get("iicnet", [])
    ours = iicnet[0]["split"] if iicnet and "split" in iicnet[0] else None
    sets = published.SETS
    rows = []
    for name in DEFAULT_CLASSES:
        counts = [str(ours[s][name]) for s in (*sets, "none")] if ours else [MISSING] * 4
        paper = [str(published.SPLIT[name][s]) for s in sets]
        rows.append([name, *paper, str(published.TOTALS[name]), *counts])
    head = ["class", *(f"{SET_NAMES[s]} (paper)" for s in sets), "total (paper)", *(SET_NAMES[s] for s in sets)]
    note = (
        "Ours are disjoint on the sky by whole HEALPix pixels; a source whose cutout could share pixels with another "
        "split is in none. The paper draws its sets at random.\n"
    )
    sky = f" Simulated sky: {effort(records, iicnet[:1])[-1]}." if iicnet else ""
    return f"## Table 1: the set\n\n{table([*head, 'in no split'], rows)}\n{note.rstrip()}{sky}\n"


def table2(records: Records) -> str:
    """Return Table 2: IICnet, each class against the rest, mean over seeds."""
    group = records.get("iicnet", [])
    cells, empty = effort(records, group), ["-"] * len(published.RATES[:-1])
    rows = []
    for kind in DEFAULT_CLASSES:
        ours = [percent(known_mean(r[name][kind] for r in group)) if group else MISSING for name in published.RATES]
        rows.append([kind, "paper", *map(str, published.IICNET[kind]), *PAPER_EFFORT])
        rows.append([kind, "ours", *ours, *cells])
    rows.append(["all", "paper", *empty, derived(published.ACCURACY), *PAPER_EFFORT])
    rows.append(["all", "ours", *empty, over_seeds(group) if group else MISSING, *cells])
    head = ["class", "", "precision", "recall", "specificity", "F1", "accuracy", *EFFORT]
    facts = ", ".join(f"seed {r['seed']}: {accuracy(r)}" for r in group)
    return f"## Table 2: IICnet, per cent on the test set\n\n{table(head, rows)}\n{facts}\n"


def table3(records: Records) -> str:
    """Return Table 3: seven networks, equal epochs and rows, all at 80 px; costs at 80 and 224 px."""
    rows = []
    for name in ("iicnet", *BASELINES):
        group = records.get(f"equal-{name}", [])
        cells = [NETWORK_NAMES[name], *published.COST[name]]
        if group:
            r = group[0]
            cells += [f"{r['macs_80'] / 1e6:,.1f} M", f"{r['macs_224'] / 1e6:,.1f} M", f"{r['parameters'] / 1e6:.3f} M"]
            cells += [over_seeds(group)]
        else:
            cells += [MISSING] * 4
        rows.append([*cells, *effort(records, group)])
    head = ["network", "FLOPs (paper)", "params (paper)", "MACs at 80 px", "at 224 px", "params", "accuracy, per cent"]
    note = (
        "The paper's table has costs only, no accuracies: that column is ours alone. The sizes at which the paper "
        "counts are not stated; 80 px fits IICnet, 224 px the others. Ours are trained at 80 px. MACs are "
        "multiply-accumulates of convolutions and linear layers; the paper's counter adds biases, BatchNorm, ReLU and "
        f"pools (IICnet: {published.COST['iicnet'][0]}), and `tests/networks/test_networks.py` reproduces its figures. "
        "One recipe for all, tuned for none, and weights of He et al. 2015 at the start"
        + rates(records)
        + ". "
        + ranking(records)
    )
    return f"## Table 3: networks at equal epochs\n\n{table([*head, *EFFORT], rows)}\n{note}\n"


def rates(records: Records) -> str:
    """Return the learning rates of Table 3: networks without BatchNorm may need a lower one."""
    groups = {name: records.get(f"equal-{name}") for name in ("iicnet", *BASELINES)}
    by_rate: dict[float, list[str]] = {}
    for name, group in groups.items():
        if group:
            by_rate.setdefault(group[0]["learning_rate"], []).append(NETWORK_NAMES[name])
    usual = max(by_rate, key=lambda rate: len(by_rate[rate]), default=0.0)
    others = [f"{rate:g} for {' and '.join(names)}" for rate, names in by_rate.items() if rate != usual]
    return f"; learning rate {usual:g}" + "".join(f", {words}" for words in others) if by_rate else ""


def ranking(records: Records) -> str:
    """Say of which baselines IICnet is ahead by more than the interval of the paired difference, and of which not.

    A single seed ranks nothing.
    """
    groups = {name: records.get(f"equal-{name}", []) for name in ("iicnet", *BASELINES)}
    seeds = set.intersection(*({r["seed"] for r in group} for group in groups.values()))
    if len(seeds) < 2:
        share = effort(records, groups["iicnet"])[EFFORT.index("share of the paper's")]
        return f"One seed at {share} of the paper's training images x epochs ranks no network." if seeds else ""
    right = {
        name: np.array([list(r["right"]) for r in group if r["seed"] in seeds], dtype=int).mean(0)
        for name, group in groups.items()
    }
    verdicts: dict[str, list[str]] = {"ahead of": [], "behind": [], "not to be told apart from": []}
    for name in BASELINES:
        gap = right["iicnet"] - right[name]
        reach = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap))
        verdict = "ahead of" if gap.mean() > reach else "behind" if gap.mean() < -reach else "not to be told apart from"
        verdicts[verdict].append(f"{NETWORK_NAMES[name]} ({100 * gap.mean():+.1f} +- {100 * reach:.1f})")
    told = "; ".join(f"{verdict} {', '.join(names)}" for verdict, names in verdicts.items() if names)
    return (
        f"Over {len(seeds)} seeds IICnet is {told} (points of accuracy, 95 %, paired on the same rows; the interval "
        "has no scatter of the training)."
    )


def table4(records: Records) -> str:
    """Return Table 4: the probabilities of one image of each class, columns in the paper's order."""
    order = published.SAMPLE_ORDER
    rows = [[f"{kind}, Fig. 4", "paper", *map(str_of, published.SAMPLES[kind]), *PAPER_EFFORT] for kind in order]
    group = [r for r in records.get("iicnet", []) if "samples" in r]
    for r in group:
        for kind in order:
            sample = r["samples"][kind]
            numbers = [str_of(sample["probabilities"][name]) for name in order]
            rows.append([f"{kind}, {sample['name']}", "ours", *numbers, *effort(records, [r])])
    if not group:
        rows += [[kind, "ours", *[MISSING] * 3, *effort(records, [])] for kind in order]
    head = ["sample", "", *(f"P({name})" for name in order), *EFFORT]
    note = "Ours are the first test image of each class, whatever the answer.\n"
    return f"## Table 4: probabilities of three sample images\n\n{table(head, rows)}\n{note}"


def str_of(probability: float) -> str:
    """Return a probability with the six decimals of the paper."""
    return f"{probability:.6f}"


def sweeps(records: Records) -> str:
    """Return Figs. 8 and 12 and the ablation of the blocks."""
    best = f"greatest of all sizes: {100 * published.BEST_SIZE_ACCURACY:.2f}"
    names = [("input 80 px, kernel 5 x 5", "equal-iicnet", f"{best}; above 3 x 3")]
    names += [("kernel 3 x 3", "kernel-3", "below 5 x 5"), ("kernel 7 x 7", "kernel-7", "-")]
    names += [("without RFB", "without-rfb", "-"), ("without CBAM", "without-cbam", "-")]
    names += [(f"input {px} px", f"size-{px}", "-") for px in SIZES if px != published.BEST_SIZE_PX]
    rows = []
    for label, name, paper in names:
        group = records.get(name, [])
        rows.append([label, paper, over_seeds(group) if group else MISSING, *effort(records, group)])
    head = ["IICnet with", "paper", "ours, accuracy per cent", *EFFORT]
    return f"## Figs. 8 and 12, ablation\n\n{table(head, rows)}"


def fig14(records: Records) -> str:
    """Return the areas under the ROC curves of Fig. 14, mean over seeds."""
    group = records.get("iicnet", [])
    ours = [f"{area:.4f}" if (area := known_mean(r["auc"][k] for r in group)) else "-" for k in DEFAULT_CLASSES]
    rows = [["paper (abstract)", *[f"above {published.AUC_ABOVE}"] * 3, *PAPER_EFFORT]]
    rows.append(["ours", *(ours if group else [MISSING] * 3), *effort(records, group)])
    head = ["", *(f"AUC of {name}" for name in DEFAULT_CLASSES), *EFFORT]
    return f"\n## Fig. 14: ROC, each class against the rest\n\n{table(head, rows)}"


def fig15(records: Records) -> str:
    """Return the greatest validation accuracy of the networks of Fig. 15."""
    above = f"above {published.VALIDATION_ABOVE_PERCENT}"
    names = [("a", NETWORK_NAMES["iicnet"], "equal-iicnet", above)]
    names += [("a", NETWORK_NAMES[n], f"equal-{n}", f"not {above}") for n in BASELINES]
    names += [("b", "IICnet, W1 W2 W3", "iicnet", published.INPUTS["iicnet"])]
    names += [("b", "IICnet, W1 W2 W3 W4", "iicnet-4", published.INPUTS["iicnet-4"])]
    rows = []
    for panel, label, name, paper in names:
        group = [r for r in records.get(name, []) if r.get("validation")]
        best = [max(r["validation"]) for r in group]
        ours = f"{percent(mean(best))} ({percent(min(best))} to {percent(max(best))})" if best else MISSING
        rows.append([panel, label, paper, ours, *effort(records, group)])
    head = ["panel", "network", "validation accuracy (paper)", "ours, greatest of all epochs, balanced", *EFFORT]
    return f"\n## Fig. 15: validation accuracy, per cent\n\n{table(head, rows)}"


def fig17(records: Records) -> str:
    """Return Fig. 17: what the network is given; and the classic methods."""
    rows = []
    for label, name in (
        ("images W1 W2 W3", "iicnet"),
        ("images W1 W2 W3 + photometry", "fusion"),
        ("the same, all of it trained from random weights", "fusion-scratch"),
        ("images, per-image stretch", "stretched-iicnet"),
        ("images, per-image stretch, + photometry", "stretched-fusion"),
        ("images W1 W2 W3 W4", "iicnet-4"),
        ("colours W1-W2, W2-W3", "colours"),
        ("spectra (simulated, other sources)", "spectra"),
        ("random forest on photometry", "forest"),
        ("SVM on photometry", "svm"),
        ("SVM on the embedding of IICnet", "embedding-svm"),
        ("SimCLR without labels, linear probe", "self-supervised"),
    ):
        group = records.get(name, [])
        test = published.INPUTS_DERIVED.get(name)
        paper = [published.INPUTS.get(name, "-"), derived(test) if test else "-"]
        rows.append([label, *paper, over_seeds(group) if group else MISSING, *effort(records, group)])
    head = ["input", "validation accuracy (paper)", "accuracy (paper)", "ours, accuracy per cent", *EFFORT]
    note = 'The paper says "about 1 %" for what colours add to images: 0.01 in the formula.\n'
    return f"\n## Fig. 17: what is looked at\n\n{table(head, rows)}\n{note}{stretch_note(records)}"


def stretch_note(records: Records) -> str:
    """Return why photometry helps stretched images more, where our records say that it does."""
    names = ("iicnet", "fusion", "stretched-iicnet", "stretched-fusion")
    if not all(records.get(name) for name in names):
        return ""
    images, both, stretched, stretched_both = (mean(r["accuracy"] for r in records[name]) for name in names)
    return f"\n{STRETCHED}" if stretched_both - stretched > max(0.0, both - images) else ""


def fig18(records: Records) -> str:
    """Return Figs. 18 and 19: the confusion matrix of the first seed, and the misclassified of every seed."""
    group = records.get("iicnet", [])
    wrong, n_test = published.MISCLASSIFIED, published.N_TEST
    groups = f"{' '.join(map(str, published.GROUPS))}; {published.NO_SOURCE} without a source"
    rows = [["paper", str(wrong), f"{n_test.value:,} (derived: {n_test.formula})", groups, *PAPER_EFFORT]]
    for r in group:
        found = r.get("groups")
        ours = f"{' '.join(map(str, found['counts']))}; {found['empty_count']} without a source" if found else MISSING
        rows.append(["ours", f"{misclassified(r):,}", f"{r['n_test']:,}", ours, *effort(records, [r])])
    if not group:
        rows.append(["ours", *[MISSING] * 3, *effort(records, [])])
    head = ["", "misclassified", "of test images", "K-means groups (Fig. 19)", *EFFORT]
    matrices = "".join(f"\n{confusion_table(r)}" for r in group[:1])
    return f"\n## Figs. 18 and 19: misclassified test images\n\n{table(head, rows)}{matrices}"


def misclassified(record: dict[str, Any]) -> int:
    """Return how many test images were given another class."""
    matrix = np.array(record["confusion"])
    return int(matrix.sum() - np.trace(matrix))


def confusion_table(record: dict[str, Any]) -> str:
    """Return the confusion matrix of a record as in the paper: columns are true classes, rows predicted ones."""
    columns = np.array(record["confusion"]).T.tolist()
    rows = [[f"predicted {name}", *map(str, row)] for name, row in zip(DEFAULT_CLASSES, columns, strict=True)]
    return table([f"seed {record['seed']}", *(f"true {name}" for name in DEFAULT_CLASSES)], rows)


def fig20(records: Records) -> str:
    """Return Figs. 20 and 21: the correctly classified test images with a low confidence."""
    below = published.UNSURE_BELOW
    rows = [["paper", str(published.UNSURE), *["-"] * 4, *PAPER_EFFORT]]
    group = [r for r in records.get("iicnet", []) if "unsure" in r]
    for r in group:
        counts, share = r["unsure"]["counts"], r["unsure"]["share"]
        cells = [str(sum(counts.values())), *(str(counts[name]) for name in DEFAULT_CLASSES), f"{100 * share:.1f} %"]
        rows.append(["ours", *cells, *effort(records, [r])])
    if not group:
        rows.append(["ours", *[MISSING] * 5, *effort(records, [])])
    head = ["", "images", *DEFAULT_CLASSES, "share of the correct", *EFFORT]
    return f"\n## Figs. 20 and 21: correct with a confidence below {below}\n\n{table(head, rows)}"


def gallery(pictures: Sequence[Path]) -> str:
    """Return the pictures of the study; each states in its lower corner how it was made."""
    shown = "\n".join(f"![{path.stem}](figures/{path.name})\n" for path in pictures)
    return f"\n## Pictures\n\n{shown or MISSING}"
