"""One self-contained HTML page: no script, nothing loaded from elsewhere; light and dark, wide and narrow."""

from __future__ import annotations

import html
import io
import re
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>
:root {{ --ink: #222; --paper: #fff; --faint: #666; --line: #ddd; --good: #17692f; --bad: #a3231c }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ddd; --paper: #181818; --faint: #999; --line: #3a3a3a; --good: #7fd196; --bad: #f0938d }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 1.5em auto; padding: 0 1em;
  color: var(--ink); background: var(--paper) }}
h1 {{ font-size: 1.4em; overflow-wrap: anywhere }} h2 {{ font-size: 1.15em; margin-top: 2em }}
.verdict {{ font-size: 1.15em; border-left: 4px solid var(--line); padding-left: .8em }}
.scroll {{ overflow-x: auto }} code {{ overflow-wrap: anywhere }}
table {{ border-collapse: collapse; margin: 1em 0 }}
td, th {{ padding: .25em .8em; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }}
.number {{ text-align: right }} td.number {{ white-space: nowrap }}
figure.plot {{ margin: 1em 0; padding: .5em; background: #fff; border-radius: 4px; overflow-x: auto }}
figure.plot svg {{ width: 100%; min-width: 34em; height: auto }}
.samples {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5em, 1fr)); gap: .8em }}
.samples.wide {{ grid-template-columns: repeat(auto-fill, minmax(28em, 1fr)) }}
@media (max-width: 32em) {{ .samples.wide {{ grid-template-columns: 1fr }} }}
.samples figure {{ margin: 0 }} .samples img {{ width: 100%; image-rendering: auto; border-radius: 4px }}
figcaption {{ font-size: .85em; overflow-wrap: anywhere }} .good {{ color: var(--good) }} .bad {{ color: var(--bad) }}
.faint {{ color: var(--faint) }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


_NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?(x\d+| ?(%|[a-zA-Z]{1,3}))?")
"""With its unit. A text that begins with one is a text: it may be broken over lines."""


def page(title: str, body: str) -> str:
    """The whole page; `body` is HTML, `title` text."""
    return _PAGE.format(title=html.escape(title), body=body)


def table(rows: list[tuple[str, ...]]) -> str:
    """A table of texts, its first row the head; numbers stand to the right, below their heads, and it scrolls where it
    is too wide."""
    head, *rest = rows
    numbers = [any(map(_NUMBER.fullmatch, column)) for column in zip(*rest, strict=True)] or [False] * len(head)
    lines = ["<tr>" + "".join(_cell(text, "th", right) for text, right in zip(head, numbers, strict=True)) + "</tr>"]
    for row in rest:
        lines.append("<tr>" + "".join(_cell(text, "td", bool(_NUMBER.fullmatch(text))) for text in row) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _cell(text: str, tag: str, number: bool) -> str:
    start = f'<{tag} class="number">' if number else f"<{tag}>"
    return f"{start}{html.escape(text)}</{tag}>"


def svg(figure: Any) -> str:
    """A figure of matplotlib's as it stands in a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return f'<figure class="plot">{"".join(out.getvalue().partition("<svg")[1:])}</figure>'
