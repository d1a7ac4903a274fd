"""What ``pi05-rl --help`` and ``pi05-rl VERB --help`` print. Imports neither torch nor LeRobot."""

import difflib
import re
import textwrap

from ..config.names import names

VERBS = {
    "init": "a configuration for your dataset and your GPU: pi05-rl init DATASET [--output FILE] [--key=value …]",
    "offline": "pretrain policy and critic on LeRobot datasets: pi05-rl offline CONFIG [--key=value …]",
    "learner": "online: train while actors collect: pi05-rl learner CONFIG [--key=value …]",
    "actor": "online: drive the environment, send episodes to the learner: pi05-rl actor CONFIG [--key=value …]",
    "label": "outcomes and advantages of a dataset as a side-car: pi05-rl label CONFIG_OR_RUN [--name NAME …]",
    "cache": "decode a configuration's frames to dataset.frame_cache: pi05-rl cache CONFIG [--key=value …]",
    "report": "what a run learnt, or a dataset is worth, on one page: pi05-rl report RUN_OR_DATASET [--output FILE]",
    "plan": "parameters, memory, FLOPs, what would fit; runs no step: pi05-rl plan CONFIG [--key=value …]",
    "demo": "simulator → dataset → offline pretraining → closed-loop comparison",
    "demo-online": "the demo's offline checkpoint → learner and actor on loopback → closed-loop comparison",
}
DETAILS = {
    "init": """  DATASET               a LeRobot dataset's folder, or its name on the Hub (you/dataset)
  --output FILE         where to write; default: the dataset's name with .json
  --card GIB            memory of the GPU that will train; default: this machine's, else 24
  --robot.K, --teleop.K for going on online, as lerobot-record takes them: --robot.type=so101_follower …
  --key=value           keys of the configuration that you decide yourself; they are written as they are
""",
    "actor": """  --allow_unlimited_actions  drive a real robot without limits of its actions
""",
    "label": """  CONFIG_OR_RUN         a training configuration, or a run's folder (its newest checkpoint labels)
  --name NAME           of the labeling; default: the run's name and step
  --checkpoint DIR      the critic; default: the run's newest checkpoint, else policy.pi05_checkpoint
  --from NAME           take the values of this labeling; no network runs
  --baseline B          success: returns are compared with the critic's expectation of a success; all: with its value;
                        default: policy.advantage_baseline
  --horizon F           advantages over so many steps as this share of the task's longest episode has;
                        default: policy.advantage_horizon where policy.advantage_n_step is not set
  --gae-lambda L        advantages of the λ-return (GAE) instead
  --smoothing F         their mean over this share of the task's longest episode; default: policy.advantage_smoothing
  --n-step N|none       advantages over N steps; none: to the episode's end; default: policy.advantage_n_step
  --positive-fraction F share of positive frames; default: policy.advantage_positive_fraction
  --success 0-40,52     these episodes of the first dataset are successes
  --failure 41-51       these are failures
  --of DATASET          of this one of dataset.additional_offline_dataset_paths instead
  --outcomes CSV        episode_index,outcome[,dataset]
  --list-unlabelled     print the episodes without an outcome, and stop
  --browser             a page on this machine to say how each episode ended; with --from NAME beside a critic's values
  --port N              of the page; default: any that is free
  --key=value           overrides of the configuration
""",
    "report": """\
  RUN_OR_DATASET        a run's directory; or a LeRobot dataset's folder, or its name on the Hub (you/dataset): what
                        its data are worth for RL, a line with a verdict (ok, look, harms RL) for each check
  --labels NAME …       labelings to show; more than one are compared with the first; default: the run's own
  --output FILE         default: report.html in the run; DATASET.report.html beside the dataset, or here if it is the
                        Hub's; NAME.html beside the labeling
  --video-episodes I,J  also write value-overlay videos of these
""",
    "plan": """  CONFIG                a training configuration; its dataset and weights need not be there
  --cameras N           default: the dataset's, else 2
  --frames N            that the run labels; default: the dataset's, else 50000
  --text N              tokens of the longest prompt; default: 64
  --processes N         of the run, a GPU each; default: 1
  --fsdp                each of them holds a shard of the model, not all of it
  --efficiency F        share of a GPU's peak that a step reaches; default: 0.2
  --json                one JSON object
  --key=value           overrides of the configuration
""",
    "demo": """  --output DIR          default: outputs/demo
  --config FILE         what both policies train with; default: configs/demo.json
  --episodes N          demonstrations to record; default: 120
  --steps N             optimization steps; default: the configuration's
  --critic-steps N      optimization steps of the critics; default: 600
  --eval-episodes N     default: 100
  --seed N              of recording, training and evaluation; default: 0
""",
    "demo-online": """  --output DIR          default: outputs/demo
  --config FILE         default: configs/demo.json
  --steps N             optimization steps; default: the configuration's online_steps
  --eval-episodes N     default: 100
  --seed N              default: 0
  --key=value           overrides of the configuration
""",
}
EARLIER_OPTIONS = {"label": ["--trace"]}  # names of before, answered with a warning
# Verb → whose keys it lists (:class:`..config.names.KeyText`'s readers).
KEYS_OF = {
    **dict.fromkeys(("init", "offline", "label", "cache", "plan"), ("runs", "offline")),
    **dict.fromkeys(("learner", "actor"), ("runs", "online")),
}
WIDTH = 119
HELP = (["-h"], ["--help"])


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {verb:11} {text}" for verb, text in VERBS.items()]
    return "usage: pi05-rl <verb> …\n" + "\n".join(lines)


def help_of(verb: str) -> str:
    """A verb's options and, where it takes a configuration, the keys that it reads, with their defaults."""
    text = f"{VERBS[verb]}\n{DETAILS.get(verb, '')}  --debug  show the traceback of an error"
    if verb not in KEYS_OF:
        return text
    lines = [
        textwrap.fill(
            f"--{key.name} {key.type} (default: {key.default})", WIDTH, initial_indent="  ", subsequent_indent="      "
        )
        for key in names().keys
        if key.readers in KEYS_OF[verb]
    ]
    return f"{text}\n\nKeys of the configuration; docs/configuration.md has all of them:\n" + "\n".join(lines)


def own_options(verb: str) -> list[str]:
    """The verb's options that are no keys of the configuration, as ``--name``."""
    return re.findall(r"^ +(--[\w-]+) ", DETAILS.get(verb, ""), re.MULTILINE) + EARLIER_OPTIONS.get(verb, [])


def unknown_verb(verb: str) -> str:
    """What is said to a verb that there is not."""
    near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"pi05-rl: unknown verb {verb!r}{meant}\n{usage()}"
