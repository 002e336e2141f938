"""Records -> the tables without a counterpart in the paper: controls, margins, calibration, real colours. Pure."""

from __future__ import annotations

from typing import Any

from skyclass.types import DEFAULT_CLASSES

from .cells import EFFORT, MISSING, Records, effort, over_seeds, percent, table


def controls(records: Records) -> str:
    """Return what networks learn that see too little."""
    rows = []
    for label, name, expected in (
        ("W1 alone", "only-w1", "shape and neighbours, no colour"),
        ("labels shuffled", "shuffled", "chance, 33.3"),
        ("the 8 pixels along the border alone", "border", "chance, but for the wings of bright sources"),
    ):
        group = records.get(name, [])
        rows.append([label, expected, over_seeds(group) if group else MISSING, *effort(records, group)])
    note = (
        "Chance is 33.3 for equal shares. W1 alone knows shapes, and how bright a source is: quasars are the fainter "
        "ones. What the border knows beyond chance, it knows from the wings of bright sources, whose colour is that of "
        "the source: its accuracy falls with brightness to chance, as the next table shows.\n"
    )
    wings = "".join(by_magnitude(record) for record in records.get("border", [])[:1])
    seen = table(["a network that sees", "expected", "accuracy", *EFFORT], rows)
    return f"\n## The mock is no giveaway\n\n{seen}\n{note}{wings}"


def by_magnitude(record: dict[str, Any]) -> str:
    """Return the accuracy of a record's network in bins of W1; its effort is in the table before."""
    bins = [b for b in record["strata"]["w1mpro"]["bins"] if b["n"]]
    names = [f"below {b['high']}" if b["low"] is None else f"{b['low']} to {b['high']}" for b in bins]
    values = ["{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in b["accuracy"])) for b in bins]
    rows = [["sources", *(str(b["n"]) for b in bins)], ["accuracy of the border", *values]]
    return f"\n## The border alone, by brightness (seed {record['seed']})\n\n" + table(["W1 (Vega mag)", *names], rows)


def margins(records: Records) -> str:
    """Return the paired differences of accuracy on the same rows."""
    rows = []
    for r in records.get("margins", []):
        for place in ("test", "held-out sky"):
            for pair, ends in r[place]["differences"].items():
                value, low, high = (f"{100 * end:+.1f}" for end in ends)
                cells = [f"{place}, {r[place]['n']:,}", pair, f"{value} [{low}, {high}]"]
                rows.append([*cells, *effort(records, [r])])
    head = ["rows", "difference", "accuracy, points", *EFFORT]
    body = table(head, rows) if rows else MISSING + "\n"
    note = (
        "Fusion is IICnet of the same seed with its weights kept: only the colour branch and the last layer are "
        "trained on. The forest sees the photometry that fusion sees, and the validation rows besides. The "
        "held-out sky is simulated from another seed and chosen as the paper set is. The effort is that of fusion; "
        "that of IICnet alone is in Table 2.\n"
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
                cells = [label, kind, error, percent(f["balanced_accuracy"])]
                rows.append([*cells, *effort(records, [r])])
    head = ["model", "calibration", "ECE (of a perfect model)", "balanced accuracy", *EFFORT]
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
    cells = effort(records, group)
    rows = [
        [method, *(percent(r["recall"][method][name]) for name in DEFAULT_CLASSES), *cells] for method in r["recall"]
    ]
    caveats = "\n".join(f"- {words}" for words in r["caveats"])
    return f"\n## Real sources, colours only: recall\n\n{table(['', *DEFAULT_CLASSES, *EFFORT], rows)}\n{caveats}\n"
