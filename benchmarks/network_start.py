"""`python -m benchmarks.network_start DATASET`: initial weights, normalisation and gates of the IICnet reconstruction.

For each variant: the scale of the activations after each layer before the first step, and the balanced accuracy on the
test split after a number of steps. A record that exists is not made again, so a measurement that was stopped goes on.
Several processes may share the files, each with other variants (`--only`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from skyclass.errors import ConfigError, SkyclassError
from skyclass.files import read_json, write_bytes, write_json
from skyclass.model.devices import resolve_device
from skyclass.networks import build, parameters
from skyclass.training.data.composites import composites
from skyclass.training.data.dataset import Dataset, load_dataset, pixels_digest, rows_digest
from skyclass.training.evaluation.evaluate import training_log
from skyclass.training.evaluation.metrics import balanced_accuracy, confusion
from skyclass.training.evaluation.predictions import probabilities_of
from skyclass.training.fit.ddp import Group
from skyclass.training.fit.initial import composite_settings
from skyclass.training.fit.job import prepare
from skyclass.training.fit.recipe import TrainConfig, train_config
from skyclass.training.fit.train import inputs_of, logits_of, train
from skyclass.training.locks import file_lock

from .paper.layers import watched
from .paper.training import fewer
from .run import WORK
from .timing import commit, cores, cpu_model

Record = dict[str, Any]

RECONSTRUCTION = "reconstruction"
VARIANTS: dict[str, dict[str, Any]] = {
    RECONSTRUCTION: {},
    "bn-all": {"bn": "all"},
    "he": {"init": "he"},
    "open-gates": {"cbam_start": "open"},
    "open-gates-he": {"cbam_start": "open", "init": "he"},
    "bn-all-he": {"bn": "all", "init": "he"},
    "no-cbam": {"cbam": False},
}
"""Options of IICnet, by name of the variant."""
LAYERS = ("conv1", "rfb", "cbam1", "conv2", "conv3", "conv4", "conv5", "cbam2", "head")
N_IMAGES = 256
BATCH = 64


class Effort(NamedTuple):
    """The effort of a training: whole batches of all rows, once in each epoch."""

    rows: int
    epochs: int

    @property
    def steps(self) -> int:
        """Number of steps of the optimiser."""
        return self.rows // BATCH * self.epochs


def effort_of(steps: int, n_train: int) -> Effort:
    """Return the least epochs with at least `steps` steps, and the rows of each, at most `n_train`."""
    if n_train < BATCH:
        raise ConfigError(f"the dataset has {n_train} training rows, and a batch has {BATCH}: use a larger dataset")
    epochs = math.ceil(steps / (n_train // BATCH))
    return Effort(math.ceil(steps / epochs) * BATCH, epochs)


def run_of(dataset: Dataset, variant: str, seed: int, device: str, out: Path, **changes: Any) -> TrainConfig:
    """Return the training of a variant by the recipe "modern"."""
    return train_config(
        {
            "out": str(out),
            "dataset": str(dataset.path or "in memory"),
            "recipe": "modern",
            "name": f"start-{variant}",
            "options": VARIANTS[variant],
            "batch_size": BATCH,
            "seed": seed,
            "device": device,
        }
        | changes
    )


# --- measurements ------------------------------------------------------------------------------------


def signal(dataset: Dataset, variant: str, seed: int, device: str, work: Path) -> Record:
    """Return the standard deviations of the activations of each layer before the first step, in fp32.

    "all": over all activations of the layer. "between_images": of one activation over the images, as the root of the
    mean variance; what is the same for all images, such as the effect of biases, does not add to it.
    """
    run = run_of(dataset, variant, seed, device, work / "none", precision="fp32")
    settings = composite_settings(run)
    images = composites(dataset, run.bands, settings)
    job = prepare(run, dataset, images, settings, Group(device=resolve_device(device)))
    rows = np.sort(np.random.default_rng(0).permutation(job.train_rows)[:N_IMAGES])
    with torch.no_grad(), watched(job.network.train(), LAYERS) as seen:
        logits_of(job, job.network, inputs_of(job, rows))
    return {
        "parameters": parameters(job.network),
        "n_images": len(rows),
        "device": job.group.device,
        "precision": job.precision,
        "all": {name: float(seen[name].std()) for name in LAYERS},
        "between_images": {name: float(seen[name].var(0).mean().sqrt()) for name in LAYERS},
    }


def learned(dataset: Dataset, variant: str, seed: int, device: str, work: Path, steps: int) -> Record:
    """Return the balanced accuracy on the test rows after `steps` steps (or a few more, see `Effort`).

    As in every training, the weights are those of the epoch with the least validation loss.
    """
    effort = effort_of(steps, len(dataset.split("train")))
    folder = work / f"{variant}-{steps}-{seed}"
    run = run_of(dataset, variant, seed, device, folder / "model", epochs=effort.epochs)
    facts: Record = {"rows": effort.rows, "epochs": effort.epochs, "image_views": effort.rows * effort.epochs}
    facts |= {"steps_taken": effort.steps, "batch_size": BATCH, "learning_rate": run.learning_rate}
    try:
        bundle = train(run, dataset=fewer(dataset, effort.rows, seed))
    except ConfigError as error:
        if "diverged" not in error.message:
            raise
        shutil.rmtree(folder)
        return facts | {"error": error.message}
    test = dataset.split("test")
    guess = probabilities_of(bundle, dataset, test, device).argmax(1)
    table = confusion(dataset.labels[test], guess, len(dataset.classes))
    seconds = sum(effort.rows / record["images_per_s"] for record in training_log(bundle))
    found = {"n_test": len(test), "confusion": table.tolist(), "balanced_accuracy": balanced_accuracy(table)}
    found |= {key: bundle.training[key] for key in ("best_epoch", "device", "precision")}
    shutil.rmtree(folder)
    return facts | found | {"training_seconds": round(seconds, 1)}


# --- records -----------------------------------------------------------------------------------------


def todo(
    only: tuple[str, ...], seeds: tuple[int, ...], steps: tuple[int, ...]
) -> Iterator[tuple[Record, Callable[..., Record]]]:
    """Yield what identifies a record, and the function that makes it: first the signals, then the least effort."""
    variants = [name for name in VARIANTS if name in only or not only]
    for seed in seeds:
        for name in variants:
            yield {"variant": name, "seed": seed}, signal
    for n in steps:
        for seed in seeds:
            for name in variants:
                yield {"variant": name, "seed": seed, "steps": n}, partial(learned, steps=n)


def key_of(facts: Record) -> str:
    """Return the key of a record in the file."""
    what = f"{facts['steps']} steps" if "steps" in facts else "signal"
    return f"{facts['variant']}, {what}, seed {facts['seed']}"


def origin(dataset: Dataset) -> Record:
    """Return what identifies a dataset, and whether its images are simulated."""
    digests = {"rows": rows_digest(dataset), "pixels": pixels_digest(dataset)}
    return {"dataset": digests, "simulated": bool(dataset.provenance["simulated"])}


def machine() -> Record:
    """Return the processors, the version of torch and the commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    here = {"cpu": cpu_model(), "cores": cores(), "threads": torch.get_num_threads(), "gpu": gpu}
    return here | {"torch": torch.__version__, "commit": commit()}


def read_records(out: Path, source: Record) -> dict[str, Record]:
    """Return the records of a file by key; `ConfigError` if they are of another dataset."""
    records = read_json(out) if out.exists() else {}
    if other := [key for key, record in records.items() if record["dataset"] != source["dataset"]]:
        raise ConfigError(f"{out} has records of another dataset, such as {other[0]!r}: choose another --out")
    return records


def add_record(out: Path, key: str, record: Record, lock: Path) -> None:
    """Add a record to the file, and write the table again; processes wait for each other."""
    with file_lock(lock):
        records = read_records(out, record) | {key: record}
        write_json(out, records)
        write_bytes(out.with_suffix(".md"), report(records).encode())


def compare(
    dataset: Dataset,
    out: Path,
    work: Path,
    only: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (1, 2, 3),
    steps: tuple[int, ...] = (744, 2976),
    device: str = "auto",
    echo: Callable[[str], None] = click.echo,
) -> str:
    """Make the records that are absent, and return the table of all."""
    work.mkdir(parents=True, exist_ok=True)
    source = origin(dataset)
    for facts, make in todo(only, seeds, steps):
        key = key_of(facts)
        if key in read_records(out, source):
            continue
        found = make(dataset, facts["variant"], facts["seed"], device, work)
        record = facts | {"options": VARIANTS[facts["variant"]]} | found | source | machine()
        add_record(out, key, record, work / "records.lock")
        echo(f"{key}: {found.get('balanced_accuracy', found.get('error', 'written'))}")
    return report(read_records(out, source))


# --- table -------------------------------------------------------------------------------------------


def report(records: dict[str, Record]) -> str:
    """Return the Markdown of all records."""
    found = list(records.values())
    sky = "SIMULATED" if all(record["simulated"] for record in found) else "observed"
    head = (
        f"# The start of IICnet\n\nAll images are {sky}. IICnet is a reconstruction, here with its default options in "
        f"the variant `{RECONSTRUCTION}`. `python -m benchmarks.network_start DATASET` makes these tables."
    )
    signals = [record for record in found if "steps" not in record]
    trained = [record for record in found if "steps" in record]
    parts = [head, options_table()]
    parts += [signal_table(signals, "all"), signal_table(signals, "between_images")] if signals else []
    parts += [accuracy_table(trained)] if trained else []
    return "\n\n".join(parts) + "\n"


def options_table() -> str:
    """Return the options and the number of parameters of each variant."""
    rows = [
        [f"`{name}`", ", ".join(f"{k} = {v!r}" for k, v in options.items()), f"{n:,}"]
        for name, options in VARIANTS.items()
        for n in [parameters(build("iicnet", **options))]
    ]
    return markdown(["variant", "options", "parameters"], rows)


TITLES = {
    "all": "over all activations of a layer",
    "between_images": "of one activation over the images, root of the mean variance",
}


def signal_table(records: list[Record], kind: str) -> str:
    """Return the standard deviation after each layer, mean over the seeds."""
    one = records[0]
    seeds = sorted({record["seed"] for record in records})
    title = (
        f"Standard deviation {TITLES[kind]}, before the first step: {one['n_images']} training images, "
        f"{one['precision']}, BatchNorm in training mode, mean over the seeds {', '.join(map(str, seeds))}."
    )
    rows = []
    for name in VARIANTS:
        own = [record[kind] for record in records if record["variant"] == name]
        if own:
            rows.append([f"`{name}`", *(f"{mean(values[layer] for values in own):.3g}" for layer in LAYERS)])
    return f"{title}\n\n{markdown(['variant', *LAYERS], rows)}"


def accuracy_table(records: list[Record]) -> str:
    """Return the balanced accuracy by variant and effort, with the differences from the reconstruction."""
    efforts = sorted({record["steps"] for record in records})
    columns = ["variant", *(word for n in efforts for word in (f"{n:,} steps", "difference"))]
    rows = []
    for name in VARIANTS:
        cells = [cell for n in efforts for cell in accuracy_cells(records, name, n)]
        if any(cells):
            rows.append([f"`{name}`", *cells])
    title = (
        "Balanced accuracy on the test split in %: mean ± standard deviation over the seeds (their number), and mean "
        "difference from the reconstruction of the same seed ± its standard error. Recipe `modern`, one cosine cycle "
        f"to the last step, batches of {BATCH}; the weights are those of the epoch with the least validation loss."
    )
    faults = [f"- {key_of(record)}: {record['error']}" for record in records if "error" in record]
    conditions = [conditions_of(records, n) for n in efforts]
    return "\n\n".join([title, markdown(columns, rows), "\n".join([*conditions, *faults])])


def accuracy_cells(records: list[Record], name: str, steps: int) -> list[str]:
    """Return the two cells of a variant at an effort, "" without a record."""
    own, base = (by_seed(records, variant, steps) for variant in (name, RECONSTRUCTION))
    if not own:
        return ["", ""]
    values, gains = list(own.values()), [own[seed] - base[seed] for seed in own if seed in base]
    accuracy = f"{mean(values):.1f}{f' ± {stdev(values):.1f}' if len(values) > 1 else ''} ({len(values)})"
    if name == RECONSTRUCTION or not gains:
        return [accuracy, ""]
    error = f" ± {stdev(gains) / math.sqrt(len(gains)):.1f}" if len(gains) > 1 else ""
    return [accuracy, f"{mean(gains):+.1f}{error}"]


def by_seed(records: list[Record], name: str, steps: int) -> dict[int, float]:
    """Return the balanced accuracies of a variant at an effort in %, by seed."""
    chosen = [r for r in records if (r["variant"], r["steps"]) == (name, steps) and "error" not in r]
    return {record["seed"]: 100 * record["balanced_accuracy"] for record in chosen}


def conditions_of(records: list[Record], steps: int) -> str:
    """Return one line about the trainings of an effort."""
    own = [record for record in records if record["steps"] == steps]
    line = f"- {steps:,} steps: " + "; ".join(sorted({effort_text(record) for record in own}))
    done = [record for record in own if "error" not in record]
    if not done:
        return line
    where = sorted({place_text(record) for record in done})
    seconds = [record["training_seconds"] for record in done]
    tested = " and ".join(sorted({f"{record['n_test']:,}" for record in done}))
    return (
        f"{line}; {tested} test images; {'; '.join(where)}; {min(seconds):,.0f} to {max(seconds):,.0f} s; "
        f"commit {', '.join(sorted({record['commit'] for record in done}))}"
    )


def effort_text(record: Record) -> str:
    """Return the effort of a training in words."""
    return (
        f"{record['rows']:,} images x {record['epochs']} epochs = {record['image_views']:,} image views in "
        f"{record['steps_taken']:,} steps"
    )


def place_text(record: Record) -> str:
    """Return the device and the precision of a training in words."""
    cpu = f"{record['cpu']}, threads: {record['threads']}"
    return f"{record['device']} ({cpu if record['device'] == 'cpu' else record['gpu']}), {record['precision']}"


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- command -----------------------------------------------------------------------------------------


def numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list such as "1,2,3"; `BadParameter` for other text."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{text!r}: write positive whole numbers, such as {parameter.default}")
    return found


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--out",
    default=Path(__file__).parent / "results" / "network_start.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the records; the table is beside it, with the ending .md.",
)
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Variant, repeatable.  [default: all]")
@click.option("--seeds", default="1,2,3", show_default=True, callback=numbers)
@click.option("--steps", default="64,744", show_default=True, callback=numbers, help="Efforts in steps.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--work",
    default=WORK / "network_start",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of unfinished trainings.",
)
def main(
    dataset: Path,
    out: Path,
    only: tuple[str, ...],
    seeds: tuple[int, ...],
    steps: tuple[int, ...],
    device: str,
    work: Path,
) -> None:
    """Compare variants of IICnet on DATASET, a folder that `skyclass dataset` has made, and print the table."""
    try:
        click.echo(compare(load_dataset(dataset), out, work, only, seeds, steps, device))
    except SkyclassError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
