"""``pi05-rl <verb>``. Bad input ends in one line on stderr and exit code 2; ``--debug`` shows the traceback."""

import argparse
import importlib.util
import logging
import sys
from collections.abc import Callable

from lerobot.utils.utils import init_logging

VERBS = {
    "offline": "pretrain policy and critic on LeRobot datasets: pi05-rl offline CONFIG [--key=value …]",
    "learner": "online: train while actors collect: pi05-rl learner CONFIG [--key=value …]",
    "actor": "online: drive the environment, send episodes to the learner: pi05-rl actor CONFIG [--key=value …]",
    "label": "outcomes and advantages of a dataset as a side-car: pi05-rl label CONFIG_OR_RUN [--name NAME …]",
    "cache": "decode a configuration's frames to dataset.frame_cache: pi05-rl cache CONFIG [--key=value …]",
    "report": "one self-contained HTML page: pi05-rl report RUN_OR_DATASET [--labels NAME …] [--video-episodes I,J]",
    "plan": "parameters, memory, FLOPs, what would fit; runs no step: pi05-rl plan CONFIG [--key=value …]",
    "demo": "simulator → dataset → offline pretraining → closed-loop comparison",
    "demo-online": "the demo's offline checkpoint → learner and actor on loopback → closed-loop comparison",
}
DETAILS = {
    "actor": """  --allow_unlimited_actions  drive a real robot without limits of its actions
""",
    "label": """  CONFIG_OR_RUN         a training configuration, or a run's folder (its newest checkpoint labels)
  --name NAME           of the labeling; default: the run's name and step
  --checkpoint DIR      the critic; default: the run's newest checkpoint, else policy.pi05_checkpoint
  --from NAME           take the values of this labeling; no network runs
  --horizon F           advantages of the λ-return that looks this share of the task's longest episode ahead;
                        default: 0.15 where policy.advantage_n_step is not set
  --trace L             the same with this λ for every task
  --n-step N|none       advantages over N steps; none: to the episode's end; default: policy.advantage_n_step
  --positive-fraction F share of positive frames; default: policy.advantage_positive_fraction
  --success 0-40,52     these episodes of the first dataset are successes; --failure likewise
  --of DATASET          of this one of dataset.additional_offline_dataset_paths instead
  --outcomes CSV        episode_index,outcome[,dataset]
  --list-unlabelled     print the episodes without an outcome, and stop
  --key=value           overrides of the configuration
""",
    "plan": """  CONFIG                a training configuration; its dataset and weights need not be there
  --cameras N           default: the dataset's, else 2
  --text N              tokens of the longest prompt; default: 64
  --efficiency F        share of a GPU's peak that a step reaches; default: 0.4
  --json                one JSON object
  --key=value           overrides of the configuration
""",
}


def main(argv: list[str] | None = None) -> None:
    """Console entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if arguments else 2)
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"pi05-rl: unknown verb {verb!r}\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    if rest in (["-h"], ["--help"]):
        print(f"{VERBS[verb]}\n{DETAILS.get(verb, '')}  --debug  show the traceback of an error")
        raise SystemExit(0)
    set_up_logging()
    raise SystemExit(run_verb(globals()[f"run_{verb.replace('-', '_')}"], rest, debug=debug))


def set_up_logging() -> None:
    """LeRobot's console format; its noisiest warning shortened."""
    init_logging()
    logging.getLogger("lerobot.utils.import_utils").addFilter(ShortTorchcodecWarning())
    noisy_ones = ("libav", "datasets", "PIL", "matplotlib", "urllib3", "filelock", "fsspec", "asyncio")
    hub = importlib.util.find_spec("huggingface_hub.serialization._torch").origin  # its logger bears the file's name
    for noisy in (*noisy_ones, hub):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class ShortTorchcodecWarning(logging.Filter):
    """Without ffmpeg's libraries LeRobot logs torchcodec's whole traceback each time it picks a video backend
    (lerobot/utils/import_utils.py); one line, once, says as much."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "torchcodec" not in record.msg:
            return True
        first, self.said = not self.said, True
        record.msg = "torchcodec cannot be loaded (install ffmpeg for faster decoding); videos are read with pyav"
        return first


def run_verb(verb: Callable[[list[str]], int], arguments: list[str], *, debug: bool) -> int:
    """Run a verb; a UserError, or memory that does not suffice, becomes one line and exit code 2."""
    from .errors import UserError, is_out_of_memory, out_of_memory_advice

    try:
        return verb(arguments)
    except UserError as error:
        if debug:
            raise
        reason = str(error).strip().splitlines()[-1]  # a data-loading worker puts its traceback in front
        reason = reason.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        print(f"pi05-rl: error: {reason}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if debug or not is_out_of_memory(error):
            raise
        counted = _counted(arguments) if verb in (run_offline, run_learner) else ""
        print(f"pi05-rl: error: {out_of_memory_advice(error, arguments, counted)}", file=sys.stderr)
        return 2


def _counted(arguments: list[str]) -> str:
    """What ``plan`` counts for a run that found no memory, or why it counts nothing."""
    from .errors import UserError
    from .plan.command import memory_in_words

    try:
        return memory_in_words(arguments)
    except (UserError, MemoryError, RuntimeError) as error:
        return f"plan counts nothing: {' '.join(str(error).split())[:200]}"


def run_offline(arguments: list[str]) -> int:
    """``pi05-rl offline CONFIG`` (positional or ``--config_path``)."""
    from .config.file import load_config
    from .offline_learner import train_offline

    path, overrides = split_config_path(arguments)
    checkpoint = train_offline(load_config(path, overrides))
    logging.getLogger(__name__).info("[OFFLINE LEARNER] Done: %s", checkpoint)
    return 0


def run_learner(arguments: list[str]) -> int:
    """``pi05-rl learner CONFIG``."""
    from .config.file import load_config
    from .online.config import OnlineTrainConfig
    from .online.learner.learner import train_online

    path, overrides = split_config_path(arguments, "learner")
    checkpoint = train_online(load_config(path, overrides, OnlineTrainConfig))
    logging.getLogger(__name__).info("[LEARNER] Done: %s", checkpoint)
    return 0


def run_actor(arguments: list[str]) -> int:
    """``pi05-rl actor CONFIG``."""
    from .config.file import load_config
    from .online.actor.actor import run_actor as run
    from .online.config import OnlineTrainConfig

    unlimited = "--allow_unlimited_actions"
    path, overrides = split_config_path([argument for argument in arguments if argument != unlimited], "actor")
    overrides += ["--actor.allow_unlimited_actions=true"] if unlimited in arguments else []
    run(load_config(path, overrides, OnlineTrainConfig))
    return 0


def run_label(arguments: list[str]) -> int:
    """``pi05-rl label CONFIG_OR_RUN``."""
    from .labels.command import main as label

    return label(arguments)


def run_cache(arguments: list[str]) -> int:
    """``pi05-rl cache CONFIG``."""
    from .config.file import load_config
    from .config.train import ConfigError
    from .data.dataset import open_caches, open_sources

    path, overrides = split_config_path(arguments)
    cfg = load_config(path, overrides)
    cfg.validate(device_key=None)
    if cfg.dataset.frame_cache is None:
        raise ConfigError("dataset.frame_cache is not set: the folder the frames go to, --dataset.frame_cache=DIR")
    try:
        open_caches(cfg, open_sources(cfg))
    except KeyboardInterrupt:
        logging.getLogger(__name__).warning("[FRAME CACHE] Stopped; the same command goes on from here")
        return 130
    return 0


def run_report(arguments: list[str]) -> int:
    """``pi05-rl report RUN_OR_DATASET``."""
    from .report.build import main as report

    return report(arguments)


def run_plan(arguments: list[str]) -> int:
    """``pi05-rl plan CONFIG``."""
    from .plan.command import main as plan

    return plan(arguments)


def run_demo(arguments: list[str]) -> int:
    """``pi05-rl demo``."""
    from .demo.run import main as run

    return run(arguments)


def run_demo_online(arguments: list[str]) -> int:
    """``pi05-rl demo-online``."""
    from .demo.online import main as run

    return run(arguments)


def split_config_path(arguments: list[str], verb: str = "offline") -> tuple[str, list[str]]:
    """The configuration's path, positional or ``--config_path``, and the remaining overrides.

    Raises:
        ConfigError: there is none, or there are two.
    """
    from .config.train import ConfigError

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config_path")
    known, rest = parser.parse_known_args(arguments)
    positional = rest.pop(0) if rest and not rest[0].startswith("--") else None
    if (known.config_path is None) == (positional is None):
        raise ConfigError(f"give one configuration file: pi05-rl {verb} CONFIG (or --config_path=CONFIG)")
    return known.config_path or positional, rest


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {verb:11} {text}" for verb, text in VERBS.items()]
    return "usage: pi05-rl <verb> …\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
