"""What a replay knows of its episodes, for the card beside them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from lerobot.datasets.utils import DatasetInfo

from ...cards.replay import ReplayFacts
from ...cards.text import public_name
from ...data.sources import INTERVENTION
from ..episode import POLICY_VERSION
from .files import Receipt
from .recovery import Row
from .stored_episode import UID


class Acted(NamedTuple):
    """Who acted in an episode."""

    intervened: int  # frames at which a person did
    first: int  # policy version
    last: int

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> "Acted":
        """From the episode's columns."""
        versions = columns[POLICY_VERSION]
        return cls(int(columns[INTERVENTION].sum()), int(versions.min()), int(versions.max()))


def replay_facts(
    repo_id: str,
    info: DatasetInfo,
    rows: Iterable[Row],
    acted: Mapping[str, Acted],
    receipts: Mapping[str, Receipt],
    started_from: str | None,
) -> ReplayFacts:
    """What the card of the episodes in ``rows`` says.

    Args:
        acted, receipts: uid → what is known of that episode; of each row's at least.
        started_from: the checkpoint that the policy started from.
    """
    uids = [row[UID] for row in rows]
    tasks = Counter(task for row in rows for task in row["tasks"])
    outcomes = Counter(receipts[uid].outcome for uid in uids)
    people = [acted[uid].intervened for uid in uids]
    versions = [version for uid in uids for version in acted[uid][1:]]
    return ReplayFacts(
        repo_id=repo_id,
        started_from=None if started_from is None else public_name(started_from),
        robot_type=info.robot_type,
        fps=info.fps,
        cameras=tuple(name for name, feature in info.features.items() if feature["dtype"] == "video"),
        episodes=info.total_episodes,
        frames=info.total_frames,
        received=len(receipts),
        outcomes=outcomes,
        tasks=dict(sorted(tasks.items())),
        intervened=sum(people),
        intervened_episodes=sum(frames > 0 for frames in people),
        versions=(min(versions), max(versions)) if versions else None,
        actors=len({receipts[uid].actor for uid in uids}),
    )
