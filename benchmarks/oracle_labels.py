"""Labels as good as they can be, for a recording of the scripted operators: what is lost behind the labels?

    python benchmarks/oracle_labels.py DATASET --name oracle

Positive are the frames of the `fast` operator and those of `recovers` after it turned back to the cube: what the
recording's recipe knows and no learner may read. Written as a labeling (``DATASET.labels/oracle.parquet``).
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.data.episodes import label_episodes
from lerobot_policy_pi05_rl.data.files.folder import open_dataset
from lerobot_policy_pi05_rl.data.labeling import Labeling, frame_columns, labeling_path, write_labeling
from lerobot_policy_pi05_rl.data.sources import dataset_fingerprint, load_source
from lerobot_policy_pi05_rl.demo.recorder import RECIPE_FILE
from lerobot_policy_pi05_rl.returns import RewardConfig


def main() -> None:
    """Write the labeling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--name", default="oracle")
    args = parser.parse_args()
    recipe = json.loads((args.dataset / RECIPE_FILE).read_text())
    source = load_source(recipe["repo_id"], open_dataset(recipe["repo_id"], args.dataset), "pyav")
    labels = label_episodes([source], RewardConfig(), PI05RLConfig(device="cpu"))
    turns = recipe.get("recovery_start") or [None] * len(recipe["operators"])
    positive = np.zeros(len(source.columns["index"]), dtype=bool)
    for episode in labels.episodes:
        operator, turn = recipe["operators"][episode.index], turns[episode.index]
        if operator == "fast":
            positive[episode.start : episode.end] = True
        elif operator == "recovers" and turn is not None:
            positive[episode.start + turn : episode.end] = True
    columns = {
        **frame_columns(0, source, labels),
        "value": np.zeros(len(positive), dtype=np.float32),
        "fold": np.full(len(positive), -1, dtype=np.int8),
        "advantage": np.where(positive, 1.0, -1.0).astype(np.float32),
        "positive": positive,
        "tag": positive.astype(np.int8),
    }
    meta = {
        "name": args.name,
        "dataset": {
            "repo_id": source.name,
            "root": str(args.dataset.absolute()),
            "fingerprint": dataset_fingerprint(source),
        },
        "critic": {"path": "the recording's recipe", "fingerprint": "oracle"},
        "n_step": None,
        "trace": None,
        "discount": 1.0,
        "positive_fraction": {task: float(positive.mean()) for task in labels.tasks},
        "thresholds": dict.fromkeys(labels.tasks, 0.0),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = labeling_path(source, args.name)
    write_labeling(path, Labeling(columns, meta))
    print(f"{path}: {positive.mean():.1%} of {len(positive)} frames are positive")


if __name__ == "__main__":
    main()
