"""What every verb needs: the console's log, one clear line for bad input, exit codes. Imports neither torch nor
LeRobot, so that what is wrong with a command is told at once."""

import importlib.util
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import BAD_INPUT, UserError, is_out_of_memory, one_line, out_of_memory_advice
from .help import HELP, help_of

DEBUG = "--debug"


def split_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether ``--debug`` is among the arguments, and the others."""
    return DEBUG in arguments, [argument for argument in arguments if argument != DEBUG]


def run_as_script(
    name: str, verb: Callable[[list[str]], int], *, count_memory: Callable[[list[str]], str] | None = None
) -> None:
    """A module's ``python -m`` way in, which does what ``pi05-rl NAME`` does.

    Raises:
        SystemExit: always, with the exit code.
    """
    debug, arguments = split_debug(sys.argv[1:])
    if arguments in HELP:
        print(help_of(name))
        raise SystemExit(0)
    keep_workers_from_the_main_module()
    set_up_logging()
    raise SystemExit(run_verb(verb, arguments, debug=debug, count_memory=count_memory))


def keep_workers_from_the_main_module() -> None:
    """Let a data-loading worker that is started with ``spawn`` not import all that the verb trains with.

    Such a worker imports the main module again, unless its name ends with ``.__main__`` (``multiprocessing.spawn``,
    ``_fixup_main_from_name``); nothing that a worker is sent is defined there.
    """
    spec = sys.modules["__main__"].__spec__
    if spec is not None and not spec.name.endswith(".__main__"):
        spec.name = f"{spec.name}.__main__"


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Who reads the output may close it, as ``head`` does: no traceback then.

    Raises:
        SystemExit: it was closed; 141, as of a program that SIGPIPE ended.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone(sys.stdout.fileno()):  # another pipe broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _reader_is_gone(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def run_verb(
    verb: Callable[[list[str]], int],
    arguments: list[str],
    *,
    debug: bool,
    count_memory: Callable[[list[str]], str] | None = None,
) -> int:
    """Run a verb; a UserError, or memory that does not suffice, becomes one line and exit code 2.

    Args:
        debug: let the error through.
        count_memory: arguments → what a step of their run needs, in words.
    """
    try:
        return verb(arguments)
    except UserError as error:
        if debug:
            raise
        reason = str(error).strip().splitlines()[-1]  # a data-loading worker puts its traceback in front
        reason = reason.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        print(f"pi05-rl: error: {reason}", file=sys.stderr)
        return BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if debug or not is_out_of_memory(error):
            raise
        counted = "" if count_memory is None else _counted(count_memory, arguments)
        print(f"pi05-rl: error: {out_of_memory_advice(error, arguments, counted)}", file=sys.stderr)
        return BAD_INPUT


def _counted(count_memory: Callable[[list[str]], str], arguments: list[str]) -> str:
    """What is counted for a run that found no memory, or why nothing is."""
    print("pi05-rl: memory does not suffice; counting what would (a minute at full size)", file=sys.stderr)
    try:
        return count_memory(arguments)
    except (UserError, MemoryError, RuntimeError) as error:
        return f"plan counts nothing: {one_line(error)}"


def set_up_logging() -> None:
    """LeRobot's console format; its noisiest warning shortened."""
    from lerobot.utils.utils import init_logging  # start-up: imports torch

    init_logging()
    logging.getLogger("lerobot.utils.import_utils").addFilter(ShortTorchcodecWarning())
    noisy_ones = ("libav", "datasets", "PIL", "matplotlib", "urllib3", "filelock", "fsspec", "asyncio")
    hub = importlib.util.find_spec("huggingface_hub.serialization._torch")
    for noisy in (*noisy_ones, hub.origin if hub else None):  # the Hub's logger bears its file's name
        if noisy is not None:
            logging.getLogger(noisy).setLevel(logging.WARNING)


class ShortTorchcodecWarning(logging.Filter):
    """Without ffmpeg's libraries LeRobot logs torchcodec's whole traceback each time it picks a video backend
    (lerobot/utils/import_utils.py); one line, once, says as much."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "torchcodec" not in record.msg:
            return True
        first, self.said = not self.said, True
        record.msg = "torchcodec cannot be loaded (install ffmpeg for faster decoding); videos are read with pyav"
        return first
