"""Every number that the study quotes from the paper is printed in it, or is derived by a formula from printed ones."""

from __future__ import annotations

import re

import pytest

from benchmarks.paper import published
from benchmarks.paper.cells import PAPER_EFFORT
from benchmarks.paper.published import Derived
from benchmarks.paper.study import PAPER_COUNTS, PRESETS
from benchmarks.paper.tables import document
from skyclass.training.fit.recipe import HALVING_EPOCH, RECIPES
from tests.support.paths import CHECKOUT, SHARED

REFERENCE = SHARED / "iicnet.md"
NUMBER = re.compile(r"\d+(?:,\d{3})+|\d+(?:\.\d+)?")
NAMES = {
    "iicnet": "IICNet",
    "vgg16": "VGG16",
    "googlenet": "GoogleNet",
    "resnet34": "ResNet34",
    "mobilenet": "MobileNet",
    "efficientnetv2": "EfficientNetV2",
    "repvgg": "RepVGG",
}
DERIVED = {name: value for name, value in vars(published).items() if isinstance(value, Derived)}


@pytest.fixture(scope="module")
def printed() -> str:
    """Section 7 of the reference: every number that the paper prints."""
    if not REFERENCE.is_file():
        pytest.skip(f"{REFERENCE} is absent: it lists what the paper prints")
    (section,) = [s for s in re.split(r"^## ", REFERENCE.read_text(), flags=re.M) if s.startswith("7. ")]
    return section


def item(printed: str, title: str) -> str:
    """Return the text from a title such as Table 1 to the next one."""
    (found,) = re.findall(rf"\*\*{title}\*\*(.*?)(?=\*\*(?:Fig|Table)|\n- |\Z)", printed, flags=re.S)
    return str(found)


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def after(text: str, words: str, n: int) -> list[float]:
    """Return the first n numbers after some words."""
    assert words in text
    return numbers(text.split(words, 1)[1])[:n]


def test_table_1(printed: str) -> None:
    text = item(printed, "Table 1")
    assert "order training / test / validation" in text and published.SETS == ("train", "test", "val")
    for name, counts in published.SPLIT.items():
        assert after(text, name, 3) == [counts[s] for s in published.SETS] and tuple(counts) == published.SETS
        assert sum(counts.values()) == published.TOTALS[name] == PAPER_COUNTS[name]
    totals = [published.TOTALS[name] for name in ("galaxy", "quasar", "star")]
    assert after(text, "Totals per class", 3) == totals


def test_table_2(printed: str) -> None:
    text = item(printed, "Table 2")
    assert "precision, recall, specificity, F1, accuracy" in text
    assert published.RATES == ("precision", "recall", "specificity", "f1", "class_accuracy")
    for name, rates in published.IICNET.items():
        assert after(text, name, 5) == list(rates)


def test_table_3_has_costs_and_no_accuracies(printed: str) -> None:
    text = item(printed, "Table 3")
    assert "no accuracies are printed" in text
    found = {name: re.search(rf"{words} ([\d.]+ [GM]), ([\d.]+ M)", text) for name, words in NAMES.items()}
    assert {name: match.groups() for name, match in found.items() if match} == published.COST


def test_table_4(printed: str) -> None:
    text = item(printed, "Table 4")
    assert "galaxy / star / quasar" in text and published.SAMPLE_ORDER == ("galaxy", "star", "quasar")
    for name, probabilities in published.SAMPLES.items():
        assert after(text, f"{name} sample", 3) == list(probabilities)
        assert sum(probabilities) == pytest.approx(1)


def test_figures(printed: str) -> None:
    best = published.BEST_SIZE_ACCURACY, published.BEST_SIZE_PX, published.BEST_SIZE_PX
    assert after(item(printed, "Fig. 12"), "maximum", 3) == list(best)
    above = published.VALIDATION_ABOVE_PERCENT
    assert after(item(printed, "Fig. 13"), "validation accuracy", 1) == [above]
    assert after(item(printed, "Fig. 14"), "AUC above", 1) == [published.AUC_ABOVE]
    validation = item(printed, "Fig. 15")
    assert after(validation, "only IICnet above", 1) == [above] and "three channels slightly above four" in validation
    inputs = item(printed, "Fig. 17")
    assert f"images above {above} %" in inputs and "images + colours about 1 % above images" in inputs
    assert "spectra highest" in inputs and "colours lowest" in inputs
    matrix = item(printed, "Fig. 18")
    assert "columns are true classes, rows predicted" in matrix
    assert numbers(matrix) == [published.MISCLASSIFIED]
    groups = item(printed, "Fig. 19").split("misclassified:")[1]
    assert numbers(groups)[:4] == [*published.GROUPS, published.NO_SOURCE]
    assert numbers(item(printed, "Fig. 20, 21")) == [published.UNSURE, published.UNSURE_BELOW]


def test_the_training(printed: str) -> None:
    text = printed.split("- Training:")[1]
    rate, halving, epochs = published.LEARNING_RATE, published.HALVING_EPOCH, published.EPOCHS
    assert after(text, "learning rate", 3) == [rate, halving, epochs] and published.DEVICE in text
    assert (RECIPES["paper"]["learning_rate"], HALVING_EPOCH, RECIPES["paper"]["epochs"]) == (rate, halving, epochs)
    assert PRESETS["full"].recipe == "paper" and PRESETS["full"].epochs == PRESETS["full"].small_epochs == epochs


@pytest.mark.parametrize("name", DERIVED)
def test_derived_numbers_follow_from_printed_ones(printed: str, name: str) -> None:
    number = DERIVED[name]
    assert re.fullmatch(r"[\d.\s+*/()-]+", number.formula)
    digits = len(str(number.value).partition(".")[2]) if isinstance(number.value, float) else 0
    assert round(eval(number.formula), digits) == number.value
    known = {*numbers(printed), *(other.value for other in DERIVED.values()), 1 / 100}  # "about 1 %"
    assert set(numbers(number.formula)) <= known


def test_no_derived_number_is_printed(printed: str) -> None:
    for number in DERIVED.values():
        assert not {number.value, round(100 * number.value, 2)} & set(numbers(printed))


def test_every_number_in_a_column_of_the_paper_is_printed_or_marked(printed: str) -> None:
    known = set(numbers(printed))
    checked = 0
    for cell in papers_cells(document({}, PRESETS["cpu"])):
        if "(derived" in cell:
            assert any(cell.startswith(words) for words in derived_words())
            continue
        for number in numbers(NAMED.sub("", cell)):
            assert number in known or number / 100 in known, cell
            checked += 1
    assert checked > 80


NAMED = re.compile(r"Tesla V100|100 %|Fig\. 4")
"""Words of a cell with digits that are no results: the device, and the paper's share of its own images."""


def derived_words() -> list[str]:
    shares = [f"{100 * n.value:.1f} (derived: {n.formula})" for n in DERIVED.values()]
    counts = [f"{n.value:,} (derived" for n in DERIVED.values()]
    return shares + counts


def papers_cells(page: str) -> list[str]:
    """Return the cells of the columns and rows of the paper in every table of a page."""
    cells = []
    for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
        head, _, *rows = [line[2:-2].split(" | ") for line in block.splitlines()]
        of_paper = [k for k, name in enumerate(head) if "paper" in name and "share" not in name]
        for row in rows:
            row_of_paper = any(cell.startswith("paper") for cell in row[:2])
            cells += row[1:] if row_of_paper else [row[k] for k in of_paper]
    return cells


def test_the_page_of_the_documentation_quotes_the_paper_alike(printed: str) -> None:
    (table,) = re.findall(
        r"^\| paper \|.*\n(?:^\|.*\n)+", (CHECKOUT / "docs" / "paper-study.md").read_text(), flags=re.M
    )
    cells = [line.split(" | ")[1] for line in table.splitlines() if " | " in line][1:]
    assert len(cells) == 12
    formulas = {n.formula: n for n in DERIVED.values()}
    for cell in cells:
        for value, formula in DERIVATION.findall(cell):
            exact = formulas[formula].value
            assert numbers(value)[0] in (exact, round(100 * exact, 1)), cell
        known = {*numbers(printed), 3, 5, 80}  # sizes in words of the figures
        assert set(numbers(DERIVATION.sub("", cell))) <= known, cell


DERIVATION = re.compile(r"([\d.,]+)(?: %| \w+ images)? \(derived: ([^)]*)\)")


def test_the_effort_of_the_paper_is_marked(printed: str) -> None:
    assert float(PAPER_EFFORT[1]) in numbers(printed) and "derived" in PAPER_EFFORT[2]
