"""``pi05-rl <verb>``: the verbs. Bad input ends in one line on stderr and exit code 2; ``--debug`` shows a traceback.

Nothing here is imported before it is needed: help, a misspelt verb and a misspelt key are answered without torch.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from .command.help import HELP, help_of, own_options, unknown_verb, usage
from .command.help import VERBS as VERBS
from .command.run import BAD_INPUT, reader_may_leave, run_verb, set_up_logging, split_debug
from .config.arguments import split_config_path
from .config.names import check_file, check_option_names

# Verb → the module whose `main(arguments)` is it. All of them import torch and LeRobot.
MODULES = {
    "init": "init.command",
    "offline": "offline_learner",
    "learner": "online.learner.learner",
    "actor": "online.actor.actor",
    "label": "labels.command",
    "cache": "data.command",
    "report": "report.build",
    "plan": "plan.command",
    "demo": "demo.run",
    "demo-online": "demo.online",
}
TRAINING = ("offline", "learner")  # plan counts what they need where memory does not suffice
# Of these the arguments are a configuration and overrides; of the others the first may be a configuration, and options
# of their own stand among the overrides.
CONFIG_ALONE, CONFIG_FIRST, WITH_OWN = (
    ("offline", "learner", "cache"),
    ("actor", "label", "plan"),
    ("init", "demo-online"),
)


def main(argv: list[str] | None = None) -> None:
    """Console entry point.

    Raises:
        SystemExit: always, with the exit code.
    """
    with reader_may_leave():
        answer(list(sys.argv[1:] if argv is None else argv))


def answer(argv: list[str]) -> None:
    """:func:`main` of these arguments."""
    debug, arguments = split_debug(argv)
    if not arguments or arguments in HELP:
        print(usage())
        raise SystemExit(0 if arguments else BAD_INPUT)
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(unknown_verb(verb), file=sys.stderr)
        raise SystemExit(BAD_INPUT)
    if rest in HELP:
        print(help_of(verb))
        raise SystemExit(0)
    code = run_verb(quick_check(verb), rest, debug=debug)
    if code == 0:
        importlib.import_module(".plugin", __package__)  # start-up: registers with LeRobot
        set_up_logging()
        count = describe_memory if verb in TRAINING else None
        code = run_verb(verb_function(verb), rest, debug=debug, count_memory=count)
    raise SystemExit(code)


def verb_function(verb: str) -> Callable[[list[str]], int]:
    """The verb's ``main``: arguments → exit code."""
    main: Callable[[list[str]], int] = importlib.import_module(f".{MODULES[verb]}", __package__).main
    return main


def quick_check(verb: str) -> Callable[[list[str]], int]:
    """A check of the verb's arguments that needs nothing slow to be imported."""

    def look(arguments: list[str]) -> int:
        if verb in CONFIG_ALONE:
            check_file(*split_config_path(arguments, verb))
            return 0
        path = arguments[0] if verb in CONFIG_FIRST and arguments and not arguments[0].startswith("-") else None
        if path is not None and not (verb == "label" and Path(path).is_dir()):  # a run's folder
            check_file(path)
        if verb in CONFIG_FIRST + WITH_OWN:
            mine = [each for each in arguments if verb != "init" or not each.startswith(("--robot.", "--teleop."))]
            check_option_names(mine, {"--config_path", *own_options(verb)})
        return 0

    return look


def describe_memory(arguments: list[str]) -> str:
    """What ``plan`` counts for a run's arguments."""
    from .plan.command import describe_memory as count  # start-up, and only a run out of memory asks

    return count(arguments)
