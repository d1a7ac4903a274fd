"""What is sent to an actor and what it has from the checkpoint make the learner's policy, whatever trains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from actors import decoded
from lerobot.utils.constants import OBS_STATE
from recordings import MIXED_EPISODES, make_dataset
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl.checkpoint.write import load_training_state
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import resolved
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.model.trainable import pushed_tensors
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.online.actor.chunk_model import ChunkModel, Weights
from lerobot_policy_pi05_rl.online.actor.setup import (
    SetupError,
    acts_alike,
    build_policy,
    check_frozen,
    read_processors,
)
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.online.episode import Episode, encode_picture, new_uid, pack
from lerobot_policy_pi05_rl.online.learner.batches import OnlineBatches, online_count
from lerobot_policy_pi05_rl.online.learner.feed import arrival_labels
from lerobot_policy_pi05_rl.online.learner.learner import train_online
from lerobot_policy_pi05_rl.online.learner.setup import actor_setup, episode_spec
from lerobot_policy_pi05_rl.online.transport.inbox import Inbox
from lerobot_policy_pi05_rl.online.transport.weights import pack_weights, unpack_weights
from lerobot_policy_pi05_rl.returns import Outcome
from lerobot_policy_pi05_rl.training.start import prepare

PEFT = ("--peft.r=4",)
TASK = "pick the cube"


@pytest.fixture(scope="module")
def corrected_dataset(tmp_path_factory) -> Path:
    """Episodes with the columns that the replay has."""
    root = tmp_path_factory.mktemp("lora_online") / "data"
    columns = ("next.reward", "next.success", "intervention")
    make_dataset(root, [{**episode, "intervention": 5} for episode in MIXED_EPISODES], columns=columns)
    return root


@pytest.fixture(scope="module")
def bases(tmp_path_factory, corrected_dataset) -> list[Path]:
    """Two offline checkpoints of the same sizes."""
    folder = tmp_path_factory.mktemp("lora_bases")
    found = []
    for seed in (1, 2):
        path = write_config(folder / f"{seed}.json", corrected_dataset, folder / str(seed), seed=seed)
        found.append(train_offline(load_config(path, ["--policy.offline_steps=2"])) / "pretrained_model")
    return found


def configured(folder: Path, dataset: Path, base: Path | None, *overrides: str) -> OnlineTrainConfig:
    path = write_config(folder / "run.json", dataset, folder / "offline", env={"type": "panda_pick_cube"})
    checkpoint = "null" if base is None else str(base)
    running = "--policy.advantage_labels=running"  # nothing here is about labels
    given = [f"--output_dir={folder / 'online'}", f"--policy.pi05_checkpoint={checkpoint}", running, *overrides]
    cfg = load_config(path, given, OnlineTrainConfig)
    return resolved(cfg)


class Learner:
    """The learner's half without its server."""

    def __init__(self, cfg: OnlineTrainConfig, checkpoint: Path | None = None):
        self.data, self.algorithm, self.processors = prepare(cfg, checkpoint)
        self.cfg = cfg
        if checkpoint is not None:
            load_training_state(checkpoint, self.algorithm)
        self.policy = self.algorithm.policy
        spec = episode_spec(self.data, cfg.replay, fps=cfg.env.fps)
        self.setup = actor_setup(self.data, self.algorithm, self.processors, spec, "session")
        self.model = ChunkModel(self.policy, self.processors, TASK)

    def update(self, count: int) -> None:
        start, cfg = self.algorithm.sample_position, self.cfg
        online = online_count(cfg.batch_size, cfg.online_ratio)
        batches = OnlineBatches(self.data, cfg.batch_size, online, seed=cfg.seed, start=start)
        labels = arrival_labels(cfg, self.data, self.algorithm)
        batches.show(labels.frames(self.data.sources[0]))  # for a replay of the same robot
        for _ in range(count):
            self.algorithm.update(batches)
        batches.close()

    def push(self) -> memoryview:
        return pack_weights(pushed_tensors(self.policy), torch.float32)


def join(cfg: OnlineTrainConfig, setup) -> tuple[PI05RLPolicy, ChunkModel]:
    """What an actor makes of the learner's answer."""
    config = decoded(setup, cfg)
    policy = build_policy(config, cfg.peft)
    check_frozen(policy, list(pushed_tensors(policy)), setup.frozen_fingerprint)
    return policy, ChunkModel(policy, read_processors(dict(setup.processors), config), TASK)


def receive(policy: PI05RLPolicy, model: ChunkModel, data: memoryview) -> None:
    shapes = {name: tensor.shape for name, tensor in pushed_tensors(policy).items()}
    model.load(Weights(1, unpack_weights(data, shapes)))


def chunk(model: ChunkModel, number: int = 0) -> torch.Tensor:
    """(T, A) as the environment takes them, of a drawn observation and drawn noise."""
    rng = np.random.default_rng(number)
    observation = {camera: rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for camera in CAMERAS}
    torch.manual_seed(number)
    return model.compute({**observation, OBS_STATE: rng.normal(size=4).astype(np.float32)}, 0, None, None)[1]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        PEFT,
        (*PEFT, "--peft.full_training_modules=[action_out_proj]"),
        ("--policy.train_expert_only=true",),
        ("--policy.freeze_vision_encoder=true", "--policy.train_language_from_layer=2"),
    ],
)
def test_the_actors_chunk_is_the_learners(tmp_path, corrected_dataset, bases, overrides):
    cfg = configured(tmp_path, corrected_dataset, bases[0], "--policy.actor_lr=0.01", *overrides)
    learner = Learner(cfg)
    policy, model = join(configured(tmp_path, corrected_dataset, bases[0], *overrides), learner.setup)
    before = [chunk(model, number) for number in (0, 1)]
    for number in (0, 1):
        learner.update(2)
        receive(policy, model, learner.push())
        for seen, old in enumerate(before):
            mine = chunk(model, seen)
            torch.testing.assert_close(mine, chunk(learner.model, seen), rtol=0, atol=0)
            assert not torch.allclose(mine, old, atol=1e-4), number
    sent, everything = pushed_tensors(learner.policy), dict(learner.policy.named_parameters())
    assert sent.keys() == pushed_tensors(policy).keys()
    assert not any(name.startswith("model.critic") for name in sent)
    if PEFT[0] in overrides:
        assert all(".lora_" in name or "modules_to_save" in name for name in sent)
        actor = sum(tensor.nbytes for name, tensor in everything.items() if "critic" not in name)
        assert len(learner.push()) < actor / 3


def test_a_resumed_learner_is_the_same_to_an_actor_that_goes_on(tmp_path, corrected_dataset, bases):
    """A real run: killed before its first checkpoint, an episode waits in its inbox; then its end is moved."""
    short = (
        "--policy.online_steps=2",
        "--save_freq=2",
        "--policy.online_step_before_learning=8",
        "--policy.actor_learner_config.learner_port=0",
    )
    cfg = configured(tmp_path, corrected_dataset, bases[0], *PEFT, *short, "--resume=true")
    fresh = Learner(configured(tmp_path, corrected_dataset, bases[0], *PEFT, *short))
    policy, model = join(configured(tmp_path, corrected_dataset, bases[0], *PEFT), fresh.setup)
    inbox = Inbox(cfg.run_dir / "inbox", known=lambda uid: False)
    episode = drawn_episode(8)
    assert inbox.store(episode.uid, pack(episode))
    checkpoint = train_online(cfg)
    assert checkpoint.name == "000002" and (checkpoint / "pretrained_model" / "adapter_model.safetensors").is_file()
    card = (checkpoint / "pretrained_model" / "README.md").read_text()
    assert "actors had sent 1 episode by this step, 8 transitions" in card and "a LoRA adapter of rank 4" in card
    assert "| frames | 8 |" in (cfg.run_dir / "replay" / "README.md").read_text()

    later = ("--policy.online_steps=9", "--policy.episode_logging_freq=3", "--resume=true")
    resumed = Learner(configured(tmp_path, corrected_dataset, bases[0], *PEFT, *later), checkpoint)
    assert resumed.algorithm.optimization_step == 2
    assert resumed.setup.frozen_fingerprint == fresh.setup.frozen_fingerprint
    assert dict(resumed.setup.processors) == dict(fresh.setup.processors)
    assert acts_alike(resumed.setup.policy_config, fresh.setup.policy_config)
    for _ in range(2):
        receive(policy, model, resumed.push())
        torch.testing.assert_close(chunk(model), chunk(resumed.model), rtol=0, atol=0)
        resumed.update(1)
    other = Learner(configured(tmp_path, corrected_dataset, bases[0], *PEFT, "--policy.guidance_scale=2"))
    assert not acts_alike(other.setup.policy_config, fresh.setup.policy_config)


def drawn_episode(length: int) -> Episode:
    rng = np.random.default_rng(0)
    pictures = [encode_picture(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), 90) for _ in range(length)]
    return Episode(
        uid=new_uid(),
        actor="arm",
        task=TASK,
        outcome=Outcome.SUCCESS,
        state=rng.normal(size=(length, 4)).astype(np.float32),
        action=rng.normal(size=(length, 3)).astype(np.float32),
        reward=np.zeros(length, dtype=np.float32),
        intervention=np.zeros(length, dtype=bool),
        policy_version=np.zeros(length, dtype=np.int64),
        pictures=dict.fromkeys(CAMERAS, pictures),
        started=0.0,
        report={},
    )


def test_an_actor_with_other_weights_or_settings_is_refused(tmp_path, corrected_dataset, bases):
    base, other = bases
    learner = Learner(configured(tmp_path, corrected_dataset, base, *PEFT))
    cases = [
        (None, (), "give this actor the same --peft"),
        (base, (), "give this actor the same --peft"),
        (other, PEFT, "policy.pi05_checkpoint to the checkpoint that the learner started from"),
        (base, ("--peft.r=8",), "--peft.* to its settings"),
        (base, (*PEFT, "--peft.lora_alpha=64"), "--peft.* to its settings"),
        (base, (*PEFT, "--peft.target_modules=[q_proj]"), "--peft.* to its settings"),
    ]
    for checkpoint, overrides, message in cases:
        cfg = configured(tmp_path, corrected_dataset, checkpoint, *overrides)
        with pytest.raises(SetupError) as refused:
            join(cfg, learner.setup)
        assert message in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="pi05_checkpoint is null"):
        configured(tmp_path, corrected_dataset, None, *PEFT)
    join(configured(tmp_path, corrected_dataset, base, *PEFT), learner.setup)

    whole = Learner(configured(tmp_path, corrected_dataset, base))
    with pytest.raises(SetupError, match="trains no adapter"):
        join(configured(tmp_path, corrected_dataset, base, *PEFT), whole.setup)
