"""Records -> the paper's tables with our figures beside the printed ones, as Markdown. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from skyclass.types import CLASSES

from . import published
from .study import BASELINES, SIZES, Preset

Records = dict[str, list[dict[str, Any]]]
MISSING = "not yet run"
NETWORK_NAMES = {
    "iicnet": "IICnet (reconstruction)",
    "vgg16": "VGG16",
    "googlenet": "GoogLeNet (Inception v1)",
    "resnet34": "ResNet34 (widths 128/256/512/512)",
    "mobilenet": "MobileNet v1",
    "efficientnetv2": "EfficientNetV2-S",
    "repvgg": "RepVGG-A2 (nearest official: the paper's variant is unresolved)",
}
STRETCHED = (
    "Photometry adds little to images whose stretch keeps flux and colour: the simulated catalogue measures it on the "
    "same pixels. Where each band of each cutout is stretched between its own percentiles, as a viewer does, flux and "
    "colour are lost to the image, and photometry brings them back (fewer epochs and rows: see the last column).\n"
)
HEAD = """# The study of Zhao et al. 2023, again, on a SIMULATED sky

Made by `python -m benchmarks.paper`. **Our sources are simulated** (`skyclass mock`) in every table but the last, the
network is a reconstruction, and the paper's sources are real: the columns stand side by side so that the tables are
whole, not so that they may be compared. Accuracies hold for equal class shares unless the table says otherwise; none is
the purity of a catalogue. "-" in the column of the paper: the number is in a figure only, or could not be read.
"""


def load_records(folder: Path) -> Records:
    """Return the records in a folder, by experiment, ordered by seed."""
    found: Records = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["experiment"], []).append(record)
    return {name: sorted(records, key=lambda r: r["seed"]) for name, records in found.items()}


def document(records: Records, preset: Preset) -> str:
    """Return all tables of a study as one Markdown page."""
    parts = [HEAD, conditions(records, preset), table1(records), table2(records), table3(records), fig17(records)]
    parts += [controls(records), sweeps(records), margins(records), natural(records), real(records)]
    return "\n".join(parts)


def conditions(records: Records, preset: Preset) -> str:
    """Say what was reduced, and on what machine the networks were trained."""
    trained = [r for group in records.values() for r in group if "device" in r]
    devices = ", ".join(sorted({f"{r['device']}, {r['precision_mode']}" for r in trained})) or MISSING
    return (
        f"Preset `{preset.name}`: recipe {preset.recipe}, {preset.epochs} epochs for Table 2 and Fig. 17, "
        f"{preset.small_epochs} epochs on {preset.small_rows or 'all'} training rows in batches of "
        f"{preset.small_batch} for Table 3, the sweeps and shuffled labels (the paper: 200 epochs on all). "
        f"Trained on: {devices}. Intervals are 95 % bootstrap intervals over the test rows.\n"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal, "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def known_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there: a class that was never given has no precision."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def accuracy(record: Mapping[str, Any]) -> str:
    """Return the accuracy of a record with its interval, in per cent."""
    low, high = record["interval"]
    return f"{percent(record['accuracy'])} [{percent(low)}, {percent(high)}]"


def over_seeds(group: list[dict[str, Any]]) -> str:
    """Return mean and range of the accuracy over seeds, with how many."""
    values = [r["accuracy"] for r in group]
    if len(values) == 1:
        return accuracy(group[0])
    return f"{percent(mean(values))} ({percent(min(values))} to {percent(max(values))}, {len(values)} seeds)"


def table1(records: Records) -> str:
    """Return Table 1: the training set."""
    iicnet = records.get("iicnet")
    ours = iicnet[0]["split"] if iicnet and "split" in iicnet[0] else None
    rows = []
    for name in CLASSES:
        counts = [str(ours[s][name]) for s in ("train", "val", "test", "none")] if ours else [MISSING] * 4
        rows.append([name, *map(str, published.SPLIT[name]), *counts])
    head = ["class", *(f"{s} (paper)" for s in ("train", "val", "test")), "train", "val", "test", "in no split"]
    note = (
        "Ours are disjoint on the sky by whole HEALPix pixels; a source whose cutout could share pixels with another "
        "split is in none.\n"
    )
    return f"## Table 1: the set\n\n{table(head, rows)}\n{note}"


def table2(records: Records) -> str:
    """Return Table 2: IICnet, each class against the rest, mean over seeds."""
    group = records.get("iicnet", [])
    names = ("precision", "recall", "specificity", "f1", "class_accuracy")
    rows = []
    for kind in CLASSES:
        for name in names:
            ours = percent(known_mean(r[name][kind] for r in group)) if group else MISSING
            rows.append([kind, name.replace("_", " "), percent(published.IICNET[kind][name]), ours])
    rows.append(["all", "accuracy", percent(published.IICNET_ACCURACY), over_seeds(group) if group else MISSING])
    auc = percent(known_mean(known_mean(r["auc"].values()) for r in group)) if group else MISSING
    rows.append(["all", "AUC", "above 99", auc])
    facts = ", ".join(f"seed {r['seed']}: {accuracy(r)}, {r['epochs']} epochs, {r['train_rows']:,} rows" for r in group)
    return f"## Table 2: IICnet\n\n{table(['class', '', 'paper', 'ours, per cent'], rows)}\n{facts}\n"


def table3(records: Records) -> str:
    """Return Table 3: seven networks, equal epochs and rows, all at 80 px; costs at 80 and 224 px."""
    rows = []
    for name in ("iicnet", *BASELINES):
        known, group = published.COST[name], records.get(f"equal-{name}")
        cells = [NETWORK_NAMES[name], known["macs"], known["parameters"]]
        if group:
            r = group[0]
            cells += [f"{r['macs_80'] / 1e6:,.1f}M", f"{r['macs_224'] / 1e6:,.1f}M", f"{r['parameters'] / 1e6:.3f}M"]
            cells += [accuracy(r), f"{r['epochs']}, {r['train_rows']:,}, seed {r['seed']}, {r['device']}"]
        else:
            cells += [MISSING] * 5
        rows.append(cells)
    head = ["network", "FLOPs (paper)", "params (paper)", "MACs at 80 px", "at 224 px", "params", "accuracy, per cent"]
    note = (
        "The paper counts IICnet at 80 px and, so it seems, the others at 224 px; ours are trained at 80 px. MACs are "
        "multiply-accumulates of convolutions and linear layers; the paper's counter adds biases, BatchNorm, ReLU and "
        "pools (IICnet: 218.66M), and `tests/networks/test_networks.py` reproduces its figures. One recipe for all, "
        "tuned for none" + rates(records) + ". " + ranking(records)
    )
    return f"## Table 3: networks at equal epochs\n\n{table([*head, 'epochs, rows, seed, device'], rows)}\n{note}\n"


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
    """Say of which baselines IICnet is ahead by more than the interval of the paired difference, and of which not."""
    groups = {name: records.get(f"equal-{name}") for name in ("iicnet", *BASELINES)}
    if not all(groups.values()):
        return ""
    right = {name: np.array(list(group[0]["right"]), dtype=int) for name, group in groups.items() if group}
    verdicts: dict[str, list[str]] = {"ahead of": [], "behind": [], "not to be told apart from": []}
    for name in BASELINES:
        gap = right["iicnet"] - right[name]
        reach = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap))
        verdict = "ahead of" if gap.mean() > reach else "behind" if gap.mean() < -reach else "not to be told apart from"
        verdicts[verdict].append(f"{NETWORK_NAMES[name]} ({100 * gap.mean():+.1f} +- {100 * reach:.1f})")
    told = "; ".join(f"{verdict} {', '.join(names)}" for verdict, names in verdicts.items() if names)
    return f"IICnet here is {told} (points of accuracy, 95 %, paired on the same rows, one seed)."


def fig17(records: Records) -> str:
    """Return Fig. 17: what the network is given; and the classic methods."""
    rows = []
    for label, name, printed in (
        ("images W1 W2 W3", "iicnet", "images W1 W2 W3"),
        ("images W1 W2 W3 + photometry", "fusion", "images W1 W2 W3 + colours"),
        ("the same, all of it trained from random weights", "fusion-scratch", "-"),
        ("images, per-image stretch", "stretched-iicnet", "-"),
        ("images, per-image stretch, + photometry", "stretched-fusion", "-"),
        ("images W1 W2 W3 W4", "iicnet-4", "images W1 W2 W3 W4"),
        ("colours W1-W2, W2-W3", "colours", "colours"),
        ("spectra (simulated, other sources)", "spectra", "spectra"),
        ("random forest on photometry", "forest", None),
        ("SVM on photometry", "svm", None),
        ("SVM on the embedding of IICnet", "embedding-svm", None),
        ("SimCLR without labels, linear probe", "self-supervised", None),
    ):
        group = records.get(name)
        facts = effort(group) if group else ""
        paper = percent(published.INPUTS.get(printed)) if printed else "in words only"
        rows.append([label, paper, over_seeds(group) if group else MISSING, facts])
    head = ["input", "paper", "ours, accuracy per cent", "epochs, rows, seeds, device"]
    return f"## Fig. 17: what is looked at\n\n{table(head, rows)}{stretch_note(records)}"


def effort(group: list[dict[str, Any]]) -> str:
    """Return with how many epochs and rows, which seeds and on what device records were made."""
    first, seeds = group[0], " ".join(str(r["seed"]) for r in group)
    return f"{first.get('epochs', '-')}, {first['train_rows']:,}, {seeds}, {first.get('device', 'cpu')}"


def stretch_note(records: Records) -> str:
    """Return why photometry helps stretched images more, where our records say that it does."""
    names = ("iicnet", "fusion", "stretched-iicnet", "stretched-fusion")
    if not all(records.get(name) for name in names):
        return ""
    images, both, stretched, stretched_both = (mean(r["accuracy"] for r in records[name]) for name in names)
    return f"\n{STRETCHED}" if stretched_both - stretched > max(0.0, both - images) else ""


def controls(records: Records) -> str:
    """Return what networks learn that see too little."""
    rows = []
    for label, name, expected in (
        ("W1 alone", "only-w1", "shape and neighbours, no colour"),
        ("labels shuffled", "shuffled", "chance, 33.3"),
        ("the 8 pixels along the border alone", "border", "chance, but for the wings of bright sources"),
    ):
        group = records.get(name)
        rows.append([label, expected, over_seeds(group) if group else MISSING])
    note = (
        "Chance is 33.3 for equal shares. W1 alone knows shapes, and how bright a source is: quasars are the fainter "
        "ones. What the border knows beyond chance, it knows from the wings of bright sources, whose colour is that of "
        "the source: its accuracy falls with brightness to chance, as the next table shows.\n"
    )
    wings = "".join(by_magnitude(record) for record in records.get("border", [])[:1])
    seen = table(["a network that sees", "expected", "accuracy"], rows)
    return f"\n## The mock is no giveaway\n\n{seen}\n{note}{wings}"


def by_magnitude(record: dict[str, Any]) -> str:
    """Return the accuracy of a record's network in bins of W1."""
    bins = [b for b in record["strata"]["w1mpro"]["bins"] if b["n"]]
    names = [f"below {b['high']}" if b["low"] is None else f"{b['low']} to {b['high']}" for b in bins]
    values = ["{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in b["accuracy"])) for b in bins]
    rows = [["sources", *(str(b["n"]) for b in bins)], ["accuracy of the border", *values]]
    return "\n## The border alone, by brightness\n\n" + table(["W1 (Vega mag)", *names], rows)


def sweeps(records: Records) -> str:
    """Return Figs. 8 and 12 and the ablation of the blocks."""
    names = [("input 80 px, kernel 5 x 5", "equal-iicnet"), ("kernel 3 x 3", "kernel-3"), ("kernel 7 x 7", "kernel-7")]
    names += [("without RFB", "without-rfb"), ("without CBAM", "without-cbam")]
    names += [(f"input {px} px", f"size-{px}") for px in SIZES if px != 80]
    rows = [[label, over_seeds(records[name]) if name in records else MISSING] for label, name in names]
    return f"## Figs. 8 and 12, ablation\n\n{table(['IICnet with', 'accuracy, per cent'], rows)}"


def margins(records: Records) -> str:
    """Return the paired differences of accuracy on the same rows."""
    rows = []
    for r in records.get("margins", []):
        for place in ("test", "held-out sky"):
            for pair, ends in r[place]["differences"].items():
                value, low, high = (f"{100 * end:+.1f}" for end in ends)
                rows.append([str(r["seed"]), f"{place}, {r[place]['n']:,}", pair, f"{value} [{low}, {high}]"])
    head = ["seed", "rows", "difference", "accuracy, points"]
    body = table(head, rows) if rows else MISSING + "\n"
    note = (
        "Fusion is IICnet of the same seed with its weights kept: only the colour branch and the last layer are "
        "trained on. The forest sees the photometry that fusion sees, and the validation rows besides. The "
        "held-out sky is simulated from another seed and chosen as the paper set is.\n"
    )
    return f"\n## Margins, paired on the same rows\n\n{body}\n{note}"


def natural(records: Records) -> str:
    """Return the calibration on a sky of natural class shares."""
    rows = []
    for label, name in (("IICnet", "natural-mix"), ("fusion", "natural-mix-fusion")):
        for r in records.get(name, []):
            for kind in ("as trained", "temperature", "bias"):
                f, (low, high) = r[kind], r[kind]["ece_interval"]
                error = f"{f['ece']:.4f} [{low:.4f}, {high:.4f}] ({f['ece_floor']:.4f})"
                rows.append([label, str(r["seed"]), kind, error, percent(f["balanced_accuracy"])])
    head = ["model", "seed", "calibration", "ECE (of a perfect model)", "balanced accuracy"]
    body = table(head, rows) if rows else MISSING + "\n"
    note = (
        "Fitted on one half of the sky, measured on the other. `bias` knows the natural class shares, so "
        "the rare quasars must be surer: calibrated probabilities, lower balanced accuracy.\n"
    )
    return f"\n## Calibration on a held-out simulated sky with natural shares\n\n{body}\n{note}"


def real(records: Records) -> str:
    """Return the colour network on real sources."""
    group = records.get("real-tables")
    if not group:
        return f"\n## Real sources, colours only\n\n{MISSING}\n"
    r = group[0]
    rows = [[method, *(percent(r["recall"][method][name]) for name in CLASSES)] for method in r["recall"]]
    caveats = "\n".join(f"- {words}" for words in r["caveats"])
    return f"\n## Real sources, colours only: recall\n\n{table(['', *CLASSES], rows)}\n{caveats}\n"
