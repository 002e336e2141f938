"""Records -> the cells of Markdown tables. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from . import published
from .published import Derived

Record = Mapping[str, Any]
Records = dict[str, list[dict[str, Any]]]
MISSING = "not yet run"
EFFORT = ("seeds", "epochs", "training images x epochs", "share of the paper's", "device", "simulated sky")
"""Heads of the columns that say how a row was made."""
PAPER_EFFORT = (
    "not stated",
    str(published.EPOCHS),
    f"{published.IMAGE_VIEWS.value:,} (derived)",
    "100 %",
    published.DEVICE,
    "none (observed)",
)
WITHOUT_IMAGES = ("forest", "svm", "colours", "spectra", "real-tables")
OF_OTHER_MODELS = {
    "embedding-svm": "iicnet",
    "natural-mix": "iicnet",
    "natural-mix-fusion": "fusion",
    "margins": "fusion",
}
"""Experiments that use the network of another one, which is the one whose images count."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal, "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def derived(number: Derived) -> str:
    """Return a derived share as a percentage, marked as derived, with its formula."""
    return f"{percent(number.value)} (derived: {number.formula})"


def known_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there: a class that was never given has no precision."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def accuracy(record: Record) -> str:
    """Return the accuracy of a record with its interval, in per cent."""
    low, high = record["interval"]
    return f"{percent(record['accuracy'])} [{percent(low)}, {percent(high)}]"


def over_seeds(group: list[dict[str, Any]]) -> str:
    """Return mean and range of the accuracy over seeds; the interval of a single seed."""
    values = [r["accuracy"] for r in group]
    if len(values) == 1:
        return accuracy(group[0])
    return f"{percent(mean(values))} ({percent(min(values))} to {percent(max(values))}, {len(values)} seeds)"


def effort(records: Records, group: list[dict[str, Any]]) -> list[str]:
    """Return the cells of `EFFORT` for records of one experiment."""
    if not group:
        return ["-"] * len(EFFORT)
    seeds = " ".join(unique(str(r["seed"]) for r in group))
    trained = [network_of(records, r) for r in group]
    views = [image_views(r) for r in trained]
    parts = (
        (str(r.get("epochs", "-")) for r in trained),
        ("no images" if v is None else f"{v:,}" for v in views),
        ("-" if v is None else share_of_paper(v) for v in views),
        (str(r.get("device_name") or r.get("device", "cpu")) for r in trained),
        (str(r.get("sky") or "none (observed)") for r in group),
    )
    return [seeds, *("; ".join(unique(part)) for part in parts)]


def unique(words: Iterable[str]) -> list[str]:
    """Return words without repetitions, in their order."""
    return list(dict.fromkeys(words))


def network_of(records: Records, record: Record) -> Record:
    """Return the record of the network that an experiment uses, which is its own unless it uses another's."""
    others = records.get(OF_OTHER_MODELS.get(record["experiment"], ""), [])
    return next((r for r in others if r["seed"] == record["seed"]), record)


def image_views(record: Record) -> int | None:
    """Return training images times epochs, None for an experiment that trains no network on images."""
    if record["experiment"] in WITHOUT_IMAGES or "epochs" not in record:
        return None
    return int(record["train_rows"]) * sum(map(int, re.findall(r"\d+", str(record["epochs"]))))


def share_of_paper(views: int) -> str:
    """Return training images times epochs as a share of the paper's."""
    share = 100 * views / published.IMAGE_VIEWS.value
    return f"{share:.1f} %" if share >= 0.1 else "below 0.1 %"
