"""A stand-in for SDSS SkyServer and IRSA TAP on the loopback, over one small simulated table.

It runs the queries it is sent (DuckDB) and answers as the services do: CSV after a line `#Table1`, VOTable with
QUERY_STATUS, and their error pages. The forms are those of sciserver/SkyServerWS (CustomFilter.cs, OutputUtils.cs),
of the database procedure spExecuteSQL, of astroquery's issues 2684 and 2706, and of the TAP standard (IVOA, 1.1).
Faults are queued: each request takes the next one, if any, instead of an answer.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import duckdb
import pyarrow as pa
from astropy.io.votable import parse_single_table

from tests.support.serving import LocalServer

ROW_LIMIT = 500_000
LONGEST_QUERY_STRING = 2048
"""What IIS takes; beyond it astroquery's issue 2211 begins."""

Fault = Callable[["Handler"], None]

SEPARATION_DEG = (
    "degrees(2 * asin(sqrt(pow(sin(radians({d1} - {d2}) / 2), 2)"
    " + cos(radians({d1})) * cos(radians({d2})) * pow(sin(radians({r1} - {r2}) / 2), 2))))"
)
POINT = r"'ICRS',\s*([\w.]+),\s*([\w.]+)"


class Services(LocalServer):
    """Both services at `url`, from tables SpecObj, WISE_xmatch, WISE_allsky and allwise_p3as_psd."""

    def __init__(self, tables: dict[str, pa.Table]) -> None:
        super().__init__()
        self.database = duckdb.connect()
        self.database.execute("SET threads = 1")
        for name, table in tables.items():
            self.database.register(f"arrow_{name}", table)
            self.database.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow_{name}")
        self.lock = threading.Lock()
        self.faults: dict[str, deque[Fault | None]] = {"sdss": deque(), "tap": deque()}
        self.asked: list[tuple[str, str]] = []
        self.row_limit = ROW_LIMIT
        self.silent_limit: int | None = None
        self.tap_limit = 1_000_000

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.database.close()

    @property
    def url(self) -> str:
        return self.endpoint

    def count(self, service: str) -> int:
        return sum(name == service for name, _ in self.asked)

    def run(self, sql: str) -> pa.Table:
        with self.lock:
            return self.database.sql(sql).to_arrow_table()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def services(self) -> Services:
        return self.server.owner  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def answer(self, body: str | bytes, kind: str, status: int = 200, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def take_fault(self, service: str, query: str) -> bool:
        self.services.asked.append((service, query))
        queue = self.services.faults[service]
        fault = queue.popleft() if queue else None
        if fault:
            fault(self)
        return fault is not None

    def do_GET(self) -> None:
        """SkyServer: /dr17/en/tools/search/x_results.aspx?searchtool=SQL&cmd=...&format=csv"""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if len(parts.query) > LONGEST_QUERY_STRING:
            return self.answer(
                "<html>The length of the query string exceeds the configured ...</html>", "text/html", 400
            )
        if not re.fullmatch(r"/dr1[78]/en/tools/search/x_results\.aspx", parts.path):
            return self.answer(
                "<html><head><title>404 - File or directory not found.</title></head></html>", "text/html", 404
            )
        if not self.take_fault("sdss", query["cmd"]):
            self.answer(self.sdss(query["cmd"]), "text/plain")
        return None

    def sdss(self, sql: str) -> str:
        top = re.match(r"\s*select\s+top\s+(\d+)\s", sql, re.I)
        if ";" in sql or len(re.findall(r"\bselect\b", sql, re.I)) != 1 or not top:
            return sdss_message(f"error: must be a select statement: {sql}")
        if int(top[1]) > self.services.row_limit:
            return sdss_message(f"error: limit is  top {self.services.row_limit} {sql}")
        rows = min(int(top[1]), self.services.silent_limit or ROW_LIMIT)
        try:
            table = self.services.run("SELECT " + sql[top.end() :] + f" LIMIT {rows}")
        except duckdb.Error as error:
            return sdss_message(str(error).splitlines()[0])
        lines = [",".join("" if v is None else _csv_cell(v) for v in row.values()) for row in table.to_pylist()]
        return "\n".join(["#Table1", ",".join(table.column_names), *lines]) + "\n"

    def do_POST(self) -> None:
        """IRSA: POST /TAP/sync, multipart, with the uploaded VOTable."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        form = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
        fields = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                  for part in form.get_payload()}  # fmt: skip
        query = fields["QUERY"].decode()
        if self.path != "/TAP/sync":
            return self.answer("<html><title>404 Not Found</title></html>", "text/html", 404)
        if not self.take_fault("tap", query):
            self.answer(*self.tap(query, fields))
        return None

    def tap(self, adql: str, fields: dict[str, bytes]) -> tuple[str, str, int]:
        name, _, place = fields["UPLOAD"].decode().partition(",param:")
        upload = parse_single_table(io.BytesIO(fields[place])).to_table()
        columns = {c: upload[c].tolist() for c in upload.colnames}
        sql = re.sub(rf"CONTAINS\(\s*POINT\({POINT}\),\s*CIRCLE\({POINT},\s*([\d.]+)\)\)\s*=\s*1", _near, adql)
        sql = sql.replace(f"TAP_UPLOAD.{name}", "uploaded")
        try:
            with self.services.lock:
                self.services.database.register("uploaded", pa.table(columns))
                table = self.services.database.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            return votable_error(str(error).splitlines()[0]), "application/x-votable+xml", 400
        limit = min(int(fields.get("MAXREC", b"1000000")), self.services.tap_limit)
        status = "OVERFLOW" if len(table) > limit else "OK"
        return votable(table.slice(0, limit), status), "application/x-votable+xml", 200


def _near(found: re.Match[str]) -> str:
    r1, d1, r2, d2, radius = found.groups()
    return f"{SEPARATION_DEG.format(r1=r1, d1=d1, r2=r2, d2=d2)} <= {radius}"


def _csv_cell(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) and "," in value else str(value)


def sdss_message(text: str) -> str:
    """What spExecuteSQL selects instead of rows."""
    return f'#Table1\nerror_message\n"{text}"\n'


def votable(table: pa.Table, status: str = "OK") -> str:
    """A TAP answer: the status comes first, and OVERFLOW again after the table."""
    kinds = {"int64": "long", "double": "double", "float": "float"}
    schema = [(f.name, kinds.get(str(f.type), "char")) for f in table.schema]
    size = {"char": ' arraysize="*"'}
    head = "".join(f'<FIELD name="{n}" datatype="{k}"{size.get(k, "")}/>' for n, k in schema)
    rows = "".join(
        "<TR>" + "".join("<TD/>" if v is None else f"<TD>{escape(str(v))}</TD>" for v in row.values()) + "</TR>\n"
        for row in table.to_pylist()
    )
    late = '<INFO name="QUERY_STATUS" value="OVERFLOW"/>' if status == "OVERFLOW" else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/><TABLE>{head}<DATA><TABLEDATA>\n{rows}'
        f"</TABLEDATA></DATA></TABLE>{late}</RESOURCE></VOTABLE>\n"
    )


def votable_error(reason: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results"><INFO name="QUERY_STATUS" value="ERROR">{escape(reason)}</INFO></RESOURCE></VOTABLE>'
    )


# --- faults ----------------------------------------------------------------------------------------


def unavailable(retry_after: str | None = None) -> Fault:
    """503 of a load balancer, as SDSS gives it (astroquery#2684)."""
    page = (
        "<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>"
    )
    headers = {"Retry_After": retry_after} if retry_after is not None else {}
    return lambda handler: handler.answer(page, "text/html", 503, **headers)


def says(body: str, kind: str = "text/plain", status: int = 200) -> Fault:
    return lambda handler: handler.answer(body, kind, status)


def json_error(reason: str) -> Fault:
    """SkyServerWS in any format but html: status 500 and JSON."""
    body = {"ErrorCode": 500, "ErrorType": "InternalServerError", "ErrorMessage": reason, "LogMessageID": "0"}
    return says(json.dumps(body), "application/json", 500)


def html_error(reason: str) -> Fault:
    """SkyServer's error page, with status 200."""
    page = "<html><head>\n<title>Skyserver Error</title>\n</head><body bgcolor=white>\n<h2>An error occured</h2>"
    return says(f"{page}<H3 BGCOLOR=pink><font color=red><br>{escape(reason)}</font></H3></BODY></HTML>\n", "text/html")


def silence(handler: Handler) -> None:
    """Never answer."""
    handler.close_connection = True
    handler.services.closing.wait(20)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def cut(n_bytes: int, promised: bool) -> Fault:
    """The true answer without its last bytes, with the length of the whole promised or not."""

    def fault(handler: Handler) -> None:
        handler.close_connection = True
        service, query = handler.services.asked[-1]
        assert service == "sdss"
        data = handler.sdss(query).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain")
        if promised:
            handler.send_header("Content-Length", str(len(data)))
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data[: len(data) - n_bytes])

    return fault


Services.handler = Handler
