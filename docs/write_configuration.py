"""``docs/configuration.md`` and ``config/keys.json`` out of what is said beside the fields.

``make configuration`` prints the page, and with ``--names`` what ``config/names.py`` reads, to where they lie.
"""

import json
import sys
import typing
from typing import Any

from lerobot_policy_pi05_rl.config.earlier_keys import ALIASES, EARLIER
from lerobot_policy_pi05_rl.config.leaves import Leaf, leaves
from lerobot_policy_pi05_rl.config.train import PI05RLTrainConfig
from lerobot_policy_pi05_rl.options import READ, REFUSED, WARNED, Option

LONG = 60
MACHINES = {"dataset.video_backend": "torchcodec, else pyav", "eval.batch_size": "by cores"}


def counts() -> dict[str, int]:
    """Status → how many keys have it."""
    found = dict.fromkeys((READ, WARNED, REFUSED), 0)
    for leaf in leaves(PI05RLTrainConfig):
        found[_said(leaf).status] += 1
    return found


def page() -> str:
    """The whole page."""
    found = counts()
    return "\n".join(
        [
            "# Every key of the configuration",
            "",
            "Written by `make configuration`. *read*: any run reads it (runs), the offline learner alone (offline),",
            "or the online learner and its actors (online). *warned*: another value than the default is accepted, has",
            "no effect, and is answered with one warning that says what to use. *refused*: another value is an error.",
            f"{found[READ]} read, {found[WARNED]} warned, {found[REFUSED]} refused. Below `env` come the keys of the",
            "environment's own type.",
            "",
            "| key | type | default | read, or what answers it | another value when a run goes on |",
            "| --- | --- | --- | --- | --- |",
            *map(_row, leaves(PI05RLTrainConfig)),
            "",
            "## Names that lead to a key",
            "",
            "| name | key |",
            "| --- | --- |",
            *(f"| `{alias}` | `{name}` |" for alias, name in ALIASES.items()),
            "",
            "## Keys of earlier versions",
            "",
            "Keys of LeRobot's SAC policy and RL server (0.3 to 0.6) and of earlier π0.5 RL learners. They are",
            "accepted, with all keys below them; a value other than null is answered with one warning.",
            "",
            "| key | what to use |",
            "| --- | --- |",
            *(f"| `{name}` | {advice} |" for name, advice in EARLIER.items()),
            "",
        ]
    )


def names_file() -> str:
    """``keys.json``: a line for each key."""
    rows = []
    for leaf in leaves(PI05RLTrainConfig):
        key = _said(leaf)
        row = (leaf.name, _type(leaf.type), _default(leaf), key.readers if key.status == READ else "")
        bounds = [key.least, key.above, key.most] if (key.least, key.above, key.most) != (None, None, None) else []
        rows.append(json.dumps([text.replace("\\|", "|").strip("`") for text in row] + bounds))
    keys, aliases, earlier = ",\n".join(rows), json.dumps(list(ALIASES)), json.dumps(list(EARLIER))
    return f'{{"keys": [\n{keys}\n],\n"aliases": {aliases},\n"earlier": {earlier}}}\n'


def _said(leaf: Leaf) -> Option:
    assert leaf.option is not None  # a test finds a key of which nothing is said
    return leaf.option


def _default(leaf: Leaf) -> str:
    default = MACHINES.get(leaf.name) or _text(leaf.default)
    return default if len(default) <= LONG else "as in LeRobot"


def _row(leaf: Leaf) -> str:
    key = _said(leaf)
    default = _default(leaf)
    answer = f"read: {key.readers}" if key.status == READ else f"{key.status}: {key.advice}"
    return f"| `{leaf.name}` | {_type(leaf.type)} | {default} | {answer} | {key.on_resume} |"


def _text(value: Any) -> str:
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))
    return text.replace("|", "\\|") if isinstance(value, str | int | float | bool) else f"`{text}`".replace("|", "\\|")


def _type(hint: Any) -> str:
    text = str(getattr(hint, "__name__", hint)) if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    for module in ("typing.", "pathlib.", "lerobot.configs.types.", "lerobot.transforms.transforms."):
        text = text.replace(module, "")
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(names_file() if "--names" in sys.argv else page(), end="")
