"""A tiny π0.5 and tiny LeRobot datasets; nothing is downloaded."""

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the Hub must fail at once
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["COLUMNS"] = "80"  # tables are as wide as without a terminal, whatever the terminal of today

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from double import in_double
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.data.batch import ACTION_IS_PAD, FOLD, INTERVENTION, POSITION, RETURN, TASK_INDEX
from lerobot_policy_pi05_rl.data.dataset import open_sources
from lerobot_policy_pi05_rl.data.episodes import label_episodes
from lerobot_policy_pi05_rl.data.labeling import Labeling, frame_columns, labeling_path, write_labeling
from lerobot_policy_pi05_rl.data.sources import dataset_fingerprint
from lerobot_policy_pi05_rl.demo.env_config import PandaPickCubeEnv
from lerobot_policy_pi05_rl.model.cache import Context
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.processor_pi05_rl import ADVANTAGE_MASKS, ADVANTAGE_TOKENS
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig
from lerobot_policy_pi05_rl.runtime.scheduling import unchanged_scheduling

torch.set_num_threads(1)
for name in list(os.environ):  # what a person or a cluster has set for other runs
    if name in ("FORCE_COLOR", "PI05_RL_TOKEN") or name.startswith(("WANDB_", "ACCELERATE_")):
        del os.environ[name]

TINY_SIZES = {
    "llm_width": 64,
    "llm_mlp_dim": 128,
    "expert_width": 32,
    "expert_mlp_dim": 64,
    "llm_depth": 3,
    "head_dim": 8,
    "vision_width": 32,
    "vision_mlp_dim": 64,
    "vision_depth": 2,
    "vision_heads": 4,
    "vision_patch_size": 16,
    "image_resolution": [32, 32],
    "vocab_size": 300,
    "critic_llm_depth": 2,
    "num_value_queries": 2,
    "chunk_size": 6,
    "n_action_steps": 3,
    "max_action_dim": 8,
    "max_state_dim": 8,
}
CAMERAS = ("observation.images.front", "observation.images.wrist")


def tiny_config(**overrides) -> PI05RLConfig:
    """A π0.5 of some ten thousand parameters, on CPU."""
    values = {
        **TINY_SIZES,
        "image_resolution": (32, 32),
        "device": "cpu",
        "tokenizer": "tasks",
        "tokenizer_max_length": 48,
        "input_features": {
            **{camera: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for camera in CAMERAS},
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
    }
    return PI05RLConfig(**{**values, **overrides})


@pytest.fixture(autouse=True)
def no_handler_of_an_earlier_test():
    """A command run in a test logs to that test's captured stream, which is closed when the next one starts."""
    root = logging.getLogger()
    for handler in [
        handler for handler in root.handlers if getattr(getattr(handler, "stream", None), "closed", False)
    ]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True)
def nobody_leaves_real_time_priority():
    """Whoever encodes a video: as root, SVT-AV1 takes it for its caller, and later threads inherit it."""
    yield
    assert not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture
def logging_as_before():
    """The command line sets up the root logger; put pytest's handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def float64() -> Iterator[None]:
    """The whole test, the fixtures that it names after this one included, computes in float64."""
    with in_double():
        yield


@pytest.fixture
def tiny_policy() -> PI05RLPolicy:
    """A tiny policy whose every parameter matters (stock zero-initialises some)."""
    torch.manual_seed(0)
    return randomised(PI05RLPolicy(tiny_config()))


def randomised(policy: PI05RLPolicy) -> PI05RLPolicy:
    """Random values where the initialisation has zeros, so that equality tests compare something."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return policy


def model_inputs(batch: int = 3, text: int = 12, seed: int = 1) -> dict[str, torch.Tensor]:
    """What the network reads, drawn: two cameras, padded text, both tags, actions, noise, time."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.ones(batch, text, dtype=torch.bool)
    masks[0, text - 4 :] = False
    return {
        "images": [torch.rand(batch, 3, 32, 32, generator=g) * 2 - 1 for _ in CAMERAS],
        "img_masks": [torch.ones(batch, dtype=torch.bool) for _ in CAMERAS],
        "tokens": torch.randint(2, 300, (batch, text), generator=g),
        "masks": masks,
        "tag_tokens": torch.randint(2, 300, (batch, 3), generator=g),
        "actions": torch.randn(batch, 6, 8, generator=g),
        "noise": torch.randn(batch, 6, 8, generator=g),
        "time": torch.rand(batch, generator=g),
    }


def make_batch(first: int = 0, size: int = 6) -> dict:
    """A preprocessed batch, drawn from its positions."""
    g = torch.Generator().manual_seed(first)
    return {
        **{camera: torch.rand(size, 3, 32, 32, generator=g) for camera in CAMERAS},
        "observation.language.tokens": torch.randint(2, 300, (size, 9), generator=g),
        "observation.language.attention_mask": torch.ones(size, 9, dtype=torch.bool),
        ADVANTAGE_TOKENS: torch.tensor([[2, 3, 4], [2, 3, 5]]).expand(size, -1, -1),
        ADVANTAGE_MASKS: torch.ones(size, 2, 3, dtype=torch.bool),
        "action": torch.randn(size, 6, 3, generator=g),
        ACTION_IS_PAD: torch.arange(6).expand(size, -1) >= torch.randint(1, 7, (size, 1), generator=g),
        RETURN: -torch.rand(size, generator=g),
        TASK_INDEX: torch.zeros(size, dtype=torch.long),
        INTERVENTION: torch.zeros(size, dtype=torch.bool),
        FOLD: torch.zeros(size, dtype=torch.long),
        POSITION: torch.arange(first, first + size),
    }


def batches() -> Iterator[dict]:
    """:func:`make_batch` without end, six positions at a time."""
    first = 0
    while True:
        yield make_batch(first)
        first += 6


def read_prefix(policy: PI05RLPolicy, batch: dict) -> Context:
    """What the actor reads of a batch's observations."""
    return policy.model.read_prefix(policy.embed_observation(batch))


def make_algorithm(steps: int = 10, **overrides) -> RecapAlgorithm:
    """The update around a tiny randomised policy; ``overrides`` are fields of its configuration."""
    torch.manual_seed(0)
    values = {"advantage_window": 4, "actor_lr": 1e-3, "critic_lr": 1e-3, **overrides}
    policy = randomised(PI05RLPolicy(tiny_config(**values)))
    config = RecapConfig(policy_config=policy.config, seed=3, total_steps=steps)
    return RecapAlgorithm(policy, config, tasks=["pick the cube"])


def make_dataset(
    root: Path,
    episodes: list[dict],
    *,
    video: bool = False,
    columns: tuple[str, ...] = ("next.reward", "next.success"),
    fps: int = 10,
    seed: int = 0,
    picture: Callable[[int, int], np.ndarray] | None = None,
) -> LeRobotDataset:
    """A LeRobot dataset of drawn frames.

    Args:
        episodes: per episode ``length``, and optionally ``success``, ``truncated``, ``reward`` (of the last
            frame), ``task``, ``intervention`` (first frame of a correction).
        columns: which label columns exist.
        picture: (episode, step) → (32, 32, 3) uint8 of every camera; None: drawn.
    """
    shapes = {"observation.state": (4,), "action": (3,)}
    features = {key: {"dtype": "float32", "shape": shape, "names": None} for key, shape in shapes.items()}
    for camera in CAMERAS:
        features[camera] = {
            "dtype": "video" if video else "image",
            "shape": (32, 32, 3),
            "names": ["height", "width", "channels"],
        }
    dtypes = {"next.reward": "float32"}
    for column in columns:
        features[column] = {"dtype": dtypes.get(column, "bool"), "shape": (1,), "names": None}
    dataset = LeRobotDataset.create("test/tiny", fps=fps, features=features, root=root, use_videos=video)
    rng = np.random.default_rng(seed)
    for number, episode in enumerate(episodes):
        for step in range(episode["length"]):
            last = step == episode["length"] - 1
            labels = {
                "next.reward": np.array([episode.get("reward", 0.0) if last else 0.0], dtype=np.float32),
                "next.success": np.array([last and episode.get("success", False)]),
                "next.truncated": np.array([last and episode.get("truncated", False)]),
                "intervention": np.array([step >= episode.get("intervention", 10**6)]),
            }
            dataset.add_frame(
                {
                    "observation.state": rng.normal(size=4).astype(np.float32),
                    "action": np.array([step, *rng.normal(size=2)], dtype=np.float32),
                    **{
                        camera: picture(number, step) if picture else rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                        for camera in CAMERAS
                    },
                    **{column: labels[column] for column in columns},
                    "task": episode.get("task", "pick the cube"),
                }
            )
        with unchanged_scheduling():
            dataset.save_episode()
    dataset.finalize()
    return LeRobotDataset("test/tiny", root=root)


MIXED_EPISODES = [
    {"length": 9, "success": True},
    {"length": 12, "success": False},
    {"length": 7, "success": True},
    {"length": 10, "success": False},
]


@pytest.fixture(scope="session")
def mixed_dataset(tmp_path_factory) -> Path:
    """Four short episodes, two of them successes, with images in the Parquet file."""
    root = tmp_path_factory.mktemp("data") / "mixed"
    make_dataset(root, MIXED_EPISODES)
    return root


def write_config(path: Path, dataset: Path, run_dir: Path, **changes) -> Path:
    """A configuration for a run of a few steps on the CPU; dotted keys in ``changes`` override."""
    raw = {
        "output_dir_offline": str(run_dir),
        "seed": 7,
        "num_workers": 0,
        "batch_size": 4,
        "log_freq": 1,
        "save_freq": 100,
        "dataset": {"repo_id": "test/tiny", "root": str(dataset), "eval_split": 0.0},
        "policy": {
            **TINY_SIZES,
            "device": "cpu",
            "tokenizer": "tasks",
            "tokenizer_max_length": 48,
            "offline_steps": 4,
            "actor_lr": 1e-3,
            "critic_lr": 1e-3,
        },
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path.write_text(json.dumps(raw))
    return path


def with_column(root: Path, name: str, values: list, dtype: str, kind: pa.DataType) -> None:
    """Put a column, or another one of its name, into the dataset's data and metadata."""
    (file,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(file).replace_schema_metadata(None)
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, pa.array(values, kind)), file)
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"][name] = {"dtype": dtype, "shape": [1], "names": None}
    (root / "meta" / "info.json").write_text(json.dumps(info))


def make_labeling(cfg, name: str, positive: Callable[[int], np.ndarray], **meta) -> None:
    """Labelings of the configuration's datasets beside them, of no critic: all values are 0.

    Args:
        positive: number of frames → (frames,) bool, those tagged positive.
        meta: what else they say of themselves.
    """
    sources = open_sources(cfg)
    labels = label_episodes(sources, cfg.reward, cfg.policy)
    for number, source in enumerate(sources):
        count = len(source.columns["index"])
        columns = frame_columns(number, source, labels)
        columns |= {key: np.zeros(count, np.float32) for key in ("value", "advantage")}
        columns |= {"fold": np.full(count, -1, np.int8), "positive": positive(count)}
        columns["tag"] = columns["positive"].astype(np.int8)
        dataset = {
            "repo_id": source.name,
            "root": str(source.dataset.root),
            "fingerprint": dataset_fingerprint(source),
        }
        said = {"dataset": dataset, "critic": {"path": "nowhere", "fingerprint": "none"}, "n_step": None, **meta}
        write_labeling(labeling_path(source, name), Labeling(columns, said))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny stock policy with random weights, for 32x32 pictures of the demo's simulators."""
    env_cfg = PandaPickCubeEnv(image_size=32)
    cfg = ACTConfig(
        pretrained_backbone_weights=None,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        use_vae=False,
        chunk_size=4,
        n_action_steps=4,
        device="cpu",
    )
    policy = make_policy(cfg, env_cfg=env_cfg)
    zero_one = {"mean": 0.0, "std": 1.0}
    stats = {}
    for key, feature in {**cfg.input_features, **cfg.output_features}.items():
        shape = (3, 1, 1) if "image" in key else feature.shape
        stats[key] = {name: torch.full(shape, value) for name, value in zero_one.items()}
    path = tmp_path_factory.mktemp("checkpoint")
    policy.save_pretrained(path)
    for pipeline in make_pre_post_processors(cfg, dataset_stats=stats):
        pipeline.save_pretrained(path)
    return path
