"""Which frames does a labeling call positive? By each advantage estimator, against what the recording's recipe knows.

    python benchmarks/label_quality.py outputs/closed_loop/recovers/seed0/dataset --labeling critic

Good are the frames of the `fast` operator, and those of `recovers` after it turned back (as in ``oracle_labels.py``).
Precision: share of positive frames that are good; recall: share of good frames that are positive; then the share
of each operator's frames that is positive; `miss` is `recovers` before it turned back. Rows that end in (success)
compare with the critic's expectation of a success (``policy.advantage_baseline``). No network runs.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from lerobot_policy_pi05_rl.advantage import tag_columns
from lerobot_policy_pi05_rl.data.labeling import Columns, advantages, read_labeling, run_labels
from lerobot_policy_pi05_rl.demo.recorder import RECIPE_FILE
from lerobot_policy_pi05_rl.returns import share_of_task
from lerobot_policy_pi05_rl.thresholds import task_thresholds

HORIZONS = (0.1, 0.2, 0.25, 0.3, 0.4)  # of the task's longest episode
SMOOTHING = (0.0, 0.1, 0.2, 0.3)
LAMBDAS = (0.7, 0.85, 0.95)


def operators(dataset: Path, columns: Columns) -> np.ndarray:
    """(frames,) who acts."""
    recipe = json.loads((dataset / RECIPE_FILE).read_text())
    turns = recipe.get("recovery_start") or [None] * len(recipe["operators"])
    names = np.array([recipe["operators"][episode] for episode in columns["episode_index"]], dtype=object)
    for row, (episode, frame) in enumerate(zip(columns["episode_index"], columns["frame_index"], strict=True)):
        if names[row] == "recovers" and turns[episode] is not None and frame < turns[episode]:
            names[row] = "miss"
    return names


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--labeling", default="critic", help="its name, or the folder of the run that made it")
    parser.add_argument("--positive-fraction", type=float, default=0.2)
    args = parser.parse_args()
    folder = run_labels(args.labeling)
    beside = args.dataset.with_name(f"{args.dataset.name}.labels") / f"{args.labeling}.parquet"
    labeling = read_labeling(beside if folder is None else next(folder.glob("*.parquet")))
    columns, who = labeling.columns, operators(args.dataset, labeling.columns)
    lengths = pd.Series(columns["frame_index"]).groupby(columns["task"]).max() + 1
    good = np.isin(who, ["fast", "recovers"])

    def steps(share: float) -> dict[str, int] | None:
        return {task: share_of_task(share, length) for task, length in lengths.items()} if share else None

    ahead = {"G − V": {}} | {f"horizon {share:g}": {"n_steps": steps(share)} for share in HORIZONS}
    ahead |= {f"λ = {lam:g}": {"gae_lambdas": dict.fromkeys(lengths.index, lam)} for lam in LAMBDAS}
    choices = {(name, share): {**one, "smoothing": steps(share)} for share in SMOOTHING for name, one in ahead.items()}
    print(f"mean absolute error of the value: {np.nanmean(np.abs(columns['return'] - columns['value'])):.2f}")
    rows = {}
    for baseline, ((name, share), choice) in itertools.product(("all", "success"), choices.items()):
        name = f"{name}, mean over {share:g}" if share else name
        name += " (success)" if baseline == "success" else ""
        found = advantages(columns, baseline=baseline, **choice, discount=labeling.meta["discount"])
        table = {**columns, "advantage": found}
        thresholds = task_thresholds([table], dict.fromkeys(lengths.index, args.positive_fraction))
        positive = tag_columns(table, thresholds)["positive"]
        shares = {operator: positive[who == operator].mean() for operator in sorted(set(who))}
        rows[name] = {"precision": good[positive].mean(), "recall": positive[good].mean(), **shares}
    print(pd.DataFrame(rows).T.round(2).to_string())


if __name__ == "__main__":
    main()
