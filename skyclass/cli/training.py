"""Commands of training: labels, dataset, train, evaluate."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..engine.dask_config import load_dask
from ..errors import ConfigError
from ..settings import read_toml
from .output import naming_file, say
from .parameters import needs_cluster, parse_box, parse_counts


@click.command()
@click.argument("labels_toml", required=False, type=click.Path(dir_okay=False))
@click.option("--out", help="Label table to write, Parquet.")
@click.option("--catalog", help="AllWISE partitions to match against; IRSA is asked without them.")
@click.option("--data-release", type=int, help="SDSS data release.  [default: 17]")
@click.option("--per-class", type=int, help="Most spectra of each class, in plate order.  [default: all]")
@click.option("--one-in", type=int, help="Take one spectrum in so many, spread over the sky.  [default: 1]")
@click.option("--region", metavar="RA0,RA1,DEC0,DEC1", help="Box in degrees.  [default: all the sky]")
@click.option("--min-snr", type=float, help="Least W1 and W2 S/N.  [default: 5]")
@click.option("--max-match-arcsec", type=float, help="Largest distance of a match.  [default: 2]")
@click.option("--sdss-url", help="SkyServer of a mirror.  [default: that of SDSS]")
@click.option("--tap-url", help="TAP service of a mirror of IRSA.  [default: that of IRSA]")
@click.option("--timeout", "timeout_s", type=float, help="Seconds that a service may be silent.  [default: 600]")
def labels(labels_toml: str | None, region: str | None, **flags: Any) -> int:
    """Fetch a label table: SDSS spectra matched to AllWISE. The same command goes on where it was stopped."""
    from ..training.data.config import labels_config
    from ..training.data.labels import fetch_labels
    from ..training.progress import print_labels_progress

    data = read_toml(labels_toml) if labels_toml else {}
    data |= {key: value for key, value in flags.items() if value is not None}
    if region:
        data["region"] = parse_box(region)
    with naming_file(labels_toml):
        config = labels_config(data)
    say(f"label table written to {fetch_labels(config, print_labels_progress)}")
    return 0


@click.command()
@click.argument("dataset_toml", required=False, type=click.Path(dir_okay=False))
@click.option("--out", help="Folder of the dataset; must not exist.")
@click.option("--labels", help="Table with ra, dec, class; optionally source_id, coadd_id and photometry.")
@click.option("--images", help="Folder of Atlas tiles, or s3://, https://.")
@click.option("--catalog", help="Catalogue that gives positions, tiles and photometry of the labelled sources.")
@click.option("--bands", help="Comma-separated.  [default: w1,w2,w3,w4]")
@click.option("--size-px", type=int, help="Native pixels on a side of a cutout.  [default: 37]")
@click.option("--preset", help="paper: 7,298 galaxies, 7,215 quasars, 7,223 stars.")
@click.option("--counts", metavar="CLASS=N,...", help="Sources to draw of each class.  [default: all]")
@click.option("--min-w1snr", type=float)
@click.option("--min-w2snr", type=float)
@click.option("--seed", type=int, help="Decides the draw and the splits.")
@click.option("--simulated/--real", default=None, help="What the images are, where the files do not say.")
@click.option("--allow-truncated", is_flag=True, default=None, help="Accept VOTables that were cut at a row limit.")
@click.option("--cluster", help="local, or a scheduler's address.  [default: this process]")
@click.option("--workers", type=int, help="Workers of a local cluster.  [default: cores]")
def dataset(
    dataset_toml: str | None,
    bands: str | None,
    counts: str | None,
    cluster: str | None,
    workers: int | None,
    **flags: Any,
) -> int:
    """Cut a training set out of labelled images: cutouts, photometry and splits that are disjoint on the sky."""
    from ..training.data.build import build_dataset
    from ..training.data.config import dataset_config
    from ..training.data.dataset import summary
    from ..training.progress import dataset_progress

    data = read_toml(dataset_toml) if dataset_toml else {}
    data |= {key: value for key, value in flags.items() if value is not None}
    data |= {"bands": [band.strip() for band in bands.lower().split(",")]} if bands else {}
    data |= {"counts": parse_counts(counts)} if counts else {}
    needs_cluster(cluster, {"--workers": workers})
    if workers is not None and cluster != "local":
        raise ConfigError(f"--workers {workers}: {cluster} has the workers it has; the number is for --cluster local")
    with naming_file(dataset_toml):
        config = dataset_config(data)
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
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), default="test", show_default=True)
@click.option("--calibrate", metavar="BUNDLE", help="Fit the first model's calibration on split val; evaluate it too.")
@click.option("--kind", type=click.Choice(["temperature", "bias"]), help="With --calibrate.  [default: temperature]")
@click.option("--prior", type=click.Choice(["sample", "equal"]), help="With --calibrate.  [default: sample]")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
def evaluate(
    models: tuple[str, ...],
    output: str,
    split: str,
    calibrate: str | None,
    kind: str | None,
    prior: str | None,
    **where: Any,
) -> int:
    """Measure models on a labelled dataset: rates, ROC, calibration, by S/N, magnitude and latitude."""
    if len(models) < 2:
        raise ConfigError(f"evaluate {models[0]}: give one or more models and, last, a dataset folder")
    if (kind or prior) and not calibrate:
        raise ConfigError("--kind, --prior: of a calibration, and none is asked for; give --calibrate BUNDLE")
    from ..model.bundle import load_bundle
    from ..report import RESULTS
    from ..training.data.dataset import load_dataset
    from ..training.evaluation.calibration import calibrate as fit
    from ..training.evaluation.evaluate import check_folder, evaluate_models, write_evaluation
    from ..training.evaluation.predictions import check_fit

    check_folder(Path(output))
    data, bundles = load_dataset(models[-1]), [load_bundle(name) for name in models[:-1]]
    check_fit(bundles, data)
    if calibrate:
        bundles.append(fit(bundles[0], data, "val", calibrate, kind or "temperature", prior or "sample", **where))
    replaced = (Path(output) / RESULTS).is_file()
    folder = write_evaluation(output, evaluate_models(bundles, data, split, **where))
    say(*(folder / "evaluation.md").read_text().rstrip("\n").split("\n"))
    say(f"written to {output}" + (", in place of an earlier evaluation" if replaced else ""))
    return 0


def is_first_rank() -> bool:
    """Return whether this process is the one of its training that speaks."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


@click.command()
@click.argument("train_toml", type=click.Path(dir_okay=False))
@click.option("--cluster", help="local, or a scheduler's address: ranks on each of its nodes.  [default: here]")
@click.option("--nodes", type=int, help="Nodes of the cluster to use.  [default: all]")
@click.option("--ranks-per-node", type=int, help="Processes on each node.  [default: its GPUs, or 1]")
def train(train_toml: str, cluster: str | None, nodes: int | None, ranks_per_node: int | None) -> int:
    """Train a network on a dataset and write its model bundle; the same command on it resumes.

    Works the same under torchrun and srun: `torchrun --nproc-per-node 2 -m skyclass train TRAIN.toml`.
    """
    from ..training.fit.recipe import train_config
    from ..training.progress import training_progress

    needs_cluster(cluster, {"--nodes": nodes, "--ranks-per-node": ranks_per_node})
    data, is_first = read_toml(train_toml), is_first_rank()
    with naming_file(train_toml):
        run = train_config(data)
    if cluster:
        load_dask()
        from ..engine.cluster import connect
        from ..training.fit.launch import launch

        with connect(cluster, nodes if cluster == "local" else None, gpus=0) as client, training_progress() as watch:
            launch(Path(train_toml), client, nodes, ranks_per_node, echo=partial(say, err=True), watch=watch)
    else:
        from ..training.fit.train import train as train_here

        with training_progress() if is_first else nullcontext() as watch:
            train_here(run, watch)
    if is_first:
        from ..model.bundle import load_bundle

        say(f"{load_bundle(Path(run.out).absolute()).model_id} written to {run.out}")
    return 0
