"""Sections of the documents that benchmarks write: what stands between ``<!-- name -->`` and ``<!-- /name -->``."""

from pathlib import Path

PERFORMANCE = Path(__file__).parents[1] / "docs" / "performance.md"


def write_section(name: str, command: str, body: str) -> None:
    """A section of docs/performance.md: the command and what it printed.

    Raises:
        ValueError: the page has no such section.
    """
    replace_section(PERFORMANCE, name, f"`{command}`\n\n{body}")


def replace_section(page: Path, name: str, body: str) -> None:
    """Replace a section of any page.

    Raises:
        ValueError: the page has no such section.
    """
    text, begin, end = page.read_text(), f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no section {begin} … {end}")
    before, rest = text.split(begin, 1)
    page.write_text(f"{before}{begin}\n{body.strip()}\n{end}{rest.split(end, 1)[1]}")
