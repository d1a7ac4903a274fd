"""Is the policy better after online RL? `pi05-rl demo-online` once a seed, all from one offline checkpoint.

    python benchmarks/online_seeds.py [--demo outputs/demo] [--output outputs/online_seeds] [--seeds 0 1 2]

A seed is that of both learners, their actors and the start states of the evaluation. Prints the pooled table and
writes it into docs/online.md; evaluations lie in ``--results``, and what lies there is not computed again
(``--report-only``: nothing else is done). The offline demo comes first where it has not been run.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from closed_loop_report import Cells, every, per_seed, ratio, summarize, throughput, with_interval
from docs_section import replace_section
from lerobot.utils.utils import init_logging

from lerobot_policy_pi05_rl.demo.online import LABELS, RUNS
from lerobot_policy_pi05_rl.demo.online import main as demo_online
from lerobot_policy_pi05_rl.demo.run import checkpoint_path
from lerobot_policy_pi05_rl.demo.run import main as demo_offline


def main() -> None:
    """Run the missing seeds, then report all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--output", type=Path, default=Path("outputs/online_seeds"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/online_seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    init_logging()
    for seed in () if args.report_only else args.seeds:
        if not (args.results / f"seed{seed}").is_dir():
            run_seed(args, seed)
    text = table(read_results(args.results))
    print(text)
    replace_section(Path("docs/online.md"), "online_seeds", text)


def run_seed(args: argparse.Namespace, seed: int) -> None:
    """Learners, actors and evaluations of one seed, and its evaluations copied into ``args.results``."""
    if not checkpoint_path(args.demo, RUNS["before"]).is_dir():
        demo_offline(["--output", str(args.demo)])
    folder = args.output / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("dataset", RUNS["before"]):
        if not (folder / part).exists():
            (folder / part).symlink_to((args.demo / part).resolve())
    demo_online(["--output", str(folder), "--seed", str(seed)])
    kept = args.results / f"seed{seed}.partial"
    kept.mkdir(parents=True, exist_ok=True)
    for name, run in RUNS.items():
        (evaluation,) = folder.glob(f"eval_{run}_*.json")
        shutil.copyfile(evaluation, kept / f"eval_{name}.json")
    kept.rename(args.results / f"seed{seed}")


def read_results(folder: Path) -> dict[str, Cells]:
    """Policy → seed → success and steps of its episodes."""
    results: dict[str, Cells] = {name: {} for name in RUNS}
    for file in sorted(folder.glob("seed*/eval_*.json")):
        data, seed = json.loads(file.read_text()), int(file.parent.name.removeprefix("seed"))
        cell = (np.array(data["success"], dtype=bool), np.array(data["steps"]))
        results[file.stem.removeprefix("eval_")][seed] = [cell]
    return results


def table(results: dict[str, Cells]) -> str:
    """Markdown; intervals resample seeds and episodes, ratios the same seeds of both."""
    lines = ["| policy | success | mean steps | successes per 1000 steps | × offline | of each seed |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | --- |"]
    for name, cells in results.items():
        row = summarize(name, cells, {})
        steps = np.concatenate([steps for _, steps in every(cells)]).mean()
        times = None if name == "before" else ratio(cells, results["before"], row["seeds"], throughput)
        shown = [with_interval(row["success"], 2), f"{steps:.1f}", with_interval(row["per_1000_steps"], 1)]
        lines.append(f"| {LABELS[name]} | {' | '.join([*shown, with_interval(times, 2), per_seed(row)])} |")
    seeds, episodes = len(results["before"]), sum(len(won) for won, _ in results["before"].values())
    return "\n".join([*lines, "", f"{seeds} seeds, {episodes} episodes of each policy, 95 % intervals."])


if __name__ == "__main__":
    main()
