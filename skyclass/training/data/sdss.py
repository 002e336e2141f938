"""Classified spectra of SDSS and the 2012 All-Sky sources that belong to them, page by page from SkyServer."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from ...schema import PHYSICAL_RANGES
from ...sky.regions import Box
from ..progress import Progress
from .allwise import PHOTOMETRY
from .service import (
    PAGES_KEPT,
    PassingFault,
    Request,
    RequestRefused,
    RetryPolicy,
    check_status,
    fetch,
    first_line,
    reported_fault,
    text_of_html,
)

if TYPE_CHECKING:
    from requests import Response

SDSS_CLASSES = {"galaxy": "GALAXY", "quasar": "QSO", "star": "STAR"}
END_OF_LINE = "eol"
"""Last column of every row that SDSS returns: a row without it is truncated."""
FIRST_KEY = (0, 0)

SPECTRUM_SCHEMA = pa.schema(
    [
        ("specobjid", pa.uint64()), ("class", pa.string()), ("subclass", pa.string()), ("z", pa.float64()),
        ("match_dist", pa.float64()), ("cntr", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64()),
        *((name, pa.float32()) for name in PHOTOMETRY),
    ]
)  # fmt: skip
"""A page of SDSS: `ra`, `dec` and photometry of the 2012 All-Sky source, `match_dist` arcsec from SDSS to it."""

SDSS_COLUMNS = {
    "specobjid": "s.specObjID", "class": "s.class", "subclass": "s.subClass", "z": "s.z",
    "match_dist": "xm.match_dist", "cntr": "w.cntr",
}  # fmt: skip
"""Column of `SPECTRUM_SCHEMA` -> SQL expression, where it is not the column of that name in WISE_allsky."""


@dataclass(frozen=True)
class SpectrumQuery:
    """Which spectra SDSS returns: cuts on the All-Sky source, one spectrum in `one_in`, and a box on the sky."""

    max_match_arcsec: float
    min_snr: float
    one_in: int = 1
    box: Box | None = None

    def sql(self, class_name: str, n_rows: int, after: tuple[int, int] = FIRST_KEY) -> str:
        """Return the SQL of one page: spectra of a class whose (specObjID, cntr) follow `after`, in that order.

        A spectrum may have several All-Sky sources, so the order needs both keys. The query is one line, one SELECT and
        has no semicolon, because SkyServer rewrites anything else (spExecuteSQL).
        """
        columns = [f"{SDSS_COLUMNS.get(column, f'w.{column}')} AS {column}" for column in SPECTRUM_SCHEMA.names]
        specobjid, cntr = after
        conditions = [
            f"s.class = '{SDSS_CLASSES[class_name]}'", "s.zWarning = 0",
            f"s.specObjID >= {specobjid}", f"(s.specObjID > {specobjid} OR w.cntr > {cntr})",
            f"xm.match_dist < {self.max_match_arcsec:g}",
            f"w.w1snr > {self.min_snr:g}", f"w.w2snr > {self.min_snr:g}",
            *_in_range("w1mpro"), *_in_range("w2mpro"),  # SDSS has 9999 where a magnitude or S/N is missing, no null
        ]  # fmt: skip
        if self.one_in > 1:
            # A fixed pseudo-random subset: all pages and later runs see the same spectra. The large primes spread it
            # over plates, fibres and dates.
            conditions.append(f"(s.plate * 7919 + s.fiberID * 104729 + s.mjd) % {self.one_in} = 0")
        if self.box:
            conditions += _in_box(self.box)
        return (
            f"SELECT TOP {n_rows} {', '.join(columns)}, '{END_OF_LINE}' AS {END_OF_LINE} FROM SpecObj AS s"
            " JOIN WISE_xmatch AS xm ON s.bestObjID = xm.sdss_objid JOIN WISE_allsky AS w ON xm.wise_cntr = w.cntr"
            f" WHERE {' AND '.join(conditions)} ORDER BY s.specObjID, w.cntr"
        )


@dataclass(frozen=True)
class SkyServer:
    """SkyServer of SDSS, or of a mirror."""

    address: str
    data_release: int
    policy: RetryPolicy

    def page(
        self, query: SpectrumQuery, class_name: str, n_rows: int, after: tuple[int, int], progress: Progress
    ) -> pa.Table:
        """Return one page (`SPECTRUM_SCHEMA`); raise `ServiceError` on refusal or after the last attempt."""
        sql = query.sql(class_name, n_rows, after)
        request = Request(
            f"SDSS SkyServer DR{self.data_release} ({self.address})",
            f"{n_rows} spectra of class {SDSS_CLASSES[class_name]} after specObjID {after[0]}",
            "lower `page_rows` if it is about time or rows, choose another `data_release`, or name a mirror as "
            f"`sdss_url`; {PAGES_KEPT}",
        )
        return fetch(request, lambda: self._send(sql), lambda answer: read_page(answer, after), self.policy, progress)

    def _send(self, sql: str) -> Response:
        from astroquery.sdss import SDSSClass, conf

        with conf.set_temp("skyserver_baseurl", self.address):
            response: Response = SDSSClass().query_sql_async(
                sql, timeout=self.policy.timeout_s, data_release=self.data_release, cache=False
            )
        return response


def sdss_address(mirror: str | None) -> str:
    """Return the address of SkyServer: the mirror, or astroquery's setting."""
    from astroquery.sdss import conf

    return (mirror or str(conf.skyserver_baseurl)).rstrip("/")


def _in_range(column: str) -> tuple[str, str]:
    """Return the SQL conditions that keep a measurement within its physical range."""
    bounds = PHYSICAL_RANGES[column]
    return f"w.{column} > {bounds.low:g}", f"w.{column} < {bounds.high:g}"


def _in_box(box: Box) -> list[str]:
    """Return the SQL conditions of a box, which may contain RA 0."""
    dec = [f"s.dec BETWEEN {box.dec_min!r} AND {box.dec_max!r}"]
    if box.width_deg >= 360:
        return dec
    low, high = box.ra_min % 360, box.ra_max % 360
    return [f"s.ra BETWEEN {low!r} AND {high!r}" if low <= high else f"(s.ra >= {low!r} OR s.ra <= {high!r})", *dec]


def read_page(response: Response, after: tuple[int, int]) -> pa.Table:
    """Return the page (`SPECTRUM_SCHEMA`) in an answer of SkyServer.

    Raises `PassingFault` or `RequestRefused`. SkyServer reports errors as JSON with status 500, as CSV with the one
    column `error_message`, or as a web page with status 200; the row limit, the query rate and database time-outs are
    among them.
    """
    text = response.content.decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    reason = _error_reason(text)
    if reason == "":
        raise PassingFault("an error page without a reason")
    if reason is not None:
        raise reported_fault(reason)
    check_status(response, text)
    if not text or text.startswith("<"):
        raise PassingFault(f"a web page instead of a table: {first_line(text)}" if text else "an empty answer")
    if text.startswith("No objects have been found"):
        return SPECTRUM_SCHEMA.empty_table()
    return _read_csv(text.partition("\n")[2] if text.startswith("#") else text, after)


def _error_reason(text: str) -> str | None:
    """Return the reason in an error answer of SkyServer, "" without a reason, None for any other answer."""
    if text.startswith("{") and '"ErrorMessage"' in text:
        message = re.search(r'"ErrorMessage"\s*:\s*("(?:[^"\\]|\\.)*")', text)
        return str(json.loads(message[1], strict=False)) if message else ""
    header, _, rest = text.removeprefix("#Table1").lstrip().partition("\n")
    if header.strip().lower() == "error_message":
        return rest.strip().strip('"')
    if "<title>skyserver error</title>" in text[:500].lower():
        page = re.sub(r"(?is)^.*?an error occ?urr?ed", "", text)
        return text_of_html(page.split("<form")[0])
    return None


def _read_csv(text: str, after: tuple[int, int]) -> pa.Table:
    """Return the rows of a CSV answer; raise `PassingFault` for a truncated one, `RequestRefused` for other columns."""
    first, newline, rest = text.partition("\n")
    header = [name.strip().lower() for name in first.split(",")]
    expected = [*SPECTRUM_SCHEMA.names, END_OF_LINE]
    if not newline:
        raise PassingFault(f"the answer is cut short in its first line ({first})")
    if header != expected:
        raise RequestRefused(f"columns {', '.join(header[:8])} instead of {', '.join(expected)}")
    types = {field.name: field.type for field in SPECTRUM_SCHEMA} | {END_OF_LINE: pa.string()}
    options = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=["", "null", "NULL"])
    reading = pa_csv.ReadOptions(column_names=expected, skip_rows=1)
    if not rest.strip():
        return SPECTRUM_SCHEMA.empty_table()
    try:
        page = pa_csv.read_csv(io.BytesIO(text.encode()), reading, convert_options=options)
    except pa.ArrowException as error:
        raise PassingFault(f"the answer is cut short or damaged ({error})") from error
    if page[END_OF_LINE].null_count or not pc.all(pc.equal(page[END_OF_LINE], END_OF_LINE)).as_py():
        raise PassingFault(f"the answer is cut short in its line {len(page)}")
    return _require_order(page.drop_columns(END_OF_LINE).combine_chunks(), after)


def _require_order(page: pa.Table, after: tuple[int, int]) -> pa.Table:
    """Return the page; raise `RequestRefused` unless its keys rise from `after`: paging would skip or repeat rows."""
    if any(page[name].null_count for name in ("specobjid", "cntr", "ra", "dec", "match_dist")):
        raise RequestRefused("a key or position is empty")
    specobjid = np.r_[np.uint64(after[0]), page["specobjid"].to_numpy()]
    cntr = np.r_[np.int64(after[1]), page["cntr"].to_numpy()]
    later_spectrum = specobjid[1:] > specobjid[:-1]
    later_source = (specobjid[1:] == specobjid[:-1]) & (cntr[1:] > cntr[:-1])
    if not np.all(later_spectrum | later_source):
        raise RequestRefused("rows are not in the requested order (specObjID, cntr)")
    return page
