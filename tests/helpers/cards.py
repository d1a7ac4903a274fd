"""The parts of a card that tests look at."""

import re


def section(text: str, title: str) -> str:
    """What stands below a heading of the second level."""
    return re.split(r"^## ", text, flags=re.MULTILINE)[1:][_titles(text).index(title)].partition("\n")[2]


def _titles(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, flags=re.MULTILINE)


def tables(text: str) -> list[list[list[str]]]:
    """Tables → rows → cells, cut at bars without a backslash before them, as GitHub's Markdown cuts them; each row is
    as wide as its header."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    rows = [table for table in found if table]
    assert all(len(row) == len(table[0]) for table in rows for row in table)
    return [[table[0], *table[2:]] for table in rows]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shown(markdown: str) -> str:
    """What a reader sees of a code span, or of escaped text."""
    span = re.fullmatch(r"(`+) ?(.*?) ?\1", markdown.replace(r"\|", "|"))
    return span[2] if span else re.sub(r"\\(\W|_)", r"\1", markdown)
