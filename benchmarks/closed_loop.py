"""Does offline RL beat cloning and filtering on the same data? Train every variant on every mix and seed, evaluate.

    python benchmarks/closed_loop.py --output outputs/closed_loop [--mixes demo recovers metaworld] [--seeds 3 4 5 …]
    python benchmarks/closed_loop.py --start random …                # a second table, from random weights
    python benchmarks/closed_loop.py --start large --mixes recovers --seeds 3   # about ten times the parameters
    python benchmarks/closed_loop.py --training-seeds 0 1 2 …        # the spread that training alone makes

Every policy of a mix starts from one pretrained policy: panda's is shipped with the demo, Meta-World's lies beside its
tasks (``metaworld_tasks/pretrain.py`` made it); that of ``large`` is made first. RECAP is one command (``pi05-rl
offline``); rivals take its labels.
A seed is that of recording and evaluation; the training seed is the same plus 100 times its number. Settings were
chosen on seeds 0 to 2; a claim rests on the others. Odd seeds run without vector instructions
(``ATEN_CPU_CAPABILITY=default``), as on another processor.

Jobs (record, train, evaluate) run side by side, one thread each, as many as there are cores. A finished job is never
repeated and an interrupted training resumes, so the same command goes on after an interruption. Results of evaluations
lie in ``--results``, small enough to be kept under version control: what lies there is not computed again, and tables
and picture are drawn from it (``--report-only``: nothing else is done).
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

from lerobot_policy_pi05_rl.demo.pretrain import PRETRAINED as PANDA

CONFIG = Path("configs/demo.json")
MIXES = {"demo": ["--mix", "demo"], "recovers": ["--mix", "recovers"], "metaworld": []}
# Who records, pretrains and evaluates: the demo, or the folder of four tasks beside this file.
MODULES = {**dict.fromkeys(("demo", "recovers"), "lerobot_policy_pi05_rl.demo"), "metaworld": "metaworld_tasks"}
PRETRAINED = {"demo": PANDA, "recovers": PANDA, "metaworld": Path(__file__).parent / "metaworld_tasks" / "pretrained"}
STARTS = ("pretrained", "random", "large")
# Optimization steps of every policy, and of the critics before RECAP's. Meta-World's recording has four tasks and 1.8
# times the frames: of 1200 and 2400 steps on seed 0 the latter (docs/results.md). From random weights more, with a
# learning rate for them.
STEPS = {
    "pretrained": {"demo": 600, "recovers": 600, "metaworld": 2400},
    "random": {"demo": 1500, "recovers": 1500, "metaworld": 2700},
}
STEPS["large"] = STEPS["pretrained"]
CRITIC_STEPS = {"demo": 600, "recovers": 600, "metaworld": 1200}
PLAIN = {"ATEN_CPU_CAPABILITY": "default"}
RANDOM = ("--policy.pi05_checkpoint=null", "--policy.actor_lr=1e-3")
# Three times the width and one and a half times the depth; nothing else changes but the learning rate.
WIDTHS, DEPTHS = ("llm_width", "expert_width", "vision_width"), {"llm_depth": 5, "vision_depth": 3, "head_dim": 32}
MLPS = ("llm_mlp_dim", "expert_mlp_dim", "vision_mlp_dim")
SIZES = dict.fromkeys(WIDTHS, 192) | dict.fromkeys(MLPS, 768) | DEPTHS
LARGE = tuple(f"--policy.{name}={size}" for name, size in SIZES.items())
LARGE_LR, LARGE_PRETRAINING_LR = "--policy.actor_lr=1.5e-4", "--policy.actor_lr=5e-4"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        overrides: of the training configuration.
        trained_as: the variant whose training this one only evaluates otherwise.
        labels: where its advantages come from: a key of ``LABELINGS``, "oracle", RECAP's "own", or None.
        evaluation: overrides of the policy at evaluation.
        critics_first: it is the whole command: critics of its own learn and label before it.
    """

    label: str
    overrides: tuple[str, ...] = ()
    trained_as: str | None = None
    labels: str | None = None
    evaluation: tuple[str, ...] = ()
    critics_first: bool = False


# Labels are there and no critic trains beside the policy: their gradients never mix, so it would not change it.
NO_CRITIC = "--policy.train_critic=false"
FILTERED = ("--policy.policy_extraction=filtered", "--policy.filter_by=advantage", NO_CRITIC)
VARIANTS = {
    "bc": Variant("behaviour cloning", ("--policy.policy_extraction=none",)),
    "filtered": Variant("filtered cloning (outcome)", ("--policy.policy_extraction=filtered",)),
    "filtered_frames": Variant("filtered cloning (advantage)", FILTERED, labels="own"),
    "awr": Variant("AWR", ("--policy.policy_extraction=weighted", NO_CRITIC), labels="own"),
    "recap": Variant("RECAP", critics_first=True),
    "recap_adapters": Variant("RECAP, critic by adapters", ("--policy.critic_adapter_rank=8",), critics_first=True),
    "recap_beta1": Variant("RECAP, β = 1", trained_as="recap", evaluation=("--guidance_scale=1",)),
    "recap_beta2": Variant("RECAP, β = 2", trained_as="recap", evaluation=("--guidance_scale=2",)),
    "recap_beta3": Variant("RECAP, β = 3", trained_as="recap", evaluation=("--guidance_scale=3",)),
    "recap_beta8": Variant("RECAP, β = 8", trained_as="recap", evaluation=("--guidance_scale=8",)),
    "recap_weight5": Variant(
        "RECAP, positive weight 5", (NO_CRITIC, "--policy.advantage_positive_weight=5"), labels="own"
    ),
    "recap_plain": Variant(
        "RECAP, positive weight 1", (NO_CRITIC, "--policy.advantage_positive_weight=1"), labels="own"
    ),
    "recap_dropout": Variant("RECAP, dropout 0.3", (NO_CRITIC, "--policy.advantage_dropout=0.3"), labels="own"),
    "recap_sharp": Variant("RECAP, labels not smoothed", (NO_CRITIC,), labels="sharp"),
    "recap_whole": Variant("RECAP, A = G − V", (NO_CRITIC,), labels="whole"),
    "filtered_sharp": Variant("filtered cloning (advantage), labels not smoothed", FILTERED, labels="sharp"),
    "recap_running": Variant("RECAP, labels of the critics beside it", ("--policy.advantage_labels=running",)),
    "oracle": Variant("oracle labels, RECAP", (NO_CRITIC,), labels="oracle"),
    "oracle_filtered": Variant("oracle labels, filtered cloning", FILTERED, labels="oracle"),
}
# Results of what lost and was removed; who wants to run it again takes that commit.
FORMER = {"recap_text": "RECAP, tag as text (until 7bd9a1b)"}
MAIN = ("bc", "filtered", "filtered_frames", "awr", "recap")
# Labelings that are derived from RECAP's own labels without a network.
LABELINGS = {"sharp": ("--smoothing", "0"), "whole": ("--n-step", "none", "--smoothing", "0")}


@dataclass
class Job:
    """A command that makes ``output``; it may start when all of ``needs`` exist."""

    name: str
    command: list[str]
    output: Path
    log: Path
    needs: list[Path] = field(default_factory=list)
    plain: bool = False  # without vector instructions


def make_jobs(args: argparse.Namespace) -> list[Job]:
    """Every job in the order in which they should start: seed by seed, so that early results compare all variants."""
    jobs: dict[str, Job] = {}
    for seed in args.seeds:
        for mix in args.mixes:
            for training in args.training_seeds:
                for job in cell_jobs(args, mix, seed, training):
                    jobs.setdefault(job.name, replace(job, plain=seed % 2 == 1))
    return list(jobs.values())


def cell_jobs(args: argparse.Namespace, mix: str, seed: int, training: int) -> list[Job]:
    """The jobs of one mix, seed and training seed."""
    cell, package = args.output / args.start / mix / f"seed{seed}", "lerobot_policy_pi05_rl"
    runs = cell if training == 0 else cell / f"training{training}"
    steps, critic_steps = args.steps or STEPS[args.start][mix], args.critic_steps or CRITIC_STEPS[mix]
    dataset = args.output / "recordings" / mix / f"seed{seed}" / "dataset"
    recorded, jobs = dataset / "meta" / "info.json", []

    def job(name: str, module: str, arguments: list, output: Path, needs: list[Path]) -> Job:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return Job(f"{mix}/{seed}/{training}/{name}", command, output, runs / f"{name.replace('/', '_')}.log", needs)

    start, started = start_of(args, mix)
    record = ["--root", dataset, "--seed", seed, "--episodes", args.demonstrations, *MIXES[mix]]
    jobs.append(replace(job("record", f"{MODULES[mix]}.record", record, recorded, []), name=f"{mix}/{seed}/record"))

    def train(name: str, length: int, overrides: tuple[str, ...], needs: list[Path]) -> Job:
        arguments = [CONFIG, "--resume=true", f"--seed={seed + 100 * training}", f"--policy.offline_steps={length}"]
        arguments += [f"--dataset.root={dataset}", f"--output_dir_offline={runs / name}", f"--save_freq={length}"]
        arguments += ["--log_freq=100", "--eval_steps=0", "--keep_last_checkpoints=1", *start, *overrides]
        arguments += [f"--dataset.frame_cache={dataset.with_name('frames')}"]
        output = checkpoint(runs / name, length)
        return job(f"{name}/train", f"{package}.offline_learner", arguments, output, [recorded, *started, *needs])

    for made in started:
        command = ["--output", made.parents[1] / "run", "--destination", made.parent]
        command += [f"--override={override}" for override in (*LARGE, LARGE_PRETRAINING_LR)]
        pretraining = job("pretrain", f"{MODULES[mix]}.pretrain", command, made, [])
        jobs.append(replace(pretraining, name=f"{MODULES[mix]}/pretrain", log=made.parents[1] / "pretrain.log"))
    first = (f"--policy.critic_warmup_steps={critic_steps}",)
    own = train("recap", critic_steps + steps, first, [])
    for name in args.variants:
        variant = VARIANTS[name]
        trained = variant.trained_as or name
        overrides, needs = VARIANTS[trained].overrides, []
        if variant.labels == "oracle":
            side_car = dataset.with_name("dataset.labels") / "oracle.parquet"
            script = [sys.executable, str(Path(__file__).with_name("oracle_labels.py")), str(dataset)]
            jobs.append(Job(f"{mix}/{seed}/label_oracle", script, side_car, runs / "label_oracle.log", [recorded]))
            overrides, needs = (*overrides, "--dataset.labeling=oracle"), [side_car]
        elif variant.labels == "own":
            jobs.append(own)
            overrides, needs = (*overrides, f"--dataset.labeling={runs / 'recap'}"), [own.output]
        elif variant.labels is not None:
            labeling = f"{variant.labels}_{args.start}_{training}"
            side_car = dataset.with_name("dataset.labels") / f"{labeling}.parquet"
            options = [runs / "recap", "--from", runs / "recap", "--name", labeling, *LABELINGS[variant.labels]]
            jobs += [own, job(f"label_{labeling}", f"{package}.labels.command", options, side_car, [own.output])]
            overrides, needs = (*overrides, f"--dataset.labeling={labeling}"), [side_car]
        if VARIANTS[trained].critics_first:
            jobs.append(train(trained, critic_steps + steps, (*first, *overrides), needs))
        else:
            jobs.append(train(trained, steps, overrides, needs))
        suffix = "" if training == 0 else f".training{training}"
        result = args.results / args.start / mix / f"seed{seed}" / f"eval_{name}{suffix}.json"
        evaluate = [jobs[-1].output, "--episodes", args.episodes, "--output", result]
        evaluate += ["--seed", 10_000 * (seed + 1), *(f"--override={override}" for override in variant.evaluation)]
        jobs.append(job(f"{name}/evaluate", f"{MODULES[mix]}.evaluate", evaluate, result, [jobs[-1].output]))
    return jobs


def start_of(args: argparse.Namespace, mix: str) -> tuple[list[str], list[Path]]:
    """Overrides that say what every policy of a mix starts from, and the file of a start that has to be made."""
    if args.start == "random":
        return list(RANDOM), []
    if args.start == "pretrained":
        return [f"--policy.pi05_checkpoint={PRETRAINED[mix]}"], []
    weights = args.output / "large" / MODULES[mix] / "pretrained" / "model.safetensors"
    return [f"--policy.pi05_checkpoint={weights.parent}", *LARGE, LARGE_LR], [weights]


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


def run_jobs(jobs: list[Job], parallel: int, report: Callable[[], object]) -> list[str]:
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
                            env={**os.environ, **threads, **(PLAIN if job.plain else {}), "PYTHONPATH": path},
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
    parser.add_argument("--start", default="pretrained", choices=STARTS, help="what every policy starts from")
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--variants", nargs="+", default=list(MAIN), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5, 6, 7, 8, 9, 10])
    parser.add_argument("--training-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help=f"optimization steps of every policy; default: {STEPS}")
    parser.add_argument("--critic-steps", type=int, help=f"of the critics before RECAP's; default: {CRITIC_STEPS}")
    parser.add_argument("--episodes", type=int, default=200, help="evaluation episodes")
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--report-only", action="store_true", help="tables and picture from what is there")
    parser.add_argument("--write-docs", action="store_true", help="put tables and picture into docs/results.md")
    args = parser.parse_args()
    labels = {name: VARIANTS[name].label for name in VARIANTS} | FORMER

    def report() -> list[str]:
        found = [start for start in STARTS if any((args.results / start).glob("*/seed*/eval_*.json"))]
        for start in found:
            write_report(args.results / start, labels, MAIN)
        return found

    failed = [] if args.report_only else run_jobs(make_jobs(args), args.jobs, report)
    docs = Path(__file__).parents[1] / "docs"
    for start in report():
        for name in ("table", "ablations"):
            text = (args.results / start / f"{name}.md").read_text()
            print(text)
            if args.write_docs:
                replace_section(docs / "results.md", f"{name} {start}", text)
    if args.write_docs:
        shutil.copyfile(args.results / "pretrained" / "results.png", docs / "images" / "closed_loop.png")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
