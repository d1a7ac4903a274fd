"""The commands and paths of README and docs, read as a shell would read them.

A command is a line of a ``bash`` block, or a quoted one in the text that has arguments (``pi05-rl plan CONFIG``; the
name of a program or of a verb alone is no command).
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Template

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = (*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md")))
PROGRAMS = (r"pi05-rl [a-z-]+", "python", "make", "pip", "hf", "accelerate", "openssl")
QUOTED = re.compile(rf"`((?:{'|'.join(PROGRAMS)}|lerobot-\w+) [^`]+)`")
PATH = re.compile(r"`([^`\s]+\.(?:py|json|yaml|md))`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")  # relative ones: no scheme
GLUE = re.compile(r"^(for .*; do|done|read -p .*|mkdir -p .*|export \w+=.*)$")


@dataclass(frozen=True)
class Command:
    """One command, and where it stands."""

    document: str
    block: int  # of the document; 0: in the text
    text: str  # without continuation, comment and surrounding space

    def words(self, variables: dict[str, str]) -> list[str]:
        """As a shell splits them: ``$NAME`` is replaced, then split at spaces."""
        found = []
        for word in shlex.split(self.text):
            value = Template(word).safe_substitute(variables)
            found += [word] if value == word else value.split()
        return found


def _lines(block: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", "", block)
    return [line for raw in joined.splitlines() if (line := re.sub(r"\s+#\s.*$|^#\s.*$", "", raw).strip())]


def commands_of(document: Path) -> tuple[list[Command], dict[int, dict[str, str]]]:
    """The commands in their order, and per block its shell variables."""
    found, variables = [], {}
    text = document.read_text()
    for number, block in enumerate(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL), 1):
        variables[number] = {}
        for line in _lines(block):
            if re.match(r"^[A-Z]+=", line):
                variables[number] |= dict(word.split("=", 1) for word in shlex.split(line))
            elif not GLUE.match(line):
                found.append(Command(document.name, number, line))
    outside = _outside_blocks(text)
    found += [Command(document.name, 0, " ".join(quoted.split())) for quoted in QUOTED.findall(outside)]
    return found, variables


def _outside_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def paths_of(document: Path) -> list[str]:
    """The files of code, configuration and documentation that the text names, in their order."""
    return list(dict.fromkeys(PATH.findall(_outside_blocks(document.read_text()))))


def links_of(document: Path) -> list[str]:
    """The targets of its links and pictures that lie in the repository, relative to the document."""
    return list(dict.fromkeys(LINK.findall(_outside_blocks(document.read_text()))))
