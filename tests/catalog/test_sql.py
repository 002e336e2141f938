"""Conditions and queries as text: which are let pass, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from skyclass.catalog import sql
from skyclass.catalog.sql import check_condition, check_query, has_subquery, translate_duckdb_errors, unreadable
from skyclass.errors import ConfigError, StoreError
from skyclass.schema import class_schema
from tests.support.class_rows import CLASS_SCHEMA
from tests.support.small_catalog import catalogue_table, small_catalog

COLUMNS = ", ".join(CLASS_SCHEMA.names)


CONDITIONS = [
    "flags = 0",
    "flags = 0 -- clean",
    "class = 'star' OR 'galaxy' = CLASS",
    "class IN ('star', 'quasar')",
    "class IN ['star']",
    "classes.class <> CAST('star' AS VARCHAR)",
    "class IS NOT DISTINCT FROM NULL",
    "class LIKE 'qso%' OR class > 'qso' OR upper(class) = 'QSO'",
    "designation = 'qso' AND coadd_id IN ('unclassified') AND contains(source_id, 'qso')",
    "source_id IN ['qso']",
    "CASE flags WHEN 0 THEN true ELSE false END",
    "class IS NULL",
]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_these_are_conditions(condition: str) -> None:
    check_condition(condition, CLASS_SCHEMA)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_these_are_conditions_of_a_query_too(condition: str) -> None:
    check_query(f"SELECT * FROM classes WHERE {condition}", CLASS_SCHEMA)


@pytest.mark.parametrize(
    "condition",
    [
        "class = 'qso'",
        "'qso' = Class",
        "classes.class != 'qso'",
        "class IN ('star', 'qso')",
        "class IN ['star', 'qso']",
        "list_contains(['star'], class) AND contains(['qso'], class)",
        "class = CAST('qso' AS VARCHAR)",
        "class IS NOT DISTINCT FROM 'qso'",
        "flags = 0 AND (p_star > 0.5 OR NOT class = 'qso')",
        "CASE class WHEN 'qso' THEN true ELSE false END",
    ],
)
def test_a_class_that_no_source_has_is_named(condition: str) -> None:
    message = "no source has class 'qso': the classes are galaxy, quasar, star"
    for check, text in ((check_condition, condition), (check_query, f"SELECT 1 FROM classes WHERE {condition}")):
        with pytest.raises(ConfigError) as caught:
            check(text, CLASS_SCHEMA)
        assert str(caught.value) == message


def test_unclassified_is_no_class() -> None:
    with pytest.raises(ConfigError) as caught:
        check_condition("class = 'unclassified'", class_schema(("galaxy", "star")))
    words = "no source has class 'unclassified': the classes are galaxy, star (a source without a class: class IS NULL)"
    assert str(caught.value) == words


def test_a_query_that_names_a_column_class_itself_may_compare_it_with_any_text() -> None:
    for alias in ("class", "CLASS"):
        check_query(f"SELECT 1 FROM (SELECT 'x' AS {alias} FROM classes) WHERE class = 'qso'", CLASS_SCHEMA)
    with pytest.raises(ConfigError, match="no source has class 'qso'"):
        check_query("SELECT source_id AS id FROM classes WHERE class = 'qso'", CLASS_SCHEMA)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("p_star", "where takes a condition, such as p_quasar > 0.9; 'p_star' gives float"),
        ("1=1; SELECT 2", "where takes one condition, and '1=1; SELECT 2' holds 2 statements"),
        ("\udcff = 1", r"'\udcff = 1' is no UTF-8 text, and SQL must be"),
        ("", "where takes a condition, such as p_quasar > 0.9; '' is empty"),
        (" ", "where takes a condition, such as p_quasar > 0.9; ' ' is empty"),
        ("1=1) OR (1=1", "cannot answer '1=1) OR (1=1': Parser Error: syntax error at or near"),
    ],
)
def test_these_are_no_conditions(condition: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_condition(condition, CLASS_SCHEMA)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "sql takes one SELECT, and '' holds 0 statements"),
        ("SELECT 1; SELECT 2", "sql takes one SELECT, and 'SELECT 1; SELECT 2' holds 2 statements"),
        ("DROP TABLE t", "sql takes one SELECT, not 'DROP TABLE t': catalogues are read, never changed"),
        ("SELECT '\udcff'", r'"SELECT ' + r"'\udcff'" + r'" is no UTF-8 text, and SQL must be'),
        ("SELECT", "cannot answer 'SELECT': Parser Error: SELECT clause without selection list"),
    ],
)
def test_these_are_no_queries(query: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_query(query, CLASS_SCHEMA)
    assert str(caught.value).startswith(message)


def test_a_misspelt_column_gets_the_most_similar_one() -> None:
    cases = {"p_quaser": "p_quasar", "P_STR": "p_star", "w2mpr": "w2mpro"}
    for wrong, right in cases.items():
        with pytest.raises(ConfigError) as caught:
            check_condition(f"{wrong} > 0.5", CLASS_SCHEMA)
        reason = f'Binder Error: Referenced column "{wrong}" not found in FROM clause'
        told = f"cannot answer '{wrong} > 0.5': {reason} (did you mean {right}?). Columns: {COLUMNS}"
        assert str(caught.value) == told
    with pytest.raises(ConfigError) as caught:
        check_condition("nothing_like_it > 0.5", CLASS_SCHEMA)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ('class == "quasar"', """'class == "quasar"': # "quasar" not found in FROM clause. @: class = 'quasar'"""),
        ("class = quasar", """'class = quasar': # "quasar" not found in FROM clause. @: class = 'quasar'"""),
        ("class IN (Quasar)", """'class IN (Quasar)': # "Quasar" not found in FROM clause. @: class = 'quasar'"""),
        (
            'designation = "J1"',
            """'designation = "J1"': # "J1" not found in FROM clause. Double quotes name a column. @: 'J1'""",
        ),
        (
            '"p_quaser" > 0.5',
            """'"p_quaser" > 0.5': # "p_quaser" not found in FROM clause (did you mean p_quasar?). """
            "Double quotes name a column. @: 'p_quaser'",
        ),
    ],
)
def test_text_without_single_quotes_is_answered_with_them(condition: str, told: str) -> None:
    full = told.replace("#", "Binder Error: Referenced column").replace("@", "Text is in single quotes")
    with pytest.raises(ConfigError) as caught:
        check_condition(condition, CLASS_SCHEMA)
    assert str(caught.value) == f"cannot answer {full}"


def test_the_quotes_of_text_are_told_in_a_query_too(tmp_path: Path) -> None:
    catalogue = small_catalog(tmp_path, catalogue_table({"source_id": "a", "class": "star"}))
    with pytest.raises(ConfigError, match="Text is in single quotes: class = 'star'$"):
        catalogue.sql('SELECT 1 FROM classes WHERE class = "star"')


def test_columns_are_listed_only_where_one_is_unknown(tmp_path: Path) -> None:
    catalogue = small_catalog(tmp_path, catalogue_table({"source_id": "a"}))
    for unknown in ("c.wide FROM classes AS c", "* EXCLUDE (wide) FROM classes", "wide FROM classes"):
        with pytest.raises(ConfigError) as caught:
            catalogue.sql(f"SELECT {unknown}")
        assert str(caught.value).endswith(f". Columns: {COLUMNS}")
    for other in ("read_csv('x.csv')", "no_function(ra)", "ra IN (SELECT ra FROM 'x.csv')", "p_star >"):
        with pytest.raises(ConfigError) as caught:
            catalogue.where(other)
        assert str(caught.value).startswith(f"cannot answer {other!r}: ") and "olumns" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        catalogue.sql("SELECT ra FROM classes GROUP BY dec")
    assert 'column "ra" must appear in the GROUP BY clause' in str(caught.value)
    assert "Columns:" not in str(caught.value)


def test_conditions_that_ask_about_other_rows_are_told_apart() -> None:
    assert has_subquery("w1mpro < (SELECT avg(w1mpro) FROM classes)")
    assert has_subquery("flags = 0 AND NOT EXISTS (FROM classes AS c WHERE c.flags = classes.flags)")
    assert not has_subquery("w1mpro < 15 AND class = 'SUBQUERY'")


def test_the_first_line_of_an_error_decides_what_it_is(tmp_path: Path) -> None:
    inside, ask = f"{tmp_path}/dataset/a.parquet", "SELECT 1"
    verify = "run 'skyclass verify', then publish the run again"
    gone = f"a file of the catalogue is gone: {verify}"
    damaged = f"a file of the catalogue is damaged (No magic bytes in {inside}): {verify}"
    cases: list[tuple[str, str, Path | None, type[Exception], str]] = [
        ("IO Error: No files found that match", ask, tmp_path, StoreError, gone),
        ("IO Error: No files found.", ask, None, ConfigError, f"cannot answer '{ask}': IO Error: No files found"),
        (f"No magic bytes in {inside}!", ask, tmp_path, StoreError, damaged),
        (
            f"Bad {inside}",
            f"read('{inside}')",
            tmp_path,
            ConfigError,
            f"cannot answer \"read('{inside}')\": Bad {inside}",
        ),
        (
            "  Parser Error: no!\nLINE 1",
            ask,
            tmp_path,
            ConfigError,
            f"cannot answer '{ask}': Parser Error: no",
        ),
        (f"Error\n{inside}", ask, tmp_path, ConfigError, f"cannot answer '{ask}': Error"),
        (f"Bad {inside}", ask, None, ConfigError, f"cannot answer '{ask}': Bad {inside}"),
    ]
    for message, question, root, kind, told in cases:
        with pytest.raises(kind) as caught, translate_duckdb_errors(question, CLASS_SCHEMA, root):
            raise duckdb.Error(message)
        assert type(caught.value) is kind and str(caught.value) == told
        assert isinstance(caught.value.__cause__, duckdb.Error)
    with translate_duckdb_errors(ask, CLASS_SCHEMA, tmp_path):
        pass


def test_a_publication_that_was_removed_is_not_called_damaged(tmp_path: Path) -> None:
    assert str(unreadable(tmp_path, "it is bad")).startswith("it is bad: run 'skyclass verify', then publish")
    gone = f"the publication {tmp_path}/x is gone: 'skyclass gc' removed it; open the catalogue again"
    assert str(unreadable(tmp_path / "x", "it is bad")) == gone


def test_the_tree_of_a_query_has_at_most_500_levels() -> None:
    def nested(levels: int) -> Any:
        tree: Any = {}
        for level in range(levels - 1):
            tree = {"a": tree, "b": 1} if level % 2 else [tree, "text"]
        return tree

    assert len(list(sql._tree_nodes(nested(500)))) == 250
    with pytest.raises(RecursionError):
        list(sql._tree_nodes(nested(501)))


def test_a_condition_that_is_nested_too_deeply_is_refused() -> None:
    deep = "flags = 0 AND " + "(NOT " * 400 + "flags = 1" + ")" * 400
    with pytest.raises(ConfigError, match=r"^'SELECT 1 FROM classes WHERE \(flags = 0 AND .*'... is nested too deeply"):
        check_condition(deep, CLASS_SCHEMA)
