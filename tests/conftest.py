"""A tiny π0.5 and tiny LeRobot datasets; nothing is downloaded."""

import logging
import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # and of the processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the Hub must fail at once
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["COLUMNS"] = "80"  # tables are as wide as without a terminal, whatever the terminal of today

if "ATEN_CPU_CAPABILITY" in os.environ:  # torch's cache does not tell what was compiled for other vector instructions
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{tempfile.gettempdir()}/inductor_{os.environ['ATEN_CPU_CAPABILITY']}"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from double import in_double
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig
from recordings import MIXED_EPISODES, make_dataset
from tiny import randomised, tiny_config

from lerobot_policy_pi05_rl.advantage import PolicyExtraction
from lerobot_policy_pi05_rl.demo.env_config import PandaPickCubeEnv
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy

torch.set_num_threads(1)
for name in list(os.environ):  # what a person or a cluster has set for other runs
    if name in ("FORCE_COLOR", "PI05_RL_TOKEN") or name.startswith(("WANDB_", "ACCELERATE_")):
        del os.environ[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `make test`: each has one thread and, with PyTorch and LeRobot, up to 3 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // 3_000_000_000))


LONGEST = {"test_processes.py", "test_main_job.py", "test_documents.py", "test_kill_resume.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first: no worker is left with one while the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


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
def registry_as_before(monkeypatch):
    """A test registers policy extractions of its own; nobody else finds them."""
    monkeypatch.setattr(PolicyExtraction, "_known", dict(PolicyExtraction._known))


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


@pytest.fixture(scope="session")
def mixed_dataset(tmp_path_factory) -> Path:
    """Four short episodes, two of them successes, with images in the Parquet file."""
    root = tmp_path_factory.mktemp("data") / "mixed"
    make_dataset(root, MIXED_EPISODES)
    return root


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
