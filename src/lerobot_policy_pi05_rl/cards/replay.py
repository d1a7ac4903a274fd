"""The card of an online learner's replay, which is a LeRobot dataset."""

from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import DatasetCardData

from .text import hub_id, render

TAGS = ["LeRobot", "pi05_rl", "online-rl"]  # LeRobot's own tag of datasets first
DATA_FILES = "data/*/*.parquet"  # what LeRobot's own card tells the Hub's viewer


@dataclass(frozen=True)
class ReplayFacts:
    """All that a replay's card says."""

    repo_id: str
    started_from: str | None  # the checkpoint that the policy started from, for strangers
    robot_type: str | None
    fps: float
    cameras: tuple[str, ...]
    episodes: int
    frames: int
    received: int  # episodes, those included that are gone
    outcomes: Mapping[str, int]  # success, failure, truncated → episodes
    tasks: Mapping[str, int]  # text → episodes
    intervened: int  # frames at which a person acted
    intervened_episodes: int
    versions: tuple[int, int] | None  # the first and the last optimization step whose weights acted
    actors: int

    @property
    def front_matter(self) -> DatasetCardData:
        """The Hub's metadata, as LeRobot's own dataset cards have them."""
        return DatasetCardData(
            tags=TAGS,
            task_categories=["robotics"],
            configs=[{"config_name": "default", "data_files": DATA_FILES}],
        )


def replay_card(facts: ReplayFacts) -> str:
    """The text of a replay's ``README.md``; the same facts give the same bytes."""
    base = facts.started_from
    values = vars(facts) | {"base_on_hub": base is not None and hub_id(base), "gone": facts.received - facts.episodes}
    return render("replay.md.jinja", facts.front_matter, values)
