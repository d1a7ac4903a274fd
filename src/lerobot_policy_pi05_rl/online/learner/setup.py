"""What an online run agrees on before its first episode: data, environment, checkpoint, replay, actors."""

import logging
import tempfile
from pathlib import Path

from lerobot.utils.constants import ACTION, OBS_STATE

from ...checkpoint.critic_provenance import read_critic_data, reward_scale, scale_differences
from ...config.actor import ReplayConfig
from ...config.train import ConfigError
from ...data.dataset import OfflineData, policy_cameras
from ...data.names import dimension_names
from ...model.trainable import pushed_tensors
from ...processor_pi05_rl import Processors
from ...recap import RecapAlgorithm
from ..config import OnlineTrainConfig
from ..episode import EpisodeSpec
from ..replay.replay import Replay
from ..transport import learner_pb2
from ..transport.weights import frozen_fingerprint
from .batches import online_count

logger = logging.getLogger(__name__)


def check_compatible(cfg: OnlineTrainConfig, data: OfflineData) -> None:
    """What the environment, the data and the checkpoint must agree on.

    Raises:
        ConfigError: they do not.
    """
    if cfg.env is None:
        raise ConfigError("env is missing: the learner must know the actors' frame rate (env.type, env.fps)")
    rate = data.sources[0].dataset.meta.fps
    if cfg.env.fps != rate:
        raise ConfigError(
            f"env.fps is {cfg.env.fps}, but the dataset {data.sources[0].name} has {rate} frames a second: the "
            "policy's actions would mean other speeds. Set env.fps to the dataset's"
        )
    if cfg.policy.pi05_checkpoint:
        earlier = read_critic_data(cfg.policy.pi05_checkpoint)
        scale = reward_scale(cfg.reward, cfg.policy, data.labels)
        differing = scale_differences(earlier["reward"], scale) if earlier else []
        if differing:
            logger.warning(
                "[LEARNER] The critic of %s learnt returns of another scale (%s); it must learn this one's first",
                cfg.policy.pi05_checkpoint,
                "; ".join(differing),
            )
    online = online_count(cfg.batch_size, cfg.online_ratio)
    logger.info("[LEARNER] Each batch: %d online, %d offline samples", online, cfg.batch_size - online)


def episode_spec(data: OfflineData, replay: ReplayConfig, *, fps: float) -> EpisodeSpec:
    """What the actors' episodes must look like."""
    policy = data.policy
    features = policy.image_features
    return EpisodeSpec(
        state_dim=policy.robot_state_feature.shape[0],
        action_dim=policy.action_feature.shape[0],
        cameras={camera: tuple(features[camera].shape[1:]) for camera in policy_cameras(policy)},
        tasks=tuple(data.labels.tasks),
        fps=fps,
        max_frames=replay.max_episode_frames,
        max_bytes=int(replay.max_episode_mb * 2**20),
    )


def open_replay(cfg: OnlineTrainConfig, data: OfflineData, spec: EpisodeSpec) -> Replay:
    """The run's replay, with the names of the offline data, so that both are datasets of the same robot."""
    features = data.sources[0].features
    replay = Replay.open(
        cfg.run_dir / "replay",
        spec,
        repo_id=f"local/{cfg.job_name}_replay",
        names={key: features[key].get("names") for key in (OBS_STATE, ACTION)},
        robot_type=data.sources[0].dataset.meta.robot_type,
        capacity=cfg.policy.online_buffer_capacity,
        encoder=cfg.replay.rgb_encoder,
        started_from=cfg.policy.pi05_checkpoint,
    )
    logger.info("[LEARNER] Replay: %d transitions of %d episodes in %s", len(replay), replay.episodes, replay.root)
    return replay


def actor_setup(
    data: OfflineData,
    algorithm: RecapAlgorithm,
    processors: Processors,
    spec: EpisodeSpec,
    session: str,
) -> learner_pb2.ActorSetup:
    """All that an actor needs but the weights: the policy's configuration and processors, as a checkpoint has them."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for processor in processors:
            processor.save_pretrained(directory)
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        algorithm.policy.config.save_pretrained(directory)
        policy_config = (directory / "config.json").read_text()
    return learner_pb2.ActorSetup(
        session=session,
        policy_config=policy_config,
        processors=files,
        tasks=data.labels.tasks,
        fps=spec.fps,
        frozen_fingerprint=frozen_fingerprint(algorithm.policy, set(pushed_tensors(algorithm.policy))),
        max_episode_bytes=spec.max_bytes,
        max_episode_frames=spec.max_frames,
        action_names=dimension_names(data.sources[0].features[ACTION]) or [],
    )
