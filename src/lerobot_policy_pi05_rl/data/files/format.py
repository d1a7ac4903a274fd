"""The format a dataset was written in, and the commands that bring an older one up to date."""

import shlex
from pathlib import Path
from typing import Any

from lerobot.datasets.dataset_metadata import CODEBASE_VERSION
from lerobot.datasets.utils import INFO_PATH
from packaging.version import InvalidVersion, Version

from ...errors import DatasetError

CONVERT_V21 = "python -m lerobot.scripts.convert_dataset_v21_to_v30"
CONVERT_V20 = "python -m lerobot_policy_pi05_rl.data.files.format_v20"


def check_format(version: Any, root: Path, repo_id: str) -> None:
    """
    Raises:
        DatasetError: LeRobot does not read this version; the message says what makes it readable.
    """
    try:
        found = Version(str(version))
    except InvalidVersion:
        raise DatasetError(
            f"{root / INFO_PATH}: codebase_version is {version!r}; datasets that LeRobot reads say {CODEBASE_VERSION}"
        ) from None
    if found.major > Version(CODEBASE_VERSION).major:
        raise DatasetError(
            f"it is of format {version}, newer than {CODEBASE_VERSION}, which this LeRobot reads; "
            "update lerobot (pip install --upgrade lerobot)"
        )
    if found.major < Version(CODEBASE_VERSION).major:
        raise DatasetError(old_format(str(version), root, repo_id, there=True))


def old_format(version: str, root: Path, repo_id: str, *, there: bool) -> str:
    """What to do with a dataset of an older format, as the commands for exactly this one.

    Args:
        root: where it lies, or will lie.
        there: it lies there; otherwise it is on the Hub alone.
    """
    root = root.absolute()
    convert = f"{CONVERT_V21} --repo-id={shlex.quote(repo_id)} --root={shlex.quote(str(root))} --push-to-hub=false"
    which = f"{'it' if there else f'the dataset {repo_id} on the Hub'} is of format {version}"
    old = root.with_name(f"{root.name}_old")
    rival = f"Move {old} away first: the script would put it in this dataset's place. " if old.is_dir() else ""
    result = f"the old one is kept as {old}"
    parsed = Version(version)
    if parsed >= Version("2.1"):
        return f"{which}; LeRobot reads {CODEBASE_VERSION}. {rival}Convert it ({result}): {convert}"
    if parsed.major == 2:
        fetch = (
            ""
            if there
            else (
                f"hf download {shlex.quote(repo_id)} --repo-type dataset --revision {version} --local-dir "
                f"{shlex.quote(str(root))} && "
            )
        )
        first = f"{CONVERT_V20} --root={shlex.quote(str(root))}"
        return f"{which}; LeRobot reads {CODEBASE_VERSION}. {rival}Convert it ({result}): {fetch}{first} && {convert}"
    return (
        f"{which}; LeRobot reads {CODEBASE_VERSION} and converts from v2.1 only. Convert it to v2.1 with the "
        "scripts of an older LeRobot (lerobot/common/datasets/v2), or record it anew"
    )
