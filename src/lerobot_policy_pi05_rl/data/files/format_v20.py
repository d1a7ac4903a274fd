"""Bring a dataset of LeRobot's format v2.0 to v2.1, which LeRobot itself converts to v3.0.

python -m lerobot_policy_pi05_rl.data.files.format_v20 --root=FOLDER

The two differ in one file: v2.1 has statistics per episode. Those of columns are computed; those of pictures, which
are recorded for the whole dataset, stand for each of its episodes. ``info.json`` changes last, so that an interrupted
conversion starts over.
"""

import argparse
import json
import sys
from pathlib import Path

from lerobot.datasets.compute_stats import compute_episode_stats
from lerobot.datasets.utils import (
    INFO_PATH,
    LEGACY_EPISODES_PATH,
    LEGACY_EPISODES_STATS_PATH,
    STATS_PATH,
    serialize_dict,
)

from ...errors import DatasetError, UserError, one_line
from ...runtime.files import replacing
from .columns import read_columns
from .metadata import VISUAL

UNCOUNTED = (*VISUAL, "string", "language")


def upgrade(root: Path) -> None:
    """Write ``meta/episodes_stats.jsonl`` and the new version.

    Raises:
        DatasetError: it is no dataset of v2.0, or a file of it is missing.
    """
    try:
        info = json.loads((root / INFO_PATH).read_text())
        episodes = [
            json.loads(line) for line in (root / LEGACY_EPISODES_PATH).read_text().splitlines() if line.strip()
        ]
        recorded = json.loads((root / STATS_PATH).read_text()) if (root / STATS_PATH).is_file() else {}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{root} is not a dataset of format v2.0: {one_line(error)}") from error
    if info.get("codebase_version") != "v2.0":
        raise DatasetError(f"{root} is of format {info.get('codebase_version')}, not v2.0; nothing is changed")
    counted = {key: value for key, value in info["features"].items() if value["dtype"] not in UNCOUNTED}
    lines = []
    for episode in sorted(episodes, key=lambda row: row["episode_index"]):
        number = episode["episode_index"]
        path = root / info["data_path"].format(episode_chunk=number // info["chunks_size"], episode_index=number)
        stats = compute_episode_stats(read_columns([path], counted, vectors=tuple(counted)), counted)
        for key in info["features"].keys() & recorded.keys() - counted.keys():
            stats[key] = {**recorded[key], "count": [episode["length"]]}
        lines.append(json.dumps({"episode_index": number, "stats": serialize_dict(stats)}))
    with replacing(root / LEGACY_EPISODES_STATS_PATH) as aside:
        aside.write_text("\n".join(lines) + "\n")
    with replacing(root / INFO_PATH) as aside:
        aside.write_text(json.dumps({**info, "codebase_version": "v2.1"}, indent=4))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="LeRobot format v2.0 to v2.1, in place")
    parser.add_argument("--root", type=Path, required=True, help="the dataset's folder")
    root = parser.parse_args(arguments).root
    try:
        upgrade(root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{root} is of format v2.1 now")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
