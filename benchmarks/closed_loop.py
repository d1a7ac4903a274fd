"""Does offline RL beat cloning on the same data? Train every variant on every mix and seed, evaluate, compare.

    python benchmarks/closed_loop.py --output outputs/closed_loop [--mixes demo recovers metaworld] [--seeds 0 1 2 3 4]

Jobs (record, train, label, evaluate) run side by side, one thread each, as many as there are cores. A finished job is
never repeated and an interrupted training resumes, so the same command goes on after an interruption; it also
redraws table and picture from what is there (``--report-only``: nothing else).
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from closed_loop_report import write_report
from tqdm import tqdm

CONFIG = Path("configs/demo.json")
MIXES = {
    "demo": ["--mix", "demo"],
    "recovers": ["--mix", "recovers"],
    "metaworld": ["--simulator", "metaworld"],
}
MIX_OVERRIDES: dict[str, list[str]] = {"demo": [], "recovers": [], "metaworld": []}
EVAL_ENV = {"demo": "panda_pick_cube", "recovers": "panda_pick_cube", "metaworld": "metaworld_tasks"}
LABELING = "recap"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        overrides: of the training configuration.
        trained_as: the variant whose training this one only evaluates otherwise.
        pinned: learns from the labeling that the ``recap`` run's critics made.
        evaluation: overrides of the policy at evaluation.
    """

    label: str
    overrides: tuple[str, ...] = ()
    trained_as: str | None = None
    pinned: bool = False
    evaluation: tuple[str, ...] = ()


NO_CRITIC = "--policy.train_critic=false"
VARIANTS = {
    "bc": Variant("behaviour cloning", ("--policy.policy_extraction=none",)),
    "filtered": Variant("filtered cloning (outcome)", ("--policy.policy_extraction=filtered",)),
    "awr": Variant("AWR", ("--policy.policy_extraction=weighted", NO_CRITIC), pinned=True),
    "recap": Variant("RECAP"),
    "recap_beta2": Variant("RECAP, β = 2", trained_as="recap", evaluation=("--guidance_scale=2",)),
    "filtered_frames": Variant(
        "filtered cloning (advantage)",
        ("--policy.policy_extraction=filtered", "--policy.filter_by=advantage", NO_CRITIC),
        pinned=True,
    ),
    "recap_pinned": Variant("RECAP, pinned labels", (NO_CRITIC,), pinned=True),
    "recap_whole": Variant(
        "RECAP, A = G − V, one critic", ("--policy.advantage_n_step=null", "--policy.critic_folds=1")
    ),
    "recap_td": Variant("RECAP, TD critic", ("--policy.critic_target=td",)),
}
MAIN = ("bc", "filtered", "awr", "recap", "recap_beta2")


@dataclass
class Job:
    """A command that makes ``output``; it may start when all of ``needs`` exist."""

    name: str
    command: list[str]
    output: Path
    log: Path
    needs: list[Path] = field(default_factory=list)


def make_jobs(args: argparse.Namespace) -> list[Job]:
    """Every job in the order in which they should start: seed by seed, so that early results compare all variants."""
    jobs: dict[str, Job] = {}
    for seed in args.seeds:
        for mix in args.mixes:
            for job in cell_jobs(args, mix, seed):
                jobs.setdefault(job.name, job)
    return list(jobs.values())


def cell_jobs(args: argparse.Namespace, mix: str, seed: int) -> list[Job]:
    """The jobs of one mix and seed."""
    cell = args.output / mix / f"seed{seed}"
    dataset, python = cell / "dataset", [sys.executable, "-m"]
    package = "lerobot_policy_pi05_rl"
    record = [*python, f"{package}.demo.record", "--root", str(dataset), "--seed", str(seed)]
    record += ["--episodes", str(args.demonstrations), *MIXES[mix]]
    jobs = [Job(f"{mix}/{seed}/record", record, dataset / "meta" / "info.json", cell / "record.log")]
    labels = cell / "dataset.labels" / f"{LABELING}.parquet"
    for name in args.variants:
        variant = VARIANTS[name]
        trained = variant.trained_as or name
        run = cell / trained
        finished = run / "checkpoints" / f"{args.steps:06d}" / "pretrained_model"
        train = [*python, f"{package}.offline_learner", str(CONFIG), "--resume=true", f"--seed={seed}"]
        train += [f"--dataset.root={dataset}", f"--output_dir_offline={run}", f"--policy.offline_steps={args.steps}"]
        train += ["--save_freq=500", "--log_freq=100", "--keep_last_checkpoints=1"]
        train += [*MIX_OVERRIDES[mix], *VARIANTS[trained].overrides]
        if variant.pinned:
            train.append(f"--dataset.labeling={LABELING}")
            label = [*python, f"{package}.labeler", str(cell / "recap"), "--name", LABELING]
            critic = cell / "recap" / "checkpoints" / f"{args.steps:06d}" / "pretrained_model"
            jobs.append(Job(f"{mix}/{seed}/label", label, labels, cell / "label.log", [critic]))
        needs = [dataset / "meta" / "info.json", *([labels] if variant.pinned else [])]
        jobs.append(Job(f"{mix}/{seed}/{trained}/train", train, finished, cell / f"{trained}.log", needs))
        result = cell / f"eval_{name}.json"
        evaluate = [*python, f"{package}.demo.evaluate", str(finished), "--env-type", EVAL_ENV[mix]]
        evaluate += ["--episodes", str(args.episodes), "--seed", str(10_000 * (seed + 1)), "--output", str(result)]
        evaluate += [f"--override={override}" for override in variant.evaluation]
        jobs.append(Job(f"{mix}/{seed}/{name}/evaluate", evaluate, result, cell / f"eval_{name}.log", [finished]))
    return jobs


def run_jobs(jobs: list[Job], parallel: int, report: Callable[[], None]) -> list[str]:
    """Run what is not done yet, at most ``parallel`` at once; returns the names of jobs that failed."""
    waiting = [job for job in jobs if not job.output.exists()]
    running: dict[subprocess.Popen, Job] = {}
    failed: list[str] = []
    threads = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="Jobs", unit="job") as bar:
        try:
            while waiting or running:
                ready = [job for job in waiting if all(path.exists() for path in job.needs)]
                for job in ready[: parallel - len(running)]:
                    waiting.remove(job)
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    with job.log.open("a") as log:
                        process = subprocess.Popen(
                            job.command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads}
                        )
                    running[process] = job
                    bar.write(f"[CLOSED LOOP] {job.name} started; log: {job.log}")
                if not running:
                    failed += [job.name for job in waiting]  # what they need was never made
                    break
                time.sleep(1.0)
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    if process.returncode or not job.output.exists():
                        failed.append(job.name)
                        bar.write(
                            f"[CLOSED LOOP] {job.name} FAILED with exit code {process.returncode}; see {job.log}"
                        )
                        continue
                    bar.update()
                    bar.write(f"[CLOSED LOOP] {job.name} done")
                    if job.name.endswith("/evaluate"):
                        report()
        finally:
            for process in running:
                process.terminate()
                process.wait()
    return failed


def main() -> int:
    """Run the benchmark; exit code 1 if a job failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/closed_loop"))
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--variants", nargs="+", default=list(MAIN), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=1500, help="optimization steps of every training")
    parser.add_argument("--episodes", type=int, default=100, help="evaluation episodes")
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--report-only", action="store_true", help="table and picture from what is there")
    args = parser.parse_args()
    labels = {name: VARIANTS[name].label for name in VARIANTS}

    def report() -> None:
        write_report(args.output, labels)

    failed = [] if args.report_only else run_jobs(make_jobs(args), args.jobs, report)
    report()
    print((args.output / "table.md").read_text())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
