"""An online episode as a video with the critic's value drawn beneath, as the report draws recorded ones."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from lerobot.utils.constants import OBS_STATE, REWARD
from PIL import Image

from ...data.alignment import Alignment
from ...data.batch import TASK
from ...data.dataset import OfflineData
from ...data.episodes import Episode as LabelledEpisode
from ...data.episodes import reward_discount
from ...recap import RecapAlgorithm
from ...report.video import write_pictures
from ...returns import Outcome, RewardConfig, episode_advantages
from ..episode import Episode, decode_picture
from ..replay.labels import label_online

BATCH = 32


@torch.no_grad()
def episode_values(episode: Episode, algorithm: RecapAlgorithm) -> np.ndarray:
    """(T,) the critic's value of every frame; of several critics their mean."""
    values = []
    for start in range(0, len(episode), BATCH):
        rows = range(start, min(start + BATCH, len(episode)))
        samples = {
            camera: torch.stack([torch.from_numpy(decode_picture(files[row]).copy()).permute(2, 0, 1) for row in rows])
            for camera, files in episode.pictures.items()
        }
        samples[OBS_STATE] = torch.from_numpy(episode.state[rows.start : rows.stop].copy())
        samples[TASK] = [episode.task] * len(rows)
        values.append(algorithm.policy.predict_values(algorithm.preprocess(samples)).mean(dim=1).cpu())
    return torch.cat(values).numpy()


@dataclass(frozen=True)
class EpisodeVideos:
    """Where a run's episodes are drawn, and what it takes."""

    folder: Path
    data: OfflineData
    algorithm: RecapAlgorithm
    reward: RewardConfig
    fps: float

    def write(self, episode: Episode, number: int) -> Path:
        """The mp4 of an episode, with its running number in its name."""
        path = self.folder / f"episode_{number:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_episode_video(path, episode, self, number=number)


def write_episode_video(path: Path, episode: Episode, run: EpisodeVideos, *, number: int) -> Path:
    """Write the mp4: cameras side by side, value, return, advantage and tag of every frame."""
    data, algorithm = run.data, run.algorithm
    policy, length = data.policy, len(episode)
    was_training = algorithm.policy.training
    algorithm.policy.eval()
    values = episode_values(episode, algorithm)
    algorithm.policy.train(was_training)
    task = data.labels.tasks.index(episode.task)
    labelled = LabelledEpisode(0, 0, 0, length, task, episode.outcome)
    columns, ends = {REWARD: episode.reward}, np.array([length])
    source = SimpleNamespace(name=episode.uid, columns=columns, ends=ends, alignment=Alignment())
    rewards, returns = label_online(labelled, source, run.reward, policy, data.labels.task_lengths)
    advantages = episode_advantages(
        returns,
        rewards,
        values,
        n_step=policy.advantage_n_step,
        discount=reward_discount(run.reward, policy),
        terminated=episode.outcome is not Outcome.TRUNCATED,
    )
    threshold = float(algorithm.thresholds[torch.tensor([task])][0])
    rows = pd.DataFrame(
        {
            "episode_index": number,
            "frame_index": np.arange(length),
            "value": values,
            "return": returns,
            "advantage": advantages,
            "positive": (advantages > threshold) | episode.intervention,
            "intervention": episode.intervention,
            "outcome": episode.outcome.value,
        }
    )
    pictures = (
        [Image.fromarray(decode_picture(files[row])) for files in episode.pictures.values()] for row in range(length)
    )
    return write_pictures(path, pictures, rows, run.fps)
