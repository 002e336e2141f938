"""Commands of training: labels, dataset, train, evaluate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..engine.dask_config import load_dask
from ..errors import ConfigError
from ..files import replacing
from ..training.data.config import DatasetConfig, LabelsConfig
from ..training.fit.recipe import TrainConfig, train_config
from .options import ConfigCommand, config_options, read_config, values_of_options
from .output import say
from .templates import toml_text


@click.command(cls=ConfigCommand)
@config_options(LabelsConfig, "LABELS_TOML")
def labels(toml: str | None, **options: Any) -> int:
    """Download a label table: SDSS spectra matched to AllWISE. The same command continues an interrupted download."""
    from ..training.data.labels import fetch_labels
    from ..training.progress import print_labels_progress

    config = read_config(LabelsConfig, toml, options)
    say(f"label table written to {fetch_labels(config, print_labels_progress)}")
    return 0


@click.command(cls=ConfigCommand)
@config_options(DatasetConfig, "DATASET_TOML")
@click.option("--cluster", help="local, or the address of a Dask scheduler.  [default: this process]")
@click.option("--workers", type=int, help="Number of workers of a local cluster.  [default: cores]")
def dataset(toml: str | None, cluster: str | None, workers: int | None, **options: Any) -> int:
    """Make a training set of labelled sources: cutouts, photometry and splits that are disjoint on the sky."""
    from ..training.data.build import build_dataset
    from ..training.data.dataset import summary
    from ..training.progress import dataset_progress

    if workers is not None and cluster != "local":
        raise ConfigError(f"--workers {workers}: this is the number of workers for --cluster local")
    config = read_config(DatasetConfig, toml, options)
    with dataset_progress() as progress:
        if cluster:
            load_dask()
            from ..engine.cluster import connect

            with connect(cluster, workers, gpus=0) as client:
                made = build_dataset(config, client, progress)
        else:
            made = build_dataset(config, None, progress)
    say(f"dataset written to {config.out}", *summary(made).rstrip("\n").split("\n"))
    return 0


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...] DATASET")
@click.option("-o", "--output", required=True, help="Folder for evaluation.json, evaluation.md and figures.")
@click.option("--overwrite", is_flag=True, help="Replace an evaluation in the output folder.")
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), default="test", show_default=True)
@click.option("--calibrate", metavar="BUNDLE", help="Fit the first model's calibration on split val; evaluate it too.")
@click.option(
    "--kind",
    type=click.Choice(["temperature", "bias", "bins", "outliers"]),
    help="With --calibrate; bins: in bins of W1 and |b|; outliers: scores of outliers instead, from all rows of a "
    "dataset that the training has not seen.  [default: temperature]",
)
@click.option("--prior", type=click.Choice(["sample", "equal"]), help="With --calibrate.  [default: sample]")
@click.option(
    "--symmetry",
    type=click.Choice(["1", "8"]),
    help="With --calibrate: orientations of an image over which the new bundle averages; 8 takes eight times as long.  "
    "[default: that of the model]",
)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option(
    "--trust-code", is_flag=True, help="Run networks that are code outside of skyclass. Read that code first."
)
def evaluate(
    models: tuple[str, ...],
    output: str,
    overwrite: bool,
    split: str,
    calibrate: str | None,
    kind: str | None,
    prior: str | None,
    symmetry: str | None,
    trust_code: bool,
    **where: Any,
) -> int:
    """Measure models on a labelled dataset: rates, ROC, calibration, by S/N, magnitude and latitude."""
    if len(models) < 2:
        raise ConfigError(f"evaluate {models[0]}: give one or more models and, last, a dataset folder")
    if (kind or prior or symmetry) and not calibrate:
        raise ConfigError("--kind, --prior and --symmetry need --calibrate BUNDLE")
    from ..model.bundle import load_bundle
    from ..training.data.dataset import load_dataset
    from ..training.evaluation.calibration import calibrate as fit
    from ..training.evaluation.evaluate import check_folder, evaluate_models, write_evaluation
    from ..training.evaluation.predictions import check_fit

    check_folder(Path(output), overwrite)
    data = load_dataset(models[-1])
    bundles = [load_bundle(name, trust_code=trust_code) for name in models[:-1]]
    check_fit(bundles, data)
    if calibrate:
        fitted_on, turns = "all" if kind == "outliers" else "val", int(symmetry) if symmetry else None
        choices = (kind or "temperature", prior or "sample")
        bundles.append(fit(bundles[0], data, fitted_on, calibrate, *choices, symmetry=turns, **where))
    folder = write_evaluation(output, evaluate_models(bundles, data, split, **where), overwrite)
    say(*(folder / "evaluation.md").read_text().rstrip("\n").split("\n"))
    say(f"written to {output}")
    return 0


def is_first_rank() -> bool:
    """Return whether this process is rank 0, the only rank that prints."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


@click.command(cls=ConfigCommand)
@config_options(TrainConfig, "TRAIN_TOML")
def train(toml: str | None, **options: Any) -> int:
    """Train a network on a dataset and write its model bundle. The same command resumes an interrupted training.

    TRAIN_TOML holds the same keys as the options below, which override it; `skyclass init train` writes one. The
    command also works under torchrun and srun: `torchrun --nproc-per-node 2 -m skyclass train TRAIN_TOML`.
    """
    run, is_first = read_config(TrainConfig, toml, options, train_config), is_first_rank()
    if run.cluster != "none":
        has_trained = train_on_cluster(run, settings_file_for_ranks(run, toml, options))
    else:
        has_trained = train_in_this_process(run, is_first)
    if is_first:
        from ..model.bundle import read_bundle

        model_id = read_bundle(Path(run.out).absolute()).model_id
        say(f"{model_id} {'written to' if has_trained else 'is in'} {run.out}")
    return 0


def train_in_this_process(run: TrainConfig, is_first: bool) -> bool:
    """Train, alone or as a rank, and return whether anything was left to do; only the first rank knows."""
    from ..training.fit.train import train as train_here
    from ..training.progress import training_progress

    if not is_first:
        train_here(run)
        return False
    with training_progress() as progress:
        train_here(run, progress)
    return progress.has_trained


def train_on_cluster(run: TrainConfig, file: Path) -> bool:
    """Train with the settings of a file, with ranks on the machines of a cluster; return whether there was work."""
    if "LOCAL_RANK" in os.environ:
        raise ConfigError(f"cluster = {run.cluster!r}: torchrun has started this process as a rank; leave cluster out")
    load_dask()
    from ..engine.cluster import connect
    from ..training.fit.launch import launch
    from ..training.progress import training_progress

    n_workers = run.nodes if run.cluster == "local" else None
    with connect(run.cluster, n_workers, gpus=0) as client, training_progress() as progress:
        launch(file, client, run.nodes, run.ranks_per_node, print_line=partial(say, err=True), progress=progress)
    return progress.has_trained


def settings_file_for_ranks(run: TrainConfig, toml: str | None, options: Mapping[str, Any]) -> Path:
    """Return the TOML file that the ranks read: OUT.settings.toml, written here, where options change the training."""
    placement = ("cluster", "nodes", "ranks_per_node")
    changed = {name for name in values_of_options(TrainConfig, options) if name not in placement}
    if toml and not changed:
        return Path(toml)
    file = Path(f"{run.out}.settings.toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(toml_text(asdict(run)), "utf-8")
    return file
