"""Figures and pages from plain dicts and from a published catalogue: whole, self-contained, honest about simulation."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skyclass.catalog.query import open_catalog
from skyclass.errors import ConfigError, NotPublished, StoreError
from skyclass.report import EVALUATION_FIGURES, evaluation_figures, markdown, write_html
from skyclass.report.catalogue import catalogue_tables
from skyclass.report.catalogue_counts import catalogue_statistics
from skyclass.report.catalogue_plots import CATALOGUE_FIGURES, all_sky_figure, catalogue_figures
from skyclass.report.drawing import png
from skyclass.report.evaluation import evaluation_tables, selection_csv
from skyclass.report.evaluation_plots import scores_figure
from skyclass.report.evaluation_results import CLASS_METRIC_LABELS, simulation_warning
from skyclass.report.page import Table, render
from skyclass.run.finish import publish_run
from skyclass.types import DEFAULT_CLASSES, Flag
from tests.support.class_rows import make_run

pytestmark = pytest.mark.integration

pytest.importorskip("matplotlib", reason="matplotlib is in the extra `train`")

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects what a page refers to, its text, and tags left open."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def triple(value: float) -> list[float]:
    return [value, value - 0.02, value + 0.02]


def contestant(name: str, seed: int, **more: Any) -> dict[str, Any]:
    """Return one entry of an evaluation, made up."""
    rng = np.random.default_rng(seed)
    value = float(rng.uniform(0.7, 0.95))
    by_class = dict.fromkeys(DEFAULT_CLASSES, value)
    overall = ("accuracy", "balanced_accuracy", *(f"macro_{n}" for n in CLASS_METRIC_LABELS))
    bins = [
        {"low": None, "high": 3, "n": 0, "counts": dict.fromkeys(DEFAULT_CLASSES, 0)}
        | dict.fromkeys(("accuracy", "balanced_accuracy", "recall")),
        {"low": 3, "high": None, "n": 30, "counts": dict.fromkeys(DEFAULT_CLASSES, 10)}
        | {n: triple(value) for n in ("accuracy", "balanced_accuracy")}
        | {"recall": {"galaxy": triple(value), "quasar": [None] * 3, "star": triple(value)}},
    ]
    names = [n for n in overall if n != "macro_auc"] if name == "colour cuts" else overall
    rates = [n for n in CLASS_METRIC_LABELS if n in more or n != "auc" or name != "colour cuts"]
    found = {
        "name": name,
        "n": 30,
        "classes": list(DEFAULT_CLASSES),
        "confusion": rng.integers(0, 20, (3, 3)).tolist(),
        **dict.fromkeys(names, value),
        **dict.fromkeys(rates, by_class),
        "intervals": {n: triple(value)[1:] for n in names}
        | {n: {k: triple(value)[1:] for k in DEFAULT_CLASSES} for n in rates},
        "precision_at_sky": {
            "shares": {"galaxy": 0.4975, "quasar": 0.005, "star": 0.4975},
            "precision": {"galaxy": triple(0.9), "quasar": triple(0.223), "star": [None] * 3},
        },
        "strata": {"w1snr": {"label": "W1 S/N", "unknown": 4, "bins": bins}},
        "natural": [
            {
                "w1": [15.0, 15.5],
                "abs_b_deg": [45.0, 60.0],
                "n": dict.fromkeys(DEFAULT_CLASSES, 40),
                "shares": {"galaxy": 0.6, "quasar": 0.02, "star": 0.38},
                "purity": dict.fromkeys(DEFAULT_CLASSES, [0.5, 0.4, 0.6]),
                "completeness": dict.fromkeys(DEFAULT_CLASSES, [0.9, 0.85, 0.95]),
            }
        ],
        "selection": [{"class": "galaxy", "w1_low": 15.0, "n": 40, "completeness": 0.9}],
    }
    return found | more


def model(name: str, seed: int, simulated: bool = True) -> dict[str, Any]:
    given = [
        {"low": i / 15, "high": (i + 1) / 15, "n": i, "confidence": (i + 0.5) / 15, "share": i / 15} for i in range(15)
    ]
    given[0] |= {"confidence": None, "share": None}
    curve = {"fpr": [0.0, 0.1, 1.0], "tpr": [0.0, 0.8, 1.0], "threshold": [1.0, 0.5, 0.0]}
    more = {n: 0.1 for n in ("ece", "ece_floor", "classwise_ece", "nll", "brier")}
    found = contestant(name, seed, **more) | {
        "roc": {"galaxy": curve, "quasar": None, "star": curve},
        "reliability": dict.fromkeys(("given", *DEFAULT_CLASSES), given),
        "model_id": f"{name}-0123456789ab",
        "network": "iicnet",
        "training": {"simulated": simulated, "label": "a <b>label</b>"},
        "simulated": simulated,
        "log": [{"epoch": i, "loss": 1 / i, "val_loss": 1.1 / i, "val_balanced_accuracy": 0.5} for i in (1, 2, 3)],
    }
    found["intervals"] |= {n: [0.05, 0.15] for n in more if n != "ece_floor"}
    return found


def results(simulated: bool = True) -> dict[str, Any]:
    """Return an evaluation of two models, made up."""
    pair = {"a": "one", "b": "two", "numbers": {"accuracy": [0.1, 0.05, 0.15], "ece": [0.01, -0.02, 0.03]}}
    return {
        "schema": "skyclass evaluation 1",
        "skyclass": "0.1.0",
        "split": "test",
        "n": 30,
        "dataset": {"path": "", "counts": dict.fromkeys(DEFAULT_CLASSES, 10), "provenance": {"simulated": simulated}},
        "simulated_data": simulated,
        "bootstrap": {"draws": 100, "seed": 0, "level": 0.95},
        "caveats": ["Not the purity of a catalogue."],
        "models": [model("one", 1, simulated), model("two", 2, simulated)],
        "colour_cuts": contestant("colour cuts", 3),
        "differences": [pair],
    }


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return {name: png(figure) for name, figure in evaluation_figures(results()).items()}


def test_every_figure_of_an_evaluation_is_drawn(pictures: dict[str, bytes]) -> None:
    assert list(pictures) == list(EVALUATION_FIGURES)
    for name, data in pictures.items():
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(PNG) and width > 400 and height > 300, name


def test_figures_say_what_is_simulated() -> None:
    made = results()
    title = evaluation_figures(made)["scores"].get_suptitle()
    assert "SIMULATED data" in title
    made["simulated_data"] = False
    assert "model trained on a SIMULATED sky" in scores_figure(made["models"], simulation_warning(made)).get_suptitle()
    real = results(simulated=False)
    assert simulation_warning(real) == "" and "SIMULATED" not in markdown(real)


def test_the_tables_of_an_evaluation() -> None:
    tables = {table.title: table for table in evaluation_tables(results())}
    assert list(tables)[:2] == ["Overall", "By class: one"]
    assert tables["Overall"].columns == ("metric", "one", "two", "colour cuts")
    rows = {row[0]: row[1:] for row in tables["Overall"].rows}
    assert rows["ECE (15 bins)"] == ("0.1000 [0.0500, 0.1500]", "0.1000 [0.0500, 0.1500]", "-")
    assert tables["By class: one"].rows[-1][0] == "overall"
    assert tables["Differences"].rows[0] == (
        "two - one", "+0.1000* [+0.0500, +0.1500]", "+0.0100 [-0.0200, +0.0300]",
    )  # fmt: skip
    assert "0.5 % quasar" in tables["Precision at assumed class shares"].note
    precision = tables["Precision at assumed class shares"].rows[0][1:]
    assert precision == ("0.9000 [0.8800, 0.9200]", "0.2230 [0.2030, 0.2430]", "-")
    empty, full = tables["Balanced accuracy by W1 S/N"].rows
    assert empty == ("< 3", "0", "0", "0", "0", "-", "-", "-") and full[0] == ">= 3"
    assert "4 rows have no value" in tables["Balanced accuracy by W1 S/N"].note
    natural = tables["Purity and recall at published class shares by W1 and |b|: one"]
    assert natural.rows[0][:5] == ("15 to 15.5", "45 to 60", "60.0 %", "2.0 %", "38.0 %")
    assert natural.rows[0][5:7] == ("0.5000 [0.4000, 0.6000]", "0.9000 [0.8500, 0.9500]")
    lines = selection_csv(results()).splitlines()
    assert lines[:2] == ["model,class,w1_low,n,completeness", "one,galaxy,15.0,40,0.9"] and len(lines) == 4
    text = markdown(results(), ["scores"])
    assert all(row.count("|") == 5 for row in re.findall(r"(?<=## Overall\n\n)(?:\|.*\n)+", text)[0].splitlines())
    assert "(scores.png)" in text and "SIMULATED" in text.splitlines()[0]


def test_one_page_holds_an_evaluation(pictures: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(results()))
    for name, data in pictures.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    path = write_html(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path.read_text())
    assert page.open == [] and len(page.links) == len(pictures)
    assert all(link.startswith("data:image/png;base64,") for link in page.links), "nothing from outside"
    assert "SIMULATED data: not a result on the real sky" in page.words
    assert "a <b>label</b>" in page.words and "<b>label" not in path.read_text(), "words of others are escaped"
    assert "Not the purity of a catalogue." in page.words
    assert write_html(tmp_path, tmp_path / "again.html").read_text() == path.read_text()


def test_html_escapes_values_and_markdown_does_not() -> None:
    table = Table("<i>", ("x|y", "<n>"), (("a & b|c", "1"), ("<td>", "-")), "note <b>")
    fields = {"title": "T & <T>", "facts": ["<fact>"], "caveats": ["<caveat>"], "tables": [table]}
    html = render("page.html", **fields, warning="", pictures={'"<picture>"': b"\x00"}, provenance='{"<k>": "&"}')
    page = Page(html)
    assert page.open == [] and page.links == ["data:image/png;base64,AA=="]
    for text in ("T & <T>", "<fact>", "<caveat>", "<i>", "<n>", "a & b|c", "<td>", "note <b>", '{"<k>": "&"}'):
        assert text in page.words
    assert '<td class="text">&lt;td&gt;</td><td>-</td>' in html, "only columns of text are aligned to the left"
    text = render("evaluation.md", **fields, figures={"scores": "S <1>"})
    assert text == (
        "# T & <T>\n\n- **<caveat>**\n\n- <fact>\n\n## <i>\n\n| x\\|y | <n> |\n| --- | --- |\n"
        "| a & b\\|c | 1 |\n| <td> | - |\n\nnote <b>\n\n![S <1>](scores.png)\n"
    )


@pytest.mark.parametrize("name", ["page.pdf", "page", "html", "page.html.gz"])
def test_a_page_of_another_ending_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(results()))
    with pytest.raises(ConfigError) as caught:
        write_html(tmp_path, tmp_path / name)
    assert str(caught.value) == f"a report is an HTML page, and {name!r} is not: end it in .html or .htm"
    assert not (tmp_path / name).exists()
    page = write_html(tmp_path, tmp_path / "page.HTM")
    assert page.read_text().lstrip().startswith("<!")


def test_the_input_of_a_report_is_checked_before_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    taken = Path("report.html")
    taken.write_text("mine")
    Path("mine.csv").write_text("ra,dec\n1,2\n")
    for path in ("mine.csv", "nothing"):
        for page in (None, "page.pdf"):
            with pytest.raises(NotPublished):
                write_html(path, page)
    Path("evaluation.json").write_text('{"schema": "skyclass evaluation 0"}')
    with pytest.raises(ConfigError, match="no evaluation of this version"):
        write_html(".")
    Path("evaluation.json").write_text(json.dumps(results()))
    with pytest.raises(ConfigError, match=r"^report\.html exists: give another name"):
        write_html(".")
    assert taken.read_text() == "mine"


def test_another_versions_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"schema": "skyclass evaluation 0"}')
    with pytest.raises(ConfigError, match="no evaluation of this version"):
        write_html(tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        write_html(tmp_path)
    with pytest.raises(StoreError):
        write_html(tmp_path / "nothing")


# --- catalogues ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    tiles = (("1500p015_ac51", 1500, 150.0, 1.5), ("1515p015_ac51", 800, 151.5, 1.5))
    folder, rows = make_run(tmp_path_factory.mktemp("catalogue") / "run", tiles)
    publish_run(folder)
    return folder.path, rows


def test_statistics_of_a_catalogue_count_every_row(catalogue: tuple[Path, pa.Table]) -> None:
    path, table = catalogue
    rows = table.to_pandas()
    found = catalogue_statistics(open_catalog(path))
    assert found["rows"] == len(rows) == 2300 and found["simulated"]
    assert {r["class"]: r["n"] for r in found["summary"]} == found["counts"]
    quasars = rows[rows["class"] == "quasar"]
    highest = rows[[f"p_{name}" for name in DEFAULT_CLASSES]].max(axis=1)
    entry = next(r for r in found["summary"] if r["class"] == "quasar")
    assert entry["confident"] == (highest[quasars.index] > 0.9).sum()
    assert entry["confidence"] == pytest.approx(highest[quasars.index].mean(), abs=1e-5)
    assert sum(r["n"] for r in found["magnitudes"]) == 2300
    bright = next(r for r in found["magnitudes"] if r["class"] == "star" and r["low"] == 14.5)
    assert bright["n"] == ((rows["class"] == "star") & rows["w1mpro"].between(14.5, 15, inclusive="left")).sum()
    classified = rows["class"].notna()
    assert all(sum(r["n"] for r in part) == classified.sum() for part in found["probabilities"].values())
    x, y = rows["w2mpro"] - rows["w3mpro"], rows["w1mpro"] - rows["w2mpro"]
    inside = classified & (x >= -1.5) & (x < 6) & (y >= -1) & (y < 2.5)
    assert sum(r["n"] for r in found["colours"]) == pytest.approx(inside.sum(), abs=2)
    assert found["flags"]["NO_IMAGE"] == (rows["flags"] & 128 > 0).sum() and found["flags"]["EDGE"] == 0
    sky = found["sky"]
    assert sky["kind"] == "field" and sum(r["n"] for r in sky["cells"]) == 2300
    assert (sky["ra"], sky["dec"]) == pytest.approx((rows["ra"].mean(), rows["dec"].mean()), abs=0.01)
    assert max(abs(r["x"]) for r in sky["cells"]) <= 65


def test_the_middle_of_a_field_across_ra_zero_and_of_the_whole_sky(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "zero", (("0000p000_ac51", 400, 0.0, 60.0),))
    publish_run(folder)
    sky = catalogue_statistics(open_catalog(folder.path))["sky"]
    assert sky["kind"] == "field" and min(sky["ra"], 360 - sky["ra"]) < 0.2 and sky["cell_deg"] < 1
    spread = tuple((f"{i:04d}p000_ac51", 60, 36.0 * i, -70.0 + 14 * i) for i in range(10))
    folder, _ = make_run(tmp_path / "wide", spread)
    publish_run(folder)
    wide = catalogue_statistics(open_catalog(folder.path))["sky"]
    assert wide["kind"] == "all" and sum(r["n"] for r in wide["cells"]) == 600
    assert png(all_sky_figure(wide, DEFAULT_CLASSES)).startswith(PNG)


def test_one_page_holds_a_catalogue(catalogue: tuple[Path, pa.Table], tmp_path: Path) -> None:
    path, _ = catalogue
    page = Page(write_html(path, tmp_path / "report.html").read_text())
    assert page.open == [] and len(page.links) == len(CATALOGUE_FIGURES)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "SIMULATED" in page.words and "unclassified" in page.words and "2,300 sources" in page.words
    assert all(str(flag.name) in page.words for flag in Flag)


def test_a_catalogue_where_nothing_has_a_class_is_drawn_too(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", (("1500p015_ac51", 1, 150.0, 1.5),))
    publish_run(folder)
    classes = open_catalog(folder.path).where("class IS NULL AND class IS NOT NULL")
    statistics = catalogue_statistics(classes)
    assert statistics["rows"] == 0 and catalogue_tables(statistics)[0].rows == ()
    assert all(png(figure).startswith(PNG) for figure in catalogue_figures(statistics).values())


def test_a_report_needs_neither_torch_nor_training_and_loads_jinja_late(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(results()))
    code = (
        "import sys; from skyclass.report import write_html; early = 'jinja2' in sys.modules; write_html(sys.argv[1]);"
        "print(early, [m for m in ('torch', 'skyclass.training', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"


def test_without_matplotlib_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'skyclass\[train\]'"):
        scores_figure(results()["models"])
