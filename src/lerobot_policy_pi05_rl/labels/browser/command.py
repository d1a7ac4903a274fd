"""``pi05-rl label CONFIG --browser``: serve the page until it is ended, then say what was reached."""

import asyncio
import os
import sys
import webbrowser

from ...data.labeling import Labeling
from ...data.sources import Source
from ..outcomes import unless_to_come, use_with
from .pictures import PictureBlocks
from .server import LabelPage, serve
from .session import LabelSession
from .values import curves


def browse(
    sources: list[Source], outcome_file: str | None, *, labelings: list[Labeling], port: int | None = None
) -> None:
    """Serve the page.

    Args:
        outcome_file: of the configuration.
        labelings: one of each source, whose critic's values are shown; empty: none are.
        port: None: any that is free.

    Raises:
        UserError: the outcome file is damaged, or the port is taken.
    """
    session = LabelSession(sources, unless_to_come(outcome_file, sources))
    page = LabelPage(session, PictureBlocks(sources), curves(labelings))
    asyncio.run(serve(page, port or 0, _announce))
    print("\n" + ", ".join(f"{count} {name}" for name, count in sorted(session.counts().items())))
    if session.path.is_file():
        print(use_with(session.path, outcome_file))


def _announce(address: str) -> None:
    print(f"Label the episodes at {address}\nEach key is saved at once; Ctrl-C ends.", flush=True)
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)  # elsewhere it might take over the terminal
