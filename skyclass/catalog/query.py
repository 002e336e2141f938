"""Queries of a published class catalogue: cone, region, where, select, sql, export.

A `ClassCatalog` is lazy: each method that narrows it returns another one and reads nothing. The region's HEALPix cover
chooses files from the manifest before any is opened, and row groups by their range of `_healpix_29`; exact distances
choose rows. A cone of 1 arcmin reads less than half a megabyte, however large the catalogue is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..errors import ConfigError
from ..schema import UNCLASSIFIED, listed_names
from ..sky.regions import Cone, Region, region_text
from ..text import counted, html_table, one_or_many
from .duckdb import connect
from .export import export_pieces, to_pandas
from .manifest import Manifest, read_manifest
from .selection import Selection
from .sql import check_condition, check_query, similar_column, translate_duckdb_errors
from .versions import find_catalog


@dataclass(frozen=True)
class ClassCatalog:
    """A published class catalogue, or a selection from it; `open_catalog` makes it.

    A selection holds the rows that lie in every region and fulfil every condition. Nothing is read before a method
    such as `to_pandas` asks for rows.

    Parameters
    ----------
    selection : Selection
        Publication, regions, conditions and columns.

    Examples
    --------
    >>> import skyclass as sc
    >>> classes = sc.open_catalog("classes")
    >>> bright = classes.where("w1mpro < 16").select(["source_id", "class"])
    >>> bright.count() <= classes.count()
    True
    """

    selection: Selection

    @property
    def root(self) -> Path:
        """Folder of the publication."""
        return self.selection.root

    @property
    def manifest(self) -> Manifest:
        """Files, rows and classes of the whole catalogue."""
        return self.selection.manifest

    # --- methods that narrow ---

    def cone(self, ra: float, dec: float, radius: str | float) -> ClassCatalog:
        """Return the sources in a circle on the sky.

        Parameters
        ----------
        ra, dec : float
            Centre, ICRS, in degrees.
        radius : str or float
            Radius in degrees, or with a unit, such as "30arcmin".

        Returns
        -------
        ClassCatalog
            The narrower selection.

        Raises
        ------
        ConfigError
            A value is no number or out of range.

        Examples
        --------
        >>> import skyclass as sc
        >>> sc.open_catalog("classes").cone(150.1, 2.2, "1arcsec").count()
        0
        """
        return self.region(Cone(ra, dec, radius))

    def region(self, region: Region) -> ClassCatalog:
        """Return the sources inside a region; a second region leaves those inside both.

        Parameters
        ----------
        region : Cone, Box, Polygon, Pixels or Moc
            Part of the sky.

        Returns
        -------
        ClassCatalog
            The narrower selection.

        Examples
        --------
        >>> import skyclass as sc
        >>> classes = sc.open_catalog("classes")
        >>> classes.region(sc.Box(0, 360, -90, 90)).count() == classes.count()
        True
        """
        return self._narrowed(regions=(*self.selection.regions, region))

    def where(self, expression: str) -> ClassCatalog:
        """Return the sources for which a SQL condition is true.

        Parameters
        ----------
        expression : str
            Condition on the columns, such as "p_quasar > 0.9 AND flags = 0", in DuckDB's SQL. A sub-query sees every
            row of the catalogue as `classes`, whatever the regions and other conditions are.

        Returns
        -------
        ClassCatalog
            The narrower selection.

        Raises
        ------
        ConfigError
            The text is not one condition on the columns, or names a class that the catalogue does not have.

        Examples
        --------
        >>> import skyclass as sc
        >>> classes = sc.open_catalog("classes")
        >>> classes.where("class = 'star'").count() == classes.class_counts()["star"]
        True
        """
        check_condition(expression, self.manifest.schema)
        return self._narrowed(predicates=(*self.selection.predicates, expression))

    def select(self, columns: Sequence[str]) -> ClassCatalog:
        """Return the selection with some columns only.

        Parameters
        ----------
        columns : sequence of str
            Names of the columns, in the order of the answer; a single name needs no list.

        Returns
        -------
        ClassCatalog
            The selection with these columns.

        Raises
        ------
        ConfigError
            A name is unknown or repeated, or there is none.

        Examples
        --------
        >>> import skyclass as sc
        >>> sc.open_catalog("classes").select(["source_id", "class"]).to_arrow().column_names
        ['source_id', 'class']
        """
        is_name = isinstance(columns, str) and "," not in columns
        names = (str(columns),) if is_name else tuple(listed_names(columns))
        known = self.manifest.schema.names
        unknown = [name for name in names if name not in known]
        if unknown or not names or len(set(names)) < len(names):
            what = (
                f"unknown {one_or_many(len(unknown), 'column', 'columns')} {unknown}"
                if unknown
                else f"columns {list(names)} are none or repeated"
            )
            similar = similar_column(str(unknown[0]), self.manifest.schema) if unknown else ""
            raise ConfigError(f"{what}{similar}: choose from {', '.join(known)}")
        return self._narrowed(columns=names)

    # --- methods that answer ---

    def to_arrow(self) -> pa.Table:
        """Return the selection as an Arrow table, sorted by (`_healpix_29`, `source_id`).

        Returns
        -------
        pyarrow.Table
            Rows with the units, UCDs and descriptions of the columns in the metadata of the fields.

        Raises
        ------
        StoreError
            A file of the catalogue is missing or damaged.

        Examples
        --------
        >>> import skyclass as sc
        >>> sc.open_catalog("classes").to_arrow().schema.field("ra").metadata[b"unit"]
        b'deg'
        """
        return self.selection.to_arrow()

    def to_pandas(self) -> pd.DataFrame:
        """Return the selection as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            Rows with Arrow types, in which missing values stay missing.

        Raises
        ------
        StoreError
            A file of the catalogue is missing or damaged.

        Examples
        --------
        >>> import skyclass as sc
        >>> classes = sc.open_catalog("classes")
        >>> len(classes.to_pandas()) == classes.count()
        True
        """
        return to_pandas(self.to_arrow())

    def count(self) -> int:
        """Return the number of sources in the selection.

        Returns
        -------
        int
            Rows; of the whole catalogue from the manifest, without reading a file.

        Examples
        --------
        >>> import skyclass as sc
        >>> sc.open_catalog("classes").count()
        46
        """
        if self.selection.is_everything:
            return self.manifest.rows
        answer = self.select(["_healpix_29"]).sql_arrow("SELECT count(*) FROM classes")
        return int(answer.column(0)[0].as_py())

    def class_counts(self) -> dict[str, int]:
        """Return the number of sources of each class.

        Returns
        -------
        dict of str to int
            Classes of the catalogue and "unclassified" -> sources.

        Examples
        --------
        >>> import skyclass as sc
        >>> sorted(sc.open_catalog("classes").class_counts())
        ['galaxy', 'quasar', 'star', 'unclassified']
        """
        if self.selection.is_everything:
            return dict(self.manifest.classes)
        query = "SELECT class, count(*) FROM classes GROUP BY class"
        names, rows = self.select(["class"]).sql_arrow(query).columns
        found = dict(zip(names.fill_null(UNCLASSIFIED).to_pylist(), rows.to_pylist(), strict=True))
        return {name: found.get(name, 0) for name in self.manifest.classes}

    def sql(self, query: str) -> pd.DataFrame:
        """Return the answer to a SQL query on the view `classes`, which holds the selection.

        Parameters
        ----------
        query : str
            One SELECT statement in DuckDB's SQL. It cannot read files or the network.

        Returns
        -------
        pandas.DataFrame
            The answer, with Arrow types.

        Raises
        ------
        ConfigError
            The query cannot be answered; the message says why.

        Examples
        --------
        >>> import skyclass as sc
        >>> sc.open_catalog("classes").sql("SELECT count(*) AS n FROM classes")
            n
        0  46
        """
        return to_pandas(self.sql_arrow(query))

    def sql_arrow(self, query: str) -> pa.Table:
        """Return the answer to a SQL query as an Arrow table.

        Parameters
        ----------
        query : str
            As for `sql`.

        Returns
        -------
        pyarrow.Table
            The answer.

        Examples
        --------
        >>> import skyclass as sc
        >>> sc.open_catalog("classes").sql_arrow("SELECT count(*) AS n FROM classes").to_pylist()
        [{'n': 46}]
        """
        schema = self.manifest.schema
        check_query(query, schema)
        with translate_duckdb_errors(query, schema, self.root), connect(self.root) as connection:
            self.selection.make_view(connection)
            return connection.sql(query).to_arrow_table()

    def export(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the selection to a file, whole or not at all.

        Parquet and CSV are streamed; FITS and VOTable are made in memory.

        Parameters
        ----------
        path : str or Path
            File to write; its ending decides the format: .parquet, .csv, .fits, .vot or .xml.
        overwrite : bool, default False
            Replace an existing file.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            The ending is unknown, or the file exists and `overwrite` is False.
        StoreError
            The file cannot be written.

        Examples
        --------
        >>> import skyclass as sc
        >>> sc.open_catalog("classes").export("classes.csv", overwrite=True).name
        'classes.csv'
        """
        return export_pieces(self.selection.schema, self.selection.pieces(), path, self.manifest.provenance, overwrite)

    def __repr__(self) -> str:
        return f"<ClassCatalog {self.root}: {', '.join(self._summary().values())}>"

    def _repr_html_(self) -> str:
        rows = {"folder": str(self.root), **self._summary()}
        return html_table("ClassCatalog", rows | {"model": self.manifest.label, "run": self.manifest.run_id})

    def _narrowed(self, **parts: Any) -> ClassCatalog:
        return ClassCatalog(replace(self.selection, **parts))

    def _summary(self) -> dict[str, str]:
        """Return the size of the catalogue and what narrows the selection; reads nothing."""
        narrowing = {
            "regions": "; ".join(map(region_text, self.selection.regions)),
            "conditions": " AND ".join(f"({text})" for text in self.selection.predicates),
            "columns": ", ".join(self.selection.columns or ()),
        }
        size = f"{counted(self.manifest.rows, 'row')} in {counted(len(self.manifest.files), 'file')}"
        return {"size": size} | {name: text for name, text in narrowing.items() if text}


def open_catalog(path: str | Path) -> ClassCatalog:
    """Open a published class catalogue; only its manifest is read.

    Parameters
    ----------
    path : str or Path
        Folder of the catalogue, or of the run that published it.

    Returns
    -------
    ClassCatalog
        The catalogue, whose methods select, count, query and export its rows.

    Raises
    ------
    NotPublished
        There is no class catalogue.
    StoreError
        Its manifest is damaged, or of another version.

    Examples
    --------
    >>> import skyclass as sc
    >>> classes = sc.open_catalog("classes")
    >>> quasars = classes.where("p_quasar > 0.9").to_pandas()
    """
    root = find_catalog(path)
    return ClassCatalog(Selection(root, read_manifest(root)))
