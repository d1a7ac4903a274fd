"""Small pieces of HTML. Every text that comes from outside goes through :func:`escape`."""

import html
from collections.abc import Sequence

SWATCHES = {
    "line": '<path class="line {0}" d="M1 6H25"/>',
    "bar": '<rect class="bar {0}" x="1" y="1" width="24" height="10"/>',
}


def escape(value: object) -> str:
    """Text → HTML, safe inside attributes too."""
    return html.escape(str(value), quote=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, total: bool = False) -> str:
    """A table that falls apart into labelled lines on a phone; the last row is a sum if ``total``."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = []
    for position, row in enumerate(rows):
        cells = "".join(
            f'<td data-label="{escape(header)}">{escape(cell)}</td>' for header, cell in zip(headers, row, strict=True)
        )
        is_total = total and position == len(rows) - 1
        body.append(f"<tr{' class="total"' if is_total else ''}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A definition list; the values are HTML."""
    return '<dl class="facts">' + "".join(f"<dt>{escape(key)}</dt><dd>{value}</dd>" for key, value in pairs) + "</dl>"


def tiles(pairs: Sequence[tuple[str, str]]) -> str:
    """(number, what it is) side by side."""
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for value, name in pairs)
    return f'<ul class="tiles">{items}</ul>'


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """(``line`` or ``bar``, CSS classes, text) entries above a chart."""
    items = "".join(
        f'<li><svg width="26" height="12" aria-hidden="true">{SWATCHES[kind].format(classes)}</svg>{escape(text)}</li>'
        for kind, classes, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def figure(chart: str, caption: str, *, title: str = "", legend: str = "") -> str:
    """A chart with its title, legend and the sentence that says how to read it."""
    heading = f"<h4>{escape(title)}</h4>" if title else ""
    return f"<figure>{heading}{legend}{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def charts(figures: Sequence[str]) -> str:
    """Figures side by side as the width allows."""
    return f'<div class="charts">{"".join(figures)}</div>'


def section(title: str, *content: str) -> str:
    """A section of the page."""
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"
