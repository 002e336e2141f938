"""What the methods of an opened catalogue answer on a few rows, and how it looks in a terminal and a notebook."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from skyclass.catalog.export import to_pandas
from skyclass.catalog.query import ClassCatalog, open_catalog
from skyclass.errors import ConfigError
from tests.support.small_catalog import catalogue_table, small_catalog

ROWS = catalogue_table(
    {"source_id": "a", "ra": 10.0, "dec": 0.0, "class": "star", "p_star": 0.75, "cntr": 2**53 + 1},
    {"source_id": "b", "ra": 10.5, "dec": 0.0, "class": "quasar", "p_star": 0.125},
    {"source_id": "c", "ra": 11.0, "dec": 0.0},
    {"source_id": "d", "ra": 200.0, "dec": 0.0, "class": "star", "p_star": 0.5},
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ClassCatalog:
    return small_catalog(tmp_path_factory.mktemp("run"), ROWS)


def test_counts_of_selections_hold_every_class_of_the_catalogue(catalog: ClassCatalog) -> None:
    cone, stars = catalog.cone(10, 0, "40arcmin"), catalog.where("class = 'star'")
    assert [chosen.count() for chosen in (catalog, cone, stars, cone.where("class = 'star'"))] == [4, 2, 2, 1]
    assert catalog.class_counts() == {"galaxy": 0, "quasar": 1, "star": 2, "unclassified": 1}
    assert cone.class_counts() == {"galaxy": 0, "quasar": 1, "star": 1, "unclassified": 0}
    unclassified = catalog.where("p_star IS NULL").class_counts()
    assert unclassified == {"galaxy": 0, "quasar": 0, "star": 0, "unclassified": 1}


def test_the_whole_is_counted_from_the_manifest(tmp_path: Path) -> None:
    whole = small_catalog(tmp_path, ROWS)
    for record in whole.manifest.files:
        (whole.root / record.path).unlink()
    counts = whole.class_counts()
    assert (whole.count(), counts["star"]) == (4, 2)
    counts["star"] = 9
    assert whole.class_counts()["star"] == 2, "a copy"


def test_columns_are_given_as_a_list_or_as_one_name(catalog: ClassCatalog) -> None:
    assert catalog.select("ra").to_arrow().column_names == ["ra"]
    assert catalog.select(("ra", "class")).to_arrow().column_names == ["ra", "class"]
    assert catalog.select("ra").select(["dec"]).to_arrow().column_names == ["dec"]
    for wrong, said in (("nope", "unknown column ['nope']"), (["ra", "ra"], "columns ['ra', 'ra'] are none or")):
        with pytest.raises(ConfigError) as caught:
            catalog.select(wrong)
        assert str(caught.value).startswith(said)
    with pytest.raises(ConfigError) as caught:
        catalog.select("ra,class")
    assert str(caught.value) == """columns is 'ra,class': it must be a list of names, such as ["ra", "class"]"""


def test_a_wrong_condition_is_told_at_once_and_a_wrong_class_too(catalog: ClassCatalog) -> None:
    with pytest.raises(ConfigError, match="where takes a condition"):
        catalog.where("p_star")
    for ask in (catalog.where, lambda text: catalog.sql(f"SELECT 1 FROM classes WHERE {text}")):
        with pytest.raises(ConfigError, match="no source has class 'qso'"):
            ask("class = 'qso'")


def test_data_frames_have_floats_of_numpy_and_everything_else_of_arrow(catalog: ClassCatalog) -> None:
    frame = catalog.select(["source_id", "cntr", "ra", "p_star"]).to_pandas().sort_values("source_id")
    arrow = [pd.ArrowDtype(kind) for kind in (pa.string(), pa.int64())]
    assert frame.dtypes.tolist() == [*arrow, np.dtype("float64"), np.dtype("float32")]
    assert frame["cntr"].iloc[0] == 2**53 + 1 and frame["cntr"].isna().tolist() == [False, True, True, True]
    assert frame["p_star"].isna().tolist() == [False, False, True, False]
    assert to_pandas(pa.table({"t": [True, None]}))["t"].dtype == pd.ArrowDtype(pa.bool_())
    answer = catalog.cone(10, 0, 1).sql("SELECT max(p_star) AS p, count(*) AS n FROM classes")
    assert answer.to_dict("records") == [{"p": 0.75, "n": 3}]


def test_an_export_keeps_an_existing_file_unless_told(catalog: ClassCatalog, tmp_path: Path) -> None:
    path, chosen = tmp_path / "out.csv", catalog.where("p_star > 0.6").select(["source_id", "p_star"])
    assert chosen.export(path) == path and path.read_text() == '"source_id","p_star"\n"a",0.75\n'
    with pytest.raises(ConfigError, match="out.csv exists: give another name"):
        catalog.export(path)
    assert catalog.select("source_id").export(str(path), overwrite=True) == path
    assert len(path.read_text().splitlines()) == 5


def test_a_selection_shows_its_size_and_what_narrows_it(catalog: ClassCatalog) -> None:
    size = "4 rows in 2 files"
    assert repr(catalog) == f"<ClassCatalog {catalog.root}: {size}>"
    narrow = catalog.cone(10, 0, 0.5).cone(11, 0, 1).where("flags = 0").where("p_star < 1").select(["ra", "dec"])
    cones = [
        f"region {{kind = cone, ra = {ra}, dec = 0.0, radius = {radius}deg}}" for ra, radius in ((10.0, 0.5), (11.0, 1))
    ]
    words = [size, "; ".join(cones), "(flags = 0) AND (p_star < 1)", "ra, dec"]
    assert repr(narrow) == f"<ClassCatalog {catalog.root}: {', '.join(words)}>"

    def rows(**values: str) -> str:
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in values.items())
        return f"<table><caption>ClassCatalog</caption>{cells}</table>"

    last = {"model": "trained on simulated data: 4 mock tiles", "run": "r1"}
    assert catalog._repr_html_() == rows(folder=str(catalog.root), size=size, **last)
    narrowing = {"regions": words[1], "conditions": "(flags = 0) AND (p_star &lt; 1)", "columns": "ra, dec"}
    assert narrow._repr_html_() == rows(folder=str(catalog.root), size=size, **narrowing, **last)


def test_a_catalogue_opens_from_its_run_and_its_folder(catalog: ClassCatalog) -> None:
    assert open_catalog(catalog.root) == open_catalog(catalog.root.parent.parent) == catalog
    assert catalog.root.name == "000001" and catalog.manifest.rows == 4
