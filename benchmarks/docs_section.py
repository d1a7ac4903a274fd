"""Sections of docs/performance.md, each written by the benchmark that measured it."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def write_section(name: str, command: str, body: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` by the command and what it printed.

    Raises:
        ValueError: the page has no such section.
    """
    text, begin, end = PAGE.read_text(), f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{PAGE} has no section {begin} … {end}")
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    PAGE.write_text(f"{before}{begin}\n`{command}`\n\n{body}\n{end}{after}")
