"""What both cards are made with: the templates, text that cannot break Markdown or a table, and whose a card is.

A task or a dataset may be called anything. Whatever a person has named goes through :func:`plain` or :func:`code`,
in a table also through :func:`cell`, in a command through :func:`shell`; the front matter is written by a YAML writer.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.repocard_data import CardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..runtime.files import replacing

CARD = "README.md"  # what the Hub shows of a repository
OWN_NAMESPACE = "local"  # of datasets that lie on this machine alone
_SEAL = "<!-- card {digest}: written by lerobot_policy_pi05_rl, which never replaces one that was edited -->\n"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$#&])")


def render(template: str, front_matter: CardData, values: Mapping[str, Any]) -> str:
    """The sealed card: the front matter, then the template with ``values``.

    Raises:
        jinja2.TemplateError: the template asks for a value that is not there.
    """
    body = _environment().get_template(template).render(values)
    return sealed(f"---\n{front_matter.to_yaml()}\n---\n\n{body}")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": plain, "code": code, "cell": cell, "shell": shell, "python": python}
    environment.filters |= {"count": "{:,}".format, "short": "{:.4g}".format}
    return environment


def one_line(text: str) -> str:
    """The text without line breaks, which would end a table's row or a command."""
    return " ".join(text.split())


def plain(text: str) -> str:
    """The text as Markdown that shows exactly it, also in a table."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """The text as a code span, between more backticks than it has in a row."""
    text = one_line(text) or '""'
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def cell(markdown: str) -> str:
    """A code span for a table, which GitHub's Markdown cuts at every bar before it looks for code."""
    return markdown.replace("|", r"\|")


def shell(text: str) -> str:
    """The text as one word of a shell command, on one line."""
    return shlex.quote(one_line(text))


def python(text: str) -> str:
    """The text as a Python literal."""
    return json.dumps(text, ensure_ascii=False)


def hub_id(name: str) -> str | None:
    """``name`` if the Hub may have a repository of that name; None: it is a path, or of this machine alone."""
    there = _HUB_ID.fullmatch(name) and not name.startswith(f"{OWN_NAMESPACE}/")
    return name if there else None


def public_name(path: str | Path) -> str:
    """A path for strangers: as it is if it is relative, else without the folders that it lies in on this machine.

    Of a checkpoint and of a replay the run's folder stays, which tells one from another."""
    path = Path(path)
    if not path.is_absolute() and not str(path).startswith(("~", "..")):
        return str(path)
    parts = path.parts
    runs = [number for number, part in enumerate(parts) if part in ("checkpoints", "replay") and number > 1]
    return str(Path(*parts[runs[-1] - 1 :])) if runs else path.name


def sealed(text: str) -> str:
    """The text with a line that tells whether somebody has changed it since."""
    return f"{text}\n" + _SEAL.format(digest=_digest(text))


def is_untouched(card: str) -> bool:
    """Whether a card is one of ours, as it was written."""
    text = card[: card.rfind("\n<!-- card ")]
    return card == sealed(text)


def replace_card(path: Path, card: str) -> None:
    """Write a card, unless the one that is there was edited, or is the same.

    Raises:
        OSError: the disk is full or broken.
    """
    if path.exists():
        there = path.read_text(encoding="utf-8", errors="replace")
        if there == card or not is_untouched(there):
            return
    with replacing(path) as aside:
        aside.write_text(card, encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
