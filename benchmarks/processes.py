"""Two processes of one thread beside one: samples per second in steady state, by turns.

    python benchmarks/processes.py CONFIG [--repeats 5] [--steps 100] [--fsdp] [--write-docs] [--key=value …]

Every run is ``pi05-rl offline`` of its own, with the configuration's batch per process; no evaluation, no checkpoint.
Samples per second are the run's own metric (``samples_per_s``, of all processes), the median over all but its first
log line. The ratio is taken within one round. Needs as many free cores as processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from docs_section import write_section

GOAL = 1.8
LOG_EVERY = 10


def samples_per_s(arguments: list[str], processes: int, output: Path, *, fsdp: bool) -> float:
    """Of one run.

    Raises:
        RuntimeError: it failed, with the end of what it printed.
    """
    module = ["-m", "lerobot_policy_pi05_rl.offline_learner", *arguments, f"--output_dir_offline={output}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment |= {"ACCELERATE_USE_FSDP": str(fsdp and processes > 1).lower(), "FSDP_VERSION": "2"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-2000:]}")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return median(line["samples_per_s"] for line in lines[1:])


def main() -> None:
    """Run by turns and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fsdp", action="store_true", help="parameters spread over the processes")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    args, overrides = parser.parse_known_args()
    options = [f"--policy.offline_steps={args.steps}", f"--log_freq={LOG_EVERY}", "--eval_steps=0"]
    arguments = [args.config, *options, "--save_checkpoint=false", *overrides]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.repeats):
            found = {
                count: samples_per_s(arguments, count, Path(folder) / f"{number}_{count}", fsdp=args.fsdp)
                for count in (1, args.processes)
            }
            rounds.append(found)
            print(f"round {number + 1}: {found}", flush=True)
    ratios = [found[args.processes] / found[1] for found in rounds]
    lines = ["| processes | samples/s | × one |", "| --- | ---: | ---: |"]
    lines.append(f"| 1 | {median(found[1] for found in rounds):.1f} | |")
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    lines.append(f"| {args.processes} | {median(found[args.processes] for found in rounds):.1f} | {spread} |")
    if args.processes == 2 and not args.fsdp:
        lines += ["", f"Goal {GOAL}: {'met' if median(ratios) >= GOAL else 'missed'}."]
    body = "\n".join(lines)
    print(body)
    if args.write_docs:
        write_section("processes", f"python benchmarks/processes.py {args.config} --repeats {args.repeats}", body)


if __name__ == "__main__":
    main()
