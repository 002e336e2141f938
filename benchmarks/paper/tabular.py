"""Small networks, trained in memory: colours, spectra, a linear layer on an embedding. And the real tables.

values (N, F) --scaled--> fit_tabular(network, ...) --> logits_of(network, ...)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from astropy.stats import binom_conf_interval
from torch import Tensor, nn
from torch.nn import functional as F

from skyclass.errors import CatalogError, ConfigError
from skyclass.model.devices import resolve_device
from skyclass.model.photometry import scale_of, scaled
from skyclass.networks.colour import ColourNet
from skyclass.training.data.classes import label_counts
from skyclass.training.evaluation.metrics import colour_cuts, confusion, confusion_scores
from skyclass.training.fit.job import class_weights
from skyclass.types import DEFAULT_CLASSES, Bool, Float32, Float64, Int64

PATIENCE = 12
"""Epochs without a better validation loss after which training ends."""
BATCH = 8192

REAL_TABLES = {"galaxy": "sdss_galaxies", "quasar": "desi_quasars", "star": "exoplanet_host_stars"}
"""Parquet tables of real, spectroscopically known sources, class by class."""
MAGNITUDES = ("w1mpro", "w2mpro", "w3mpro")
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
CAVEATS = (
    "Not the purity or completeness of any catalogue: the class fractions of the sky are nothing like those of the "
    "tables.",
    "The samples are easy by selection: quasars were preselected by W1-W2 >= 0.65, galaxies are bright in W3 "
    "(S/N > 5 in three bands, z < 0.35), stars are bright hosts of planets. Two plain cuts do nearly as well.",
    "Colours only. Magnitudes would give the classes away: median W1 is 11.5 for the stars, 14.4 for the galaxies and "
    "16.1 for the quasars.",
)


def fit_tabular(
    network: nn.Module,
    inputs: Float32,
    labels: Int64,
    *,
    val: tuple[Float32, Int64] | None = None,
    epochs: int = 60,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
    balanced: bool = True,
    device: str = "cpu",
) -> nn.Module:
    """Return `network` trained in place on `inputs` (N, ...) and `labels` (N,), in eval mode and on the CPU.

    AdamW with a cosine rate and cross-entropy, classes weighed equally if `balanced`. With `val` (inputs, labels)
    it ends after `PATIENCE` epochs without a lower validation loss and keeps the best weights. The order of rows
    and any dropout follow `seed`; initialise the network from a seed too (`seeded`). Raises `ConfigError`.
    """
    _check(inputs, labels, val, epochs, batch_size)
    place = torch.device(resolve_device(device))
    network.to(place)
    weights = class_weights(labels, len(DEFAULT_CLASSES), balanced).to(place)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    generator = np.random.default_rng(seed)
    best, kept, since = math.inf, copy.deepcopy(network.state_dict()), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            _epoch(network, optimiser, inputs, labels, weights, generator.permutation(len(labels)), batch_size)
            schedule.step()
            if val is None:
                continue
            loss = _loss(network, *val, weights)
            since = 0 if loss < best else since + 1
            if loss < best:
                best, kept = loss, copy.deepcopy(network.state_dict())
            if since >= PATIENCE:
                break
    if val is not None:
        if best == math.inf:
            raise ConfigError(f"small network: training diverged; lower learning_rate = {learning_rate}")
        network.load_state_dict(kept)
    return network.cpu().eval()


def logits_of(network: nn.Module, inputs: Float32) -> Float32:
    """Return logits (N, classes) float32 for inputs (N, ...); the network is left in eval mode."""
    network.eval()
    with torch.inference_mode():
        place = next(network.parameters()).device
        parts = [network(part.to(place)).float().cpu() for part in torch.split(torch.from_numpy(inputs), BATCH)]
    result: Float32 = torch.cat(parts).numpy()
    return result


def seeded(network: Callable[..., nn.Module], seed: int, **options: object) -> nn.Module:
    """Return `network(**options)` with weights that follow from `seed`; the state of torch's generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(**options)


def real_tables(folder: str | Path, seed: int, *, epochs: int = 60) -> dict[str, Any]:
    """Return each class recall of the colour network on the real tables in `folder`, beside the two plain cuts.

    The network sees W1-W2 and W2-W3 (Vega mag) and nothing else; 8:1:1 split, stratified by class, drawn from
    `seed`. Keys: `recall` (method -> class -> share), `interval` (the same, 95 %, Wilson 1927), `confusion`,
    `rows`, `dropped`, `caveats`, `seed`, `features`, `simulated` (false: these are real sources).

    Never quote these recalls as the purity of a catalogue, and do not take them for a hard test. The quasars
    (10,166 of DESI) were preselected by W1-W2 >= 0.65, the galaxies (14,734 of SDSS) have S/N > 5 in three bands,
    the stars (1,522 hosts of planets) are bright: two plain cuts already recall about 97 % of each class. Raises
    `CatalogError` when a table is missing or lacks a column.
    """
    colours, labels, dropped = read_colours(folder)
    parts = split_rows(labels, seed)
    scale = scale_of(colours[parts["train"]])
    sets = {name: (scaled(colours[index], scale), labels[index]) for name, index in parts.items()}
    network = seeded(ColourNet, seed, features=colours.shape[1])
    fit_tabular(network, *sets["train"], val=sets["val"], epochs=epochs, seed=seed)
    true, seen = labels[parts["test"]], colours[parts["test"]]
    given = {"colour_network": logits_of(network, sets["test"][0]).argmax(1), "colour_cuts": _cuts(seen)}
    tables = {method: confusion(true, guess, len(DEFAULT_CLASSES)) for method, guess in given.items()}
    return {
        "recall": {method: confusion_scores(table, DEFAULT_CLASSES)["recall"] for method, table in tables.items()},
        "interval": {method: _intervals(table) for method, table in tables.items()},
        "confusion": {method: table.tolist() for method, table in tables.items()},
        "rows": {name: label_counts(labels[index], DEFAULT_CLASSES) for name, index in parts.items()},
        "dropped": dropped,
        "features": ["w1-w2", "w2-w3"],
        "seed": seed,
        "simulated": False,
        "caveats": list(CAVEATS),
    }


def read_colours(folder: str | Path) -> tuple[Float32, Int64, dict[str, int]]:
    """Return W1-W2 and W2-W3 (N, 2) in Vega mag and labels (N,) of the real tables; and what was dropped.

    Rows without all three magnitudes and second rows of the same `key` are left out and counted by class. A
    star whose W3 is an upper limit stays: its colour is what a catalogue would give.
    """
    colours, labels, dropped = [], [], {}
    for k, (name, table) in enumerate(REAL_TABLES.items()):
        magnitudes, keys = _magnitudes(Path(folder) / f"{table}.parquet")
        first = np.zeros(len(keys), dtype=np.bool_)
        first[np.unique(keys, return_index=True)[1]] = True
        good: Bool = first & np.isfinite(magnitudes).all(1)
        colours.append((magnitudes[good, :2] - magnitudes[good, 1:]).astype(np.float32))
        labels.append(np.full(good.sum(), k, dtype=np.int64))
        dropped[name] = int((~good).sum())
    return np.concatenate(colours), np.concatenate(labels), dropped


def split_rows(labels: Int64, seed: int) -> dict[str, Int64]:
    """Return sorted positions of the train, val and test rows: 8:1:1 of each class, drawn from `seed`."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[Int64]] = {name: [] for name in SHARES}
    for k in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == k))
        edges = np.round(np.cumsum(list(SHARES.values()))[:-1] * len(rows)).astype(int)
        for name, part in zip(SHARES, np.split(rows, edges), strict=True):
            found[name].append(part)
    return {name: np.sort(np.concatenate(parts)) for name, parts in found.items()}


def _magnitudes(path: Path) -> tuple[Float64, Any]:
    """Return W1, W2, W3 (N, 3), NaN where null, and the keys of a table."""
    if not path.is_file():
        raise CatalogError(f"{path}: there is no such table; give the folder of {', '.join(REAL_TABLES.values())}")
    table = pq.read_table(path)
    if missing := {"key", *MAGNITUDES} - set(table.column_names):
        raise CatalogError(f"{path}: column {', '.join(sorted(missing))} is missing")
    columns = [table[name].to_numpy().astype(np.float64) for name in MAGNITUDES]
    return np.stack(columns, axis=1), table["key"].to_numpy().astype(str)


def _cuts(colours: Float32) -> Int64:
    """Return the label index (N,) of the two plain cuts for W1-W2 and W2-W3; they depend on nothing else."""
    w2 = np.zeros(len(colours))
    names = colour_cuts(w2 + colours[:, 0], w2, w2 - colours[:, 1])
    return np.array([DEFAULT_CLASSES.index(name) for name in names], dtype=np.int64)


def _intervals(table: Int64) -> dict[str, list[float]]:
    """Return the 95 % interval of each recall of a confusion matrix."""
    ends = binom_conf_interval(np.diagonal(table), table.sum(1), 0.95, interval="wilson")
    return dict(zip(DEFAULT_CLASSES, ends.T.tolist(), strict=True))


def _epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    inputs: Float32,
    labels: Int64,
    weights: Tensor,
    order: Int64,
    batch_size: int,
) -> None:
    network.train()
    for rows in np.array_split(order, math.ceil(len(order) / batch_size)):
        x, y = (torch.from_numpy(part[rows]).to(weights.device) for part in (inputs, labels))
        loss = F.cross_entropy(network(x), y, weight=weights)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _loss(network: nn.Module, inputs: Float32, labels: Int64, weights: Tensor) -> float:
    logits = torch.from_numpy(logits_of(network, inputs))
    return float(F.cross_entropy(logits, torch.from_numpy(labels), weight=weights.cpu()))


def _check(inputs: Float32, labels: Int64, val: tuple[Float32, Int64] | None, epochs: int, batch_size: int) -> None:
    problems = []
    for name, (x, y) in {"training": (inputs, labels), "validation": val or (inputs, labels)}.items():
        if len(x) != len(y) or len(x) < 2:
            problems.append(f"{name}: {len(x)} inputs and {len(y)} labels: give as many of both, two at least")
        if not np.isfinite(x).all():
            problems.append(f"{name}: an input is not finite: pass it through `scaled`")
    if epochs < 1 or batch_size < 2:
        problems.append(f"epochs = {epochs}, batch_size = {batch_size}: must be at least 1 and 2")
    if problems:
        raise ConfigError("small network: " + "; ".join(problems))
