"""One HTML page that needs no other file: tables, pictures and the provenance of all."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence

from .. import __version__
from .drawing import Json, Table


def page_of(
    title: str,
    banner: str,
    body: Sequence[str],
    tables: Sequence[Table],
    pictures: Mapping[str, bytes],
    details: Json,
) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f'<p class="banner">{html.escape(banner)}: not a result on the real sky</p>'] if banner else []
    parts += [*body, *(_html_table(table) for table in tables[:1])]
    parts += [_html_picture(caption, data) for caption, data in pictures.items()]
    parts += [_html_table(table) for table in tables[1:]]
    text = html.escape(json.dumps(details, indent=1, default=str))
    parts.append(f"<details><summary>Provenance</summary><pre>{text}</pre></details>")
    parts.append(f"<footer>skyclass {html.escape(__version__)}</footer>")
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(parts))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th { border-bottom: 2px solid #888 } th:first-child, td:first-child { text-align: left }
td.text { text-align: left; white-space: normal }
figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto } figcaption, .note, footer { color: #555 }
.banner { background: #fff1e0; border-left: 5px solid #D55E00; padding: .6rem 1rem; font-weight: 600 }
.warning { background: #f6f6f6; padding: .6rem .6rem .6rem 2rem } pre { overflow-x: auto; font-size: .8rem }
"""


def html_list(lines: Sequence[str], kind: str = "facts") -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    title = f"<h2>{html.escape(table.title)}</h2>"
    return f"{title}\n<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def _html_cell(text: str) -> str:
    kind = ' class="text"' if len(text) > 40 or text.isupper() else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _html_picture(caption: str, data: bytes) -> str:
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    words = html.escape(caption)
    return f'<figure><img alt="{words}" src="{source}"><figcaption>{words}</figcaption></figure>'
