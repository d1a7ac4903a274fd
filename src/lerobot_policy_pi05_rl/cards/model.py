"""The card of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from huggingface_hub import ModelCardData

from .text import render

DEFAULT_LICENSE = "apache-2.0"  # that of LeRobot's own cards, where policy.license says nothing
MODEL_NAME = "pi05_rl"
TAGS = ("lerobot", MODEL_NAME, "recap", "robotics")
MOST_TASKS = 20
# Held-out metric → what it is, in the order of the table. Errors of actions are in normalised actions.
HELD_OUT = {
    "loss_critic": "cross-entropy of the critic (nats)",
    "critic_gap": "that, minus the same on training frames: how far the critic has learnt its data by heart",
    "spearman_value_return": "rank correlation of value and return within an episode; 1 is best",
    "auc_value_outcome": "chance that the critic values a success above a failure, in mid-episode; 0.5 is a guess",
    "auc_episodes": "episodes of the rarer outcome that this chance is over",
    "calibration_error": "mean distance between value and return among frames of similar value",
    "loss_actor_none": "flow-matching error of the actions, asked for without the advantage tag",
    "loss_actor_positive": "the same, asked for with the positive tag",
    "action_error_none": "mean absolute error of sampled actions, asked for without the tag",
    "action_error_positive": "the same, asked for with the positive tag",
    "tag_grip": "how far the tag moves the sampled actions (root mean square)",
}
EXTRACTIONS = {
    "conditioning": "RECAP: the policy learns from all actions, is told which turned out better than the critic "
    "expected, and is asked for those",
    "weighted": "advantage-weighted regression: actions weigh by how much better than expected they turned out",
    "filtered": "filtered cloning: the policy learns from the good part of the data alone",
    "none": "cloning: the policy learns from all actions alike",
}


class DataRow(NamedTuple):
    """One dataset as the run used it."""

    name: str
    hub_id: str | None
    episodes: int
    success: int
    failure: int
    truncated: int
    trained: int  # episodes
    held_out: int  # episodes
    frames: int  # to train on


class OnlineEpisodes(NamedTuple):
    """What actors have sent to a learner."""

    episodes: int
    transitions: int
    outcomes: Mapping[str, int]  # success, failure, truncated → episodes


class Feature(NamedTuple):
    """What the policy reads or does."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """All that a checkpoint's card says."""

    name: str  # of the run
    license: str | None
    tags: tuple[str, ...]
    repo_id: str | None  # the Hub's repository that the checkpoint is sent to
    folder: str  # where it lies in its run's folder, and in that repository
    base: str | None  # what the run started from; None: random weights
    base_model: str | None  # that, if it is on the Hub
    extraction: str
    datasets: tuple[DataRow, ...]
    tasks: tuple[str, ...]
    outcomes_known: bool  # whether an episode without an outcome would have been an error, or was told one
    robot_type: str | None
    fps: float
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    trains: str
    parameters: Mapping[str, int]  # total, actor, critic
    adapter: bool
    step: int
    total_steps: int
    policy_waits: bool  # so far the critics alone have learnt
    batch_size: int
    processes: int
    accumulation: int
    settings: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[str, str], ...]
    held_out: tuple[int, Mapping[str, float]] | None  # step, metric → value
    online: OnlineEpisodes | None
    env_type: str | None
    tag: str | None  # that actions are asked for with; None: the policy knows no tags
    guidance_scale: float
    version: str  # of this package
    lerobot_version: str

    @property
    def front_matter(self) -> ModelCardData:
        """The Hub's metadata, as LeRobot's own cards have them."""
        ids = sorted({row.hub_id for row in self.datasets if row.hub_id is not None})
        return ModelCardData(
            license=self.license or DEFAULT_LICENSE,
            library_name="lerobot",
            pipeline_tag="robotics",
            tags=sorted({*self.tags, *TAGS}),
            model_name=MODEL_NAME,
            datasets=ids or None,
            base_model=self.base_model,
        )


def model_card(facts: ModelFacts) -> str:
    """The text of a checkpoint's ``README.md``; the same facts give the same bytes."""
    step, metrics = facts.held_out or (0, {})
    local = facts.repo_id is None
    values = vars(facts) | {
        "path": facts.folder if local else f"{facts.repo_id.rpartition('/')[2]}/{facts.folder}",
        "method": EXTRACTIONS.get(facts.extraction),
        "effective_batch": facts.batch_size * facts.processes * facts.accumulation,
        "shown_tasks": facts.tasks[:MOST_TASKS],
        "more_tasks": len(facts.tasks) - MOST_TASKS,
        "held_out_step": step,
        "metrics": [(name, words, metrics[name]) for name, words in HELD_OUT.items() if name in metrics],
    }
    return render("model.md.jinja", facts.front_matter, values)
