"""AllWISE sources near uploaded positions, from the TAP service of IRSA."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...text import named
from ..progress import Progress
from .allwise import ALLWISE_COLUMNS, MATCH_SCHEMA
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
)

if TYPE_CHECKING:
    from requests import Response

ALLWISE_TABLE = "allwise_p3as_psd"
MAX_SOURCES_PER_POSITION = 50
"""Most AllWISE sources expected within the radius of one position; more is an overflow."""
CANDIDATE_SCHEMA = pa.schema([MATCH_SCHEMA.field(name) for name in ("label_row", *ALLWISE_COLUMNS)])


@dataclass(frozen=True)
class TapService:
    """The TAP service of IRSA or of a mirror."""

    address: str
    policy: RetryPolicy

    def candidates(
        self, spectra: pa.Table, start: int, stop: int, radius_arcsec: float, progress: Progress
    ) -> pa.Table:
        """Return (`CANDIDATE_SCHEMA`) the AllWISE sources within the radius of rows `start:stop` of `spectra`.

        Raises `ServiceError` when the service refuses, or after the last attempt.
        """
        request = Request(
            f"IRSA TAP ({self.address})",
            f"{ALLWISE_TABLE} sources within {radius_arcsec:g} arcsec of {stop - start} uploaded positions",
            "lower `upload_rows` if it is about time or rows, name a mirror as `tap_url`, or match offline with "
            f"`catalog` = a local copy of AllWISE; {PAGES_KEPT}",
        )

        def send() -> Response:
            return self._send(spectra, start, stop, radius_arcsec)

        return fetch(request, send, read_candidates, self.policy, progress)

    def _send(self, spectra: pa.Table, start: int, stop: int, radius_arcsec: float) -> Response:
        """Return the answer to one upload by pyvo: `Irsa.query_tap` takes no upload (astroquery#2942)."""
        from astropy.table import Table
        from pyvo.dal import TAPService  # type: ignore[import-untyped]

        rows = spectra.slice(start, stop - start)
        positions = {"label_row": np.arange(start, stop), "ra": rows["ra"].to_numpy(), "dec": rows["dec"].to_numpy()}
        with _session(self.policy.timeout_s) as session:
            query = TAPService(self.address, session=session).create_query(
                candidate_query(radius_arcsec),
                maxrec=MAX_SOURCES_PER_POSITION * (stop - start),
                uploads={"my_table": Table(positions)},
            )
            response: Response = query.submit()
            _ = response.content  # the session must be open while the content is read
            return response


def irsa_address(mirror: str | None) -> str:
    """Return the address of the TAP service: the mirror, or astroquery's setting."""
    from astroquery.ipac.irsa import conf

    return (mirror or str(conf.tap_url)).rstrip("/")


def candidate_query(radius_arcsec: float) -> str:
    """Return the ADQL that selects the AllWISE sources near each uploaded position."""
    columns = ", ".join(["u.label_row", *(f"w.{name}" for name in ALLWISE_COLUMNS)])
    return (
        f"SELECT {columns} FROM {ALLWISE_TABLE} AS w, TAP_UPLOAD.my_table AS u WHERE CONTAINS(POINT('ICRS', w.ra, "
        f"w.dec), CIRCLE('ICRS', u.ra, u.dec, {radius_arcsec / 3600:.9f})) = 1"
    )


def _session(timeout_s: float) -> Any:
    """Return a session in which every request has a time limit, because pyvo sets none."""
    import requests
    from requests.adapters import HTTPAdapter

    class TimeoutAdapter(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            return super().send(request, *args, **kwargs | {"timeout": timeout_s})

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, TimeoutAdapter())
    return session


def read_candidates(response: Response) -> pa.Table:
    """Return (`CANDIDATE_SCHEMA`) the rows of an answer of a TAP service.

    Raises `PassingFault` or `RequestRefused` for QUERY_STATUS ERROR, for OVERFLOW, which may follow the rows, for a
    truncated VOTable, and for a web page.
    """
    text = response.content[:2000].decode("utf-8", "replace")
    if "<VOTABLE" not in text.upper():
        check_status(response, text)
        raise PassingFault(f"an answer that is no VOTable: {first_line(text)}" if text.strip() else "an empty answer")
    status, message, table = _read_votable(response)
    if status == "ERROR":
        raise reported_fault(message)
    check_status(response, text)
    if status == "OVERFLOW":
        raise RequestRefused(f"QUERY_STATUS OVERFLOW, the answer stops after {len(table)} rows")
    return table


def _read_votable(response: Response) -> tuple[str, str, pa.Table]:
    """Return QUERY_STATUS, its message and the table of an answer; raise `PassingFault` for truncated XML."""
    from xml.parsers.expat import ExpatError

    from astropy.io.votable import parse
    from astropy.utils.exceptions import AstropyWarning
    from pyvo.dal import DALFormatError, DALQueryError, TAPResults

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # IRSA uses units that the standard does not know
        try:
            results = TAPResults(parse(io.BytesIO(response.content)), url=response.url)
            return results.status[0].upper(), str(results.status[1] or ""), _candidates(results.to_table())
        except DALQueryError as error:
            return "ERROR", first_line(str(error)), None
        except (DALFormatError, ExpatError, OSError, ValueError, IndexError, TypeError) as error:
            raise PassingFault(f"the VOTable is cut short or damaged ({first_line(str(error))})") from error


def _candidates(table: Any) -> pa.Table:
    """Return (`CANDIDATE_SCHEMA`) the rows of an astropy table; masked values become null."""
    names = {name.lower(): name for name in table.colnames}
    if missing := [name for name in CANDIDATE_SCHEMA.names if name not in names]:
        raise RequestRefused(f"the answer has no {named('column', missing)}")
    columns = [_arrow_column(table[names[field.name]], field.type) for field in CANDIDATE_SCHEMA]
    return pa.table(columns, schema=CANDIDATE_SCHEMA)


def _arrow_column(column: Any, arrow_type: pa.DataType) -> pa.Array:
    mask = np.broadcast_to(np.ma.getmaskarray(np.ma.asarray(column)), len(column))
    values = np.ma.getdata(np.ma.asarray(column))
    if pa.types.is_string(arrow_type):
        texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
        nulls = [masked or not text for text, masked in zip(texts, mask, strict=True)]
        return pa.array([None if null else text for text, null in zip(texts, nulls, strict=True)], arrow_type)
    return pa.array(values.astype(arrow_type.to_pandas_dtype()), mask=np.ascontiguousarray(mask))
