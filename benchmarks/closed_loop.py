"""Does offline RL beat cloning on the same data? Train every variant on every mix and seed, evaluate, compare.

    python benchmarks/closed_loop.py --output outputs/closed_loop [--mixes demo recovers metaworld] [--seeds 0 1 2 3 4]

Jobs (record, train, label, evaluate) run side by side, one thread each, as many as there are cores. A finished job is
never repeated and an interrupted training resumes, so the same command goes on after an interruption. Results of
evaluations lie in ``--results``, small enough to be kept under version control: what lies there is not computed
again, and table and picture are drawn from it (``--report-only``: nothing else is done).
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from closed_loop_report import write_report
from docs_section import replace_section
from tqdm import tqdm

CONFIG = Path("configs/demo.json")
MIXES = {"demo": ["--mix", "demo"], "recovers": ["--mix", "recovers"], "metaworld": []}
# Who records and evaluates: the demo, or the folder of four tasks beside this file.
MODULES = {**dict.fromkeys(("demo", "recovers"), "lerobot_policy_pi05_rl.demo"), "metaworld": "metaworld_tasks"}
# Optimization steps of every policy: about as many epochs of each recording (Meta-World's has 1.8 times the frames).
STEPS = {"demo": 1500, "recovers": 1500, "metaworld": 2700}


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        overrides: of the training configuration.
        trained_as: the variant whose training this one only evaluates otherwise.
        labels: the labeling that its advantages come from; None: none, or its own critics.
        evaluation: overrides of the policy at evaluation.
        script: of this folder, which trains and evaluates in place of the package's own modules.
    """

    label: str
    overrides: tuple[str, ...] = ()
    trained_as: str | None = None
    labels: str | None = None
    evaluation: tuple[str, ...] = ()
    script: str | None = None


# Labels are precomputed and no critic trains beside the policy: their gradients never mix, so it would not change it.
NO_CRITIC = "--policy.train_critic=false"
PLAIN_RECAP = (NO_CRITIC, "--policy.advantage_positive_weight=1")
VARIANTS = {
    "bc": Variant("behaviour cloning", ("--policy.policy_extraction=none",)),
    "filtered": Variant("filtered cloning (outcome)", ("--policy.policy_extraction=filtered",)),
    "awr": Variant("AWR", ("--policy.policy_extraction=weighted", NO_CRITIC), labels="critic"),
    "recap": Variant("RECAP", (NO_CRITIC,), labels="critic"),
    "recap_beta2": Variant("RECAP, β = 2", trained_as="recap", labels="critic", evaluation=("--guidance_scale=2",)),
    "filtered_frames": Variant(
        "filtered cloning (advantage)",
        ("--policy.policy_extraction=filtered", "--policy.filter_by=advantage", NO_CRITIC),
        labels="critic",
    ),
    "recap_plain": Variant("RECAP, positive weight 1", PLAIN_RECAP, labels="critic"),
    "recap_plain_beta2": Variant(
        "RECAP, positive weight 1, β = 2",
        trained_as="recap_plain",
        labels="critic",
        evaluation=("--guidance_scale=2",),
    ),
    "recap_whole": Variant("RECAP, A = G − V", (NO_CRITIC,), labels="whole"),
    "recap_n_step": Variant("RECAP, N = 8", (NO_CRITIC,), labels="n_step"),
    "recap_short": Variant("RECAP, λ = 0.7 for every task", (NO_CRITIC,), labels="short"),
    "recap_joint": Variant("RECAP, labels of the critics beside it", ("--policy.critic_warmup_steps=100",)),
    "recap_shared": Variant("RECAP, critics on the actor's states", (NO_CRITIC,), labels="shared"),
    "recap_pooled": Variant("RECAP, critics on pooled images", (NO_CRITIC,), labels="pooled"),
    "recap_text": Variant("RECAP, tag in the text", labels="critic", script="tag_in_text.py"),
    "recap_td": Variant("RECAP, TD critics", (NO_CRITIC,), labels="td"),
    "oracle_plain": Variant("oracle labels, RECAP, positive weight 1", PLAIN_RECAP, labels="oracle"),
    "oracle": Variant("oracle labels, RECAP", (NO_CRITIC,), labels="oracle"),
    "oracle_filtered": Variant(
        "oracle labels, filtered cloning",
        ("--policy.policy_extraction=filtered", "--policy.filter_by=advantage", NO_CRITIC),
        labels="oracle",
    ),
    "recap_one_critic": Variant("RECAP, one critic, not cross-fitted", (NO_CRITIC,), labels="one"),
}
MAIN = ("bc", "filtered", "filtered_frames", "awr", "recap", "recap_beta2")
HORIZON = ("--horizon", "0.15")
# A labeling: the critic's run that makes it, its overrides, and how it is labelled. "oracle" needs no critic.
LABELINGS = {
    "critic": ("critic", (), HORIZON),
    "whole": ("critic", (), ("--n-step", "none")),
    "n_step": ("critic", (), ("--n-step", "8")),
    "short": ("critic", (), ("--gae-lambda", "0.7")),
    "td": ("critic_td", ("--policy.critic_target=td",), HORIZON),
    "one": ("critic_one", ("--policy.critic_folds=1",), HORIZON),
    "pooled": ("critic_pooled", ("--policy.critic_image_pooling=2",), HORIZON),
    "shared": ("critic_shared", ("--policy.use_separate_critic=false",), HORIZON),
}


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
    cell, steps = args.output / mix / f"seed{seed}", args.steps or STEPS[mix]
    dataset, package = cell / "dataset", "lerobot_policy_pi05_rl"
    recorded = dataset / "meta" / "info.json"

    def job(name: str, module: str, arguments: list, output: Path, needs: list[Path]) -> Job:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return Job(f"{mix}/{seed}/{name}", command, output, cell / f"{name.replace('/', '_')}.log", needs)

    def scripted(made: Job, script: str | None, verb: str) -> Job:
        """The same job done by a script of this folder; a command begins: python -m MODULE."""
        if script is None:
            return made
        path = Path(__file__).with_name(script)
        return replace(made, command=[sys.executable, str(path), verb, *made.command[3:]])

    def training(name: str, length: int, overrides: tuple[str, ...], needs: list[Path]) -> Job:
        arguments = [CONFIG, "--resume=true", f"--seed={seed}", f"--policy.offline_steps={length}"]
        arguments += [f"--dataset.root={dataset}", f"--output_dir_offline={cell / name}", "--save_freq=500"]
        arguments += ["--log_freq=100", "--keep_last_checkpoints=1", *overrides]
        return job(f"{name}/train", f"{package}.offline_learner", arguments, checkpoint(cell / name, length), needs)

    record = ["--root", dataset, "--seed", seed, "--episodes", args.demonstrations, *MIXES[mix]]
    jobs = [job("record", f"{MODULES[mix]}.record", record, recorded, [])]
    for name in args.variants:
        variant = VARIANTS[name]
        trained, overrides, needs = (
            variant.trained_as or name,
            VARIANTS[variant.trained_as or name].overrides,
            [recorded],
        )
        if variant.labels == "oracle":
            side_car = cell / "dataset.labels" / "oracle.parquet"
            script = [sys.executable, str(Path(__file__).with_name("oracle_labels.py")), str(dataset)]
            log = cell / "label_oracle.log"
            jobs.append(Job(f"{mix}/{seed}/label_oracle", script, side_car, log, [recorded]))
            overrides, needs = (*overrides, "--dataset.labeling=oracle"), [side_car]
        elif variant.labels is not None:
            critic, critic_overrides, label_options = LABELINGS[variant.labels]
            cloned = checkpoint(cell / "bc", steps)  # the critics read the features of the cloned policy
            frozen = (f"--policy.pi05_checkpoint={cloned}", f"--policy.critic_warmup_steps={args.critic_steps}")
            jobs.append(training("bc", steps, VARIANTS["bc"].overrides, [recorded]))
            jobs.append(training(critic, args.critic_steps, (*frozen, *critic_overrides), [cloned]))
            side_car = cell / "dataset.labels" / f"{variant.labels}.parquet"
            label = [cell / critic, "--name", variant.labels, *label_options]
            module, critics = f"{package}.labels.command", [jobs[-1].output]
            jobs.append(job(f"label_{variant.labels}", module, label, side_car, critics))
            overrides, needs = (*overrides, f"--dataset.labeling={variant.labels}"), [side_car]
        jobs.append(scripted(training(trained, steps, overrides, needs), variant.script, "train"))
        result = args.results / mix / f"seed{seed}" / f"eval_{name}.json"
        evaluate = [jobs[-1].output, "--episodes", args.episodes, "--output", result]
        evaluate += ["--seed", 10_000 * (seed + 1), *(f"--override={override}" for override in variant.evaluation)]
        evaluation = job(f"{name}/evaluate", f"{MODULES[mix]}.evaluate", evaluate, result, [jobs[-1].output])
        jobs.append(scripted(evaluation, variant.script, f"{MODULES[mix]}.evaluate"))
    return jobs


def checkpoint(run: Path, step: int) -> Path:
    """What LeRobot's tools load of a run's checkpoint."""
    return run / "checkpoints" / f"{step:06d}" / "pretrained_model"


def needed(jobs: list[Job]) -> list[Job]:
    """The jobs that some missing evaluation waits for, in order."""
    makers = {job.output: job for job in jobs}
    wanted: set[Path] = set()
    pending = [job for job in jobs if job.name.endswith("/evaluate") and not job.output.exists()]
    while pending:
        job = pending.pop()
        wanted.add(job.output)
        pending += [makers[path] for path in job.needs if not path.exists() and path not in wanted]
    return [job for job in jobs if job.output in wanted]


def run_jobs(jobs: list[Job], parallel: int, report: Callable[[], None]) -> list[str]:
    """Run what is not done yet, at most ``parallel`` at once; returns the names of jobs that failed."""
    waiting = needed(jobs)
    running: dict[subprocess.Popen, Job] = {}
    failed: list[str] = []
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    with tqdm(total=len(waiting), desc="Jobs", unit="job") as bar:
        try:
            while waiting or running:
                ready = [job for job in waiting if all(path.exists() for path in job.needs)]
                for job in ready[: parallel - len(running)]:
                    waiting.remove(job)
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    with job.log.open("a") as log:
                        process = subprocess.Popen(
                            job.command,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            env={**os.environ, **threads, "PYTHONPATH": path},
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
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/closed_loop"))
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--variants", nargs="+", default=list(MAIN), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help=f"optimization steps of every policy; default by mix: {STEPS}")
    parser.add_argument("--critic-steps", type=int, default=600, help="optimization steps of the critics")
    parser.add_argument("--episodes", type=int, default=100, help="evaluation episodes")
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--report-only", action="store_true", help="table and picture from what is there")
    parser.add_argument("--write-docs", action="store_true", help="put tables and picture into docs/results.md")
    args = parser.parse_args()
    labels = {name: VARIANTS[name].label for name in VARIANTS}

    def report() -> None:
        write_report(args.results, labels, MAIN)

    failed = [] if args.report_only else run_jobs(make_jobs(args), args.jobs, report)
    report()
    tables = [(args.results / name).read_text() for name in ("table.md", "ablations.md")]
    print("\n".join(tables))
    if args.write_docs:
        docs = Path(__file__).parents[1] / "docs"
        replace_section(docs / "results.md", "results", tables[0])
        replace_section(docs / "results.md", "ablations", tables[1])
        shutil.copyfile(args.results / "results.png", docs / "images" / "closed_loop.png")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
