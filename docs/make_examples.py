"""Run the commands of the documentation on a small simulated sky and keep what they print.

`python -m docs.make_examples` writes `docs/examples/NAME.txt`, which the pages and README.md include. With `--demo` it
runs `skyclass demo` too and takes a picture of its report; with `--fields DIR` it classifies the real fields, whose
images DIR holds. A slow test runs the commands again and compares the text; times and rates may differ, and numbers by
a little, since processors round differently.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from docs.make_figures import FOLDER as FIGURES
from docs.make_figures import picture

FOLDER = Path(__file__).parent / "examples"
CHECKOUT = Path(__file__).parents[1]
TRAIN_TOML = """\
cat > TRAIN.toml << END
recipe = "modern"
name = "my-model"
out = "my-model"
dataset = "dataset"
network = "iicnet"
start_from = "iicnet-mock"
epochs = 2
learning_rate = 1e-4
precision = "fp32"
END"""
RUN_TOML = """\
cat > RUN.toml << END
catalog = "sky/catalog"
images = "sky/images"
out = "classes"
modle = "iicnet-mock"
strip_sources = "many"
END"""

Examples = Mapping[str, tuple[str, ...]]
EXAMPLES: Examples = {
    "mock": ("skyclass mock sky --tiles 2 --size 500 --seed 7",),
    "plan": ("skyclass plan --catalog sky/catalog --images sky/images",),
    "classify": ("skyclass classify --catalog sky/catalog --images sky/images --out classes --cluster none",),
    "resume": ("skyclass classify --catalog sky/catalog --images sky/images --out classes --cluster none",),
    "verify": ("skyclass verify classes",),
    "query": (
        'skyclass query classes --where "p_quasar > 0.8" --columns source_id,ra,dec,w1mpro,p_quasar',
        'skyclass query classes --sql "SELECT class, count(*) AS n, avg(margin) AS margin FROM classes GROUP BY class'
        ' ORDER BY class"',
        'skyclass query classes --where "w1snr > 20" -o bright.fits',
    ),
    "table": (
        "skyclass query classes -o positions.csv --sql"
        ' "SELECT source_id, ra, dec FROM classes WHERE w1snr > 20 ORDER BY source_id LIMIT 6"',
        "head -4 positions.csv",
        "skyclass classify --catalog positions.csv --images sky/images --out mine --cluster none",
        "skyclass query mine --columns source_id,class,p_galaxy,p_quasar,p_star,flags,valid_frac",
    ),
    "cutouts": ("skyclass cutouts --catalog positions.csv --images sky/images -o cutouts.npz --size 50arcsec",),
    "report": ("skyclass report classes -o report.html",),
    "gc": ("skyclass publish classes", "skyclass gc classes"),
    "quarantine": (
        "cp -r sky/images damaged",
        "truncate -s 100000 $(find damaged -name '*w2-int-3.fits' | sort | head -1)",
        "skyclass classify --catalog sky/catalog --images damaged --out repaired --cluster none",
        "cp -r sky/images/. damaged/",
        "skyclass classify --catalog sky/catalog --images damaged --out repaired --cluster none --retry-quarantined",
    ),
    "init": ("skyclass init run", "head -16 RUN.toml"),
    "config": (RUN_TOML, "skyclass classify RUN.toml"),
    "train": (
        "skyclass mock train-sky --tiles 1 --size 900 --seed 303 --mix balanced",
        "skyclass dataset --labels train-sky/truth.parquet --catalog train-sky/catalog --images train-sky/images"
        " --bands w1,w2,w3 --out dataset",
        TRAIN_TOML,
        "skyclass train TRAIN.toml",
    ),
    "use-model": (
        "skyclass classify --catalog positions.csv --images sky/images --model ./my-model --out own-classes"
        " --cluster none",
    ),
    "evaluate": (
        "skyclass evaluate ./my-model iicnet-mock dataset -o evaluation > /dev/null",
        "grep -A 6 '## Overall' evaluation/evaluation.md",
        "skyclass report evaluation -o evaluation.html",
    ),
}
"""Example -> its commands. They run in this order, in one folder."""

COLUMNS = "source_id,class,p_galaxy,p_quasar,p_star,flags,valid_frac"
REAL_FIELDS: Examples = {
    name: (
        f"skyclass classify --catalog tests/data/{name}.csv --images atlas_cutouts --out {name}",
        f"skyclass query {name} --columns {COLUMNS}",
    )
    for name in ("2010H", "2010ai")
}
"""Examples on Atlas images of two transients, three bands each, which the checkout does not hold."""
DEMO: Examples = {
    "demo": ("skyclass demo",),
    "balanced": ("skyclass demo balanced --mix balanced --seed 202 --tiles 1 --sources-per-tile 9000 | grep accuracy",),
}
"""Examples of minutes."""

TIMES = re.compile(
    r"[\d,.]+ (s|process minutes|process hours|ms|min|h|sources/s|images/s|MB/s)\b|\d+%|bound by [\w ]+ \(.*\)"
)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
PROGRESS = re.compile(r'^\{"sources"|\u2501')
"""Lines that a terminal overwrites; they are not kept."""
DIGEST = re.compile(r"\b[0-9a-f]{12,64}\b")


def run_example(commands: tuple[str, ...], folder: Path) -> str:
    """Return commands with what they print in a folder; exit codes other than 0 are shown."""
    return "".join(transcript(command, folder) for command in commands)


def transcript(command: str, folder: Path) -> str:
    """Return a command as typed, its output, and its exit code unless it is 0."""
    function = f'skyclass() {{ "{sys.executable}" -m skyclass "$@"; }}\n'
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", function + command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = (line.rstrip().replace(f"{folder}/", "") for line in done.stdout.splitlines())
    lines = [f"$ {command}", *(line for line in shown if not PROGRESS.search(line))]
    if done.returncode:
        lines += ["$ echo $?", str(done.returncode)]
    return "\n".join(lines) + "\n"


def differences(old: str, new: str) -> Iterator[str]:
    """Yield each line of an example that differs by more than times, digests and the rounding of numbers."""
    before, after = old.splitlines(), new.splitlines()
    if len(before) != len(after):
        yield f"{len(before)} lines before, {len(after)} now"
    for one, other in zip(before, after, strict=False):
        if not same_line(one, other):
            yield f"- {one}\n+ {other}"


def same_line(one: str, other: str) -> bool:
    """Return whether two lines differ by times, digests, padding and small differences of numbers only."""
    one, other = (" ".join(DIGEST.sub("DIGEST", TIMES.sub("TIME", line)).split()) for line in (one, other))
    one, other = (re.sub(r"[-─]{3,}", "---", line) for line in (one, other))
    if NUMBER.sub("N", one) != NUMBER.sub("N", other):
        return False
    return all(map(same_number, NUMBER.findall(one), NUMBER.findall(other)))


def same_number(one: str, other: str) -> bool:
    """Return whether two numbers agree to 3 per cent, or to 0.03, or to 2 where they are whole."""
    a, b = (float(text.rstrip(",").replace(",", "")) for text in (one, other))
    return math.isclose(a, b, rel_tol=0.03, abs_tol=2.0 if "." not in one + other else 0.03)


def add_fields(images: Path, folder: Path) -> None:
    """Copy the images and tables of the real fields into a folder."""
    (folder / "atlas_cutouts").mkdir()
    for name in REAL_FIELDS:
        for path in sorted(images.glob(f"{name}-w[123].fits")):
            shutil.copy(path, folder / "atlas_cutouts")
    shutil.copytree(CHECKOUT / "tests" / "data", folder / "tests" / "data")


def main() -> None:
    """Write all examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="run `skyclass demo` too: minutes, and a Chromium")
    parser.add_argument("--fields", type=Path, help="folder of 2010H-w1.fits and the other images of the real fields")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.fields:
            add_fields(options.fields, folder)
        examples = {**EXAMPLES, **(REAL_FIELDS if options.fields else {}), **(DEMO if options.demo else {})}
        for example, commands in examples.items():
            print(example, flush=True)
            (FOLDER / f"{example}.txt").write_text(run_example(commands, folder))
        if options.demo:
            transcript("skyclass report skyclass-demo/classes -o demo.html", folder)
            picture(folder / "demo.html", FIGURES / "report.png")


if __name__ == "__main__":
    main()
