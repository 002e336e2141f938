"""What the public services are asked and how their answers are read: SkyServer of SDSS, and the TAP service of IRSA.

Every answer is checked for being whole and in order; a fault that may pass is asked again, each time later.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from ...errors import SkyclassError
from ...schema import PHYSICAL_RANGES, SOURCE_SCHEMA
from ...sky.regions import Box

if TYPE_CHECKING:
    from requests import Response

    from .labels import LabelsConfig

T = TypeVar("T")
Progress = Callable[[dict[str, Any]], None]

SDSS_CLASSES = {"galaxy": "GALAXY", "quasar": "QSO", "star": "STAR"}
ALLWISE_TABLE = "allwise_p3as_psd"
EOL = "eol"
"""Last column of every row asked of SDSS: a row without it was cut short on the way."""
PER_POSITION = 50
"""Most AllWISE sources expected within the match radius of one position; more is an overflow."""
LONGEST_WAIT_S = 300.0
BUSY = (429, 502, 503, 504)

SPECTRUM_SCHEMA = pa.schema(
    [
        ("specobjid", pa.uint64()), ("class", pa.string()), ("subclass", pa.string()), ("z", pa.float64()),
        ("match_dist", pa.float64()), ("cntr", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64()),
        *((f"w{b}{what}", pa.float32()) for what in ("mpro", "snr") for b in (1, 2, 3)),
    ]
)  # fmt: skip
"""A page of SDSS: `ra`, `dec` and photometry of the 2012 All-Sky source, `match_dist` arcsec from SDSS to it."""

SELECTED = {
    "specobjid": "s.specObjID", "class": "s.class", "subclass": "s.subClass", "z": "s.z",
    "match_dist": "xm.match_dist", "cntr": "w.cntr",
}  # fmt: skip
"""Our name -> SDSS's, where it is not the column of that name in WISE_allsky."""

PHOTOMETRY = tuple(f"w{b}{what}" for what in ("mpro", "snr") for b in (1, 2, 3))
ALLWISE = ("source_id", "coadd_id", "ra", "dec", *PHOTOMETRY)
MATCH_SCHEMA = pa.schema(
    [("label_row", pa.int64()), ("match_arcsec", pa.float64()), *(SOURCE_SCHEMA.field(name) for name in ALLWISE)]
)
"""The AllWISE source nearest to row `label_row` of the cleaned spectra."""

PASSING = re.compile(
    r"time-?\s?out|timed? ?out|deadlock|per minute|transport-level|try again|temporar|unavailable|overload", re.I
)
"""What a service says when the same question may be answered later."""


class ServiceError(SkyclassError):
    """A public service did not answer, or refused what it was asked."""


class _Again(Exception):
    """The same question may be answered later; `wait_s` is what the service asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        self.wait_s = wait_s
        super().__init__(_first_line(reason))


class _Unreachable(_Again):
    """There was no connection: nobody answered at all."""


OFFLINE = (
    "the service cannot be reached: run this where it can be (a login node, not a compute node, on many clusters), or "
    "name a mirror; pages that came are kept and the same command goes on"
)


class _Refused(Exception):
    """Asking again is of no use."""

    def __init__(self, reason: str) -> None:
        super().__init__(_first_line(reason))


# --- SDSS ------------------------------------------------------------------------------------------


def sdss_query(config: LabelsConfig, name: str, after: tuple[int, int] = (0, 0), rows: int | None = None) -> str:
    """Return the SQL of one page: spectra of class `name` after (specObjID, cntr), in that order.

    A spectrum may have several WISE sources, so the order needs both keys. One line, one SELECT and no
    semicolon, because SkyServer rewrites anything else (spExecuteSQL).
    """
    columns = [f"{SELECTED.get(column, f'w.{column}')} AS {column}" for column in SPECTRUM_SCHEMA.names]
    spectrum, source = after
    conditions = [
        f"s.class = '{SDSS_CLASSES[name]}'", "s.zWarning = 0",
        f"s.specObjID >= {spectrum}", f"(s.specObjID > {spectrum} OR w.cntr > {source})",
        f"xm.match_dist < {config.max_match_arcsec:g}",
        f"w.w1snr > {config.min_snr:g}", f"w.w2snr > {config.min_snr:g}",
        *_in_range("w1mpro"), *_in_range("w2mpro"),  # SDSS has no nulls: 9999 stands for no magnitude and for no S/N
    ]  # fmt: skip
    if config.one_in > 1:
        conditions.append(f"(s.plate * 7919 + s.fiberID * 104729 + s.mjd) % {config.one_in} = 0")
    if isinstance(config.region, Box):
        conditions += _in_box(config.region)
    return (
        f"SELECT TOP {rows or config.page_rows} {', '.join(columns)}, '{EOL}' AS {EOL} FROM SpecObj AS s"
        " JOIN WISE_xmatch AS xm ON s.bestObjID = xm.sdss_objid JOIN WISE_allsky AS w ON xm.wise_cntr = w.cntr"
        f" WHERE {' AND '.join(conditions)} ORDER BY s.specObjID, w.cntr"
    )


def _in_range(column: str) -> tuple[str, str]:
    """Return the conditions of SQL for a measurement within its physical range."""
    bounds = PHYSICAL_RANGES[column]
    return f"w.{column} > {bounds.low:g}", f"w.{column} < {bounds.high:g}"


def _in_box(box: Box) -> list[str]:
    """Return the SQL conditions of a box; RA 0 may lie inside it."""
    dec = [f"s.dec BETWEEN {box.dec_min!r} AND {box.dec_max!r}"]
    if box.width_deg >= 360:
        return dec
    low, high = box.ra_min % 360, box.ra_max % 360
    return [f"s.ra BETWEEN {low!r} AND {high!r}" if low <= high else f"(s.ra >= {low!r} OR s.ra <= {high!r})", *dec]


def sdss_page(config: LabelsConfig, name: str, after: tuple[int, int], rows: int, tell: Progress) -> pa.Table:
    """Return one page, or raise `ServiceError` after the last attempt."""
    query = sdss_query(config, name, after, rows)
    asked = f"SDSS SkyServer DR{config.data_release} ({sdss_address(config)}), asked for {rows} spectra of class "
    asked += f"{SDSS_CLASSES[name]} after specObjID {after[0]}"
    way_out = (
        f"lower `page_rows` (now {config.page_rows}) if it is about time or rows, choose another `data_release`, "
        "or name a mirror as `sdss_url`; pages that came are kept and the same command goes on"
    )
    return _persist(lambda: sdss_table(_ask_sdss(config, query), after), asked, way_out, config, tell)


def _ask_sdss(config: LabelsConfig, query: str) -> Response:
    from astroquery.sdss import SDSSClass, conf

    with conf.set_temp("skyserver_baseurl", sdss_address(config)):
        response: Response = SDSSClass().query_sql_async(
            query, timeout=config.timeout_s, data_release=config.data_release, cache=False
        )
    return response


def sdss_address(config: LabelsConfig) -> str:
    from astroquery.sdss import conf

    return (config.sdss_url or str(conf.skyserver_baseurl)).rstrip("/")


def sdss_table(response: Response, after: tuple[int, int]) -> pa.Table:
    """Return the page (`SPECTRUM_SCHEMA`) in an answer of SkyServer.

    Raises what `_persist` understands: errors come as JSON with status 500, as CSV with one column
    `error_message`, or as a web page with status 200; the row limit, the query rate and time-outs of the
    database are among them.
    """
    _check_busy(response)
    text = response.content.decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    said = _sdss_complaint(text)
    if said is not None:
        raise _Again(said or "an error page without a reason") if not said or PASSING.search(said) else _Refused(said)
    _check_status(response, text)
    if not text or text.startswith("<"):
        raise _Again(f"a web page instead of a table: {_first_line(text)}" if text else "an empty answer")
    if text.startswith("No objects have been found"):
        return SPECTRUM_SCHEMA.empty_table()
    return _read_csv(text.partition("\n")[2] if text.startswith("#") else text, after)


def _sdss_complaint(text: str) -> str | None:
    """Return the reason in an error answer of SkyServer, "" if it gives none, None if it is no such answer."""
    if text.startswith("{") and '"ErrorMessage"' in text:
        found = re.search(r'"ErrorMessage"\s*:\s*("(?:[^"\\]|\\.)*")', text)
        return str(json.loads(found[1], strict=False)) if found else ""
    header, _, rest = text.removeprefix("#Table1").lstrip().partition("\n")
    if header.strip().lower() == "error_message":
        return rest.strip().strip('"')
    if "<title>skyserver error</title>" in text[:500].lower():
        page = re.sub(r"(?is)^.*?an error occ?urr?ed", "", text)
        return _plain(page.split("<form")[0])
    return None


def _read_csv(text: str, after: tuple[int, int]) -> pa.Table:
    """Return the rows of a CSV answer; `_Again` when it was cut short, `_Refused` when it has other columns."""
    first, newline, rest = text.partition("\n")
    header = [name.strip().lower() for name in first.split(",")]
    expected = [*SPECTRUM_SCHEMA.names, EOL]
    if not newline:
        raise _Again(f"the answer is cut short in its first line ({first})")
    if header != expected:
        raise _Refused(f"columns {', '.join(header[:8])} instead of {', '.join(expected)}")
    types = {field.name: field.type for field in SPECTRUM_SCHEMA} | {EOL: pa.string()}
    options = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=["", "null", "NULL"])
    reading = pa_csv.ReadOptions(column_names=expected, skip_rows=1)
    if not rest.strip():
        return SPECTRUM_SCHEMA.empty_table()
    try:
        page = pa_csv.read_csv(io.BytesIO(text.encode()), reading, convert_options=options)
    except pa.ArrowException as error:
        raise _Again(f"the answer is cut short or damaged ({error})") from error
    if page[EOL].null_count or not pc.all(pc.equal(page[EOL], EOL)).as_py():
        raise _Again(f"the answer is cut short in its line {len(page)}")
    return _in_order(page.drop_columns(EOL).combine_chunks(), after)


def _in_order(page: pa.Table, after: tuple[int, int]) -> pa.Table:
    """Return the page if its keys rise from `after` on, or paging would skip or repeat spectra."""
    if any(page[name].null_count for name in ("specobjid", "cntr", "ra", "dec", "match_dist")):
        raise _Refused("a key or position is empty")
    spectrum, source = page["specobjid"].to_numpy(), page["cntr"].to_numpy()
    spectrum = np.r_[np.uint64(after[0]), spectrum]
    source = np.r_[np.int64(after[1]), source]
    later = spectrum[1:] > spectrum[:-1]
    if not np.all(later | ((spectrum[1:] == spectrum[:-1]) & (source[1:] > source[:-1]))):
        raise _Refused("rows are not in the order that was asked for (specObjID, cntr)")
    return page


# --- AllWISE, by upload ----------------------------------------------------------------------------


def irsa_query(max_match_arcsec: float) -> str:
    """Return the ADQL that finds the AllWISE sources near each uploaded position."""
    columns = ", ".join(["u.label_row", *(f"w.{name}" for name in ALLWISE)])
    return (
        f"SELECT {columns} FROM {ALLWISE_TABLE} AS w, TAP_UPLOAD.my_table AS u WHERE CONTAINS(POINT('ICRS', w.ra, "
        f"w.dec), CIRCLE('ICRS', u.ra, u.dec, {max_match_arcsec / 3600:.9f})) = 1"
    )


def irsa_page(cleaned: pa.Table, start: int, stop: int, config: LabelsConfig, tell: Progress) -> pa.Table:
    """Return the candidates of rows `start:stop`, or raise `ServiceError` after the last attempt."""
    asked = f"IRSA TAP ({tap_address(config)}), asked for {ALLWISE_TABLE} sources within "
    asked += f"{config.max_match_arcsec:g} arcsec of {stop - start} uploaded positions"
    way_out = (
        f"lower `upload_rows` (now {config.upload_rows}) if it is about time or rows, name a mirror as `tap_url`, or "
        "match offline with `catalog` = a local copy of AllWISE; pages that came are kept and the same command goes on"
    )
    return _persist(lambda: irsa_table(_ask_irsa(config, cleaned, start, stop)), asked, way_out, config, tell)


def _ask_irsa(config: LabelsConfig, cleaned: pa.Table, start: int, stop: int) -> Response:
    """Return the answer to one upload. By pyvo, because `Irsa.query_tap` takes no upload (astroquery#2942)."""
    from astropy.table import Table
    from pyvo.dal import TAPService  # type: ignore[import-untyped]

    rows = cleaned.slice(start, stop - start)
    positions = {"label_row": np.arange(start, stop), "ra": rows["ra"].to_numpy(), "dec": rows["dec"].to_numpy()}
    with _session(config.timeout_s) as session:
        service = TAPService(tap_address(config), session=session)
        uploads = {"my_table": Table(positions)}
        query = service.create_query(
            irsa_query(config.max_match_arcsec), maxrec=PER_POSITION * (stop - start), uploads=uploads
        )
        response: Response = query.submit()
        _ = response.content  # read while the session is open
        return response


def _session(timeout_s: float) -> Any:
    """Return a session whose every request has a time limit: pyvo gives none."""
    import requests
    from requests.adapters import HTTPAdapter

    class Limited(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            return super().send(request, *args, **kwargs | {"timeout": timeout_s})

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Limited())
    return session


def tap_address(config: LabelsConfig) -> str:
    from astroquery.ipac.irsa import conf

    return (config.tap_url or str(conf.tap_url)).rstrip("/")


def irsa_table(response: Response) -> pa.Table:
    """Return the candidates in an answer of a TAP service: `label_row` and the columns `ALLWISE`.

    Raises what `_persist` understands: QUERY_STATUS ERROR and OVERFLOW (also after the rows), a VOTable cut short,
    a web page in its place.
    """
    _check_busy(response)
    text = response.content[:2000].decode("utf-8", "replace")
    if "<VOTABLE" not in text.upper():
        _check_status(response, text)
        raise _Again(f"an answer that is no VOTable: {_first_line(text)}" if text.strip() else "an empty answer")
    status, reason, table = _read_votable(response)
    if status == "ERROR":
        raise (_Again if PASSING.search(reason) else _Refused)(reason)
    _check_status(response, text)
    if status == "OVERFLOW":
        raise _Refused(f"QUERY_STATUS OVERFLOW, the answer stops after {len(table)} rows")
    return table


def _read_votable(response: Response) -> tuple[str, str, pa.Table]:
    """Return QUERY_STATUS, its message and the table of an answer; `_Again` when the XML is cut short."""
    from xml.parsers.expat import ExpatError

    from astropy.io.votable import parse
    from astropy.utils.exceptions import AstropyWarning
    from pyvo.dal import DALFormatError, DALQueryError, TAPResults

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # units that the standard does not know: no concern of ours
        try:
            results = TAPResults(parse(io.BytesIO(response.content)), url=response.url)
            return results.status[0].upper(), str(results.status[1] or ""), _from_votable(results.to_table())
        except DALQueryError as error:
            return "ERROR", _first_line(str(error)), None
        except (DALFormatError, ExpatError, OSError, ValueError, IndexError, TypeError) as error:
            raise _Again(f"the VOTable is cut short or damaged ({_first_line(str(error))})") from error


def _from_votable(table: Any) -> pa.Table:
    """Return the columns `label_row` and `ALLWISE` of an astropy table, masked values null."""
    names = {name.lower(): name for name in table.colnames}
    if missing := [name for name in ("label_row", *ALLWISE) if name not in names]:
        raise _Refused(f"the answer has no column {', '.join(missing)}")
    schema = pa.schema([MATCH_SCHEMA.field(name) for name in ("label_row", *ALLWISE)])
    columns = [_from_column(table[names[field.name]], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def _from_column(column: Any, kind: pa.DataType) -> pa.Array:
    mask = np.broadcast_to(np.ma.getmaskarray(np.ma.asarray(column)), len(column))
    values = np.ma.getdata(np.ma.asarray(column))
    if pa.types.is_string(kind):
        text = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
        return pa.array([None if hidden or not v else v for v, hidden in zip(text, mask, strict=True)], kind)
    return pa.array(values.astype(kind.to_pandas_dtype()), mask=np.ascontiguousarray(mask))


# --- asking again ----------------------------------------------------------------------------------


def _persist(ask: Callable[[], T], asked: str, way_out: str, config: LabelsConfig, tell: Progress) -> T:
    """Return what `ask` returns, asked again after passing faults, each time later."""
    waits_s = [config.backoff_s * 2**attempt for attempt in range(config.retries)]
    for attempt, usual_s in enumerate([*waits_s, None], 1):
        try:
            return _try(ask, config.timeout_s)
        except _Refused as error:
            raise ServiceError(f"{asked}: it refused: {error} - {way_out}") from error
        except _Again as error:
            if usual_s is None:
                way_out = OFFLINE if isinstance(error, _Unreachable) else way_out
                raise ServiceError(
                    f"{asked}: no answer in {attempt} attempts, the last: {error} - {way_out}"
                ) from error
            wait_s = usual_s if error.wait_s is None else error.wait_s
            tell({"step": "wait", "service": asked.partition(",")[0], "seconds": wait_s, "reason": str(error)})
            sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _try(ask: Callable[[], T], timeout_s: float) -> T:
    """Return what `ask` returns; faults of the network become `_Again`."""
    import requests

    try:
        return ask()
    except requests.RequestException as error:
        said = str(error).rpartition("Caused by ")[2]
        if isinstance(error, requests.Timeout) or "timed out" in said:
            raise _Again(f"silence for {timeout_s:g} s (time-out)") from error
        kind = _Unreachable if said.startswith(("NewConnectionError", "NameResolutionError")) else _Again
        raise kind(f"connection failed, {said}") from error


def _check_busy(response: Response) -> None:
    """Raise `_Again` for the statuses of a busy or restarting service, whatever its page says."""
    if response.status_code in BUSY:
        wait_s = _retry_after_s(response.headers.get("Retry-After"))
        raise _Again(f"HTTP {response.status_code} {response.reason}: {_first_line(response.text)}", wait_s)


def _check_status(response: Response, text: str) -> None:
    """Raise for any other status that is an error."""
    if response.status_code >= 400:
        reason = f"HTTP {response.status_code} {response.reason}: {_first_line(text)}"
        raise _Again(reason) if response.status_code >= 500 else _Refused(reason)


def _retry_after_s(value: str | None) -> float | None:
    """Return the wait of a Retry-After header, which is seconds or a date (RFC 9110), at most five minutes."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return min(float(value), LONGEST_WAIT_S)
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def _plain(html: str) -> str:
    """Return the words of a web page."""
    body = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def _first_line(text: str) -> str:
    """Return the first words of an answer, for a message."""
    line = _plain(text) if text.lstrip().startswith("<") else next((s for s in text.splitlines() if s.strip()), "")
    return line.strip()[:200] or "nothing"
