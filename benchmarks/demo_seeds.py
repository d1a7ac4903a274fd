"""Does the demo show its gain on any machine? `pi05-rl demo` once a seed and processor, nothing pinned.

    python benchmarks/demo_seeds.py [--output outputs/demo_seeds] [--seeds 11 12 13 14 15] [--jobs 1]

A seed is that of recording, training and evaluation; "own" runs with the machine's vector instructions, "default"
without (``ATEN_CPU_CAPABILITY=default``), as on another machine. Prints the table and writes it into docs/results.md;
results lie in ``--results``, and what lies there is not computed again (``--report-only``: nothing else is done).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from docs_section import replace_section

from lerobot_policy_pi05_rl.demo.intervals import successes_per_1000_steps, throughput_ratio

PROCESSORS = {"own": {}, "default": {"ATEN_CPU_CAPABILITY": "default"}}
RESULTS = Path(__file__).with_name("results") / "demo_seeds"


def main() -> None:
    """Run the missing demos, then report all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/demo_seeds"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--jobs", type=int, default=1, help="demos at once; each uses two cores for part of its time")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    if not args.report_only:
        runs = [(seed, processor) for seed in args.seeds for processor in PROCESSORS]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(partial(run_demo, args), runs))
    text = table(args.results)
    print(text)
    replace_section(Path("docs/results.md"), "demo_seeds", text)


def run_demo(args: argparse.Namespace, run: tuple[int, str]) -> None:
    """One demo, unless its result is there.

    Raises:
        subprocess.CalledProcessError: it failed; its log says why.
    """
    seed, processor = run
    kept, folder = args.results / processor / f"seed{seed}.json", args.output / processor / f"seed{seed}"
    if kept.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lerobot_policy_pi05_rl.demo.run", "--output", folder, "--seed", str(seed)]
    with (folder / "demo.log").open("a") as log:
        print(f"[DEMO SEEDS] seed {seed}, {processor}: {log.name}", flush=True)
        environment = {**os.environ, **PROCESSORS[processor]}
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "results.json", kept)


def table(results: Path) -> str:
    """Markdown: successes per 1000 steps of every demo, and RECAP over cloning with its 95 % interval."""
    head = ["| seed | vector instructions | cloning | RECAP | RECAP over cloning |", f"| ---: | --- |{' ---: |' * 3}"]
    rows, ratios = [], []
    for file in sorted(results.glob("*/seed*.json"), key=lambda file: (file.stem, file.parent.name)):
        both = {name: (run["success"], run["steps"]) for name, run in json.loads(file.read_text()).items()}
        rates = {name: successes_per_1000_steps(*cell) for name, cell in both.items()}
        ratio, low, high = throughput_ratio(*both["recap"], *both["bc"])
        ratios.append(ratio)
        seed, used = file.stem.removeprefix("seed"), "yes" if file.parent.name == "own" else "no"
        rows.append(
            f"| {seed} | {used} | {rates['bc']:.1f} | {rates['recap']:.1f} | {ratio:.2f} [{low:.2f}, {high:.2f}] |"
        )
    if not ratios:
        return "No demo was run."
    extremes = f"{len(ratios)} demos; smallest ratio {min(ratios):.2f}, largest {max(ratios):.2f}."
    return "\n".join([*head, *rows, "", extremes])


if __name__ == "__main__":
    main()
