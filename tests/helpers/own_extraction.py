"""A policy extraction ``mine`` made of a test's own methods, and a run under it. Needs ``registry_as_before``."""

from pathlib import Path

import numpy as np
from recordings import make_dataset, make_labeling
from tiny import write_config

from lerobot_policy_pi05_rl.advantage import PolicyExtraction
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import open_offline_data


def own(**members) -> None:
    """Register ``mine``."""
    PolicyExtraction.register("mine")(type("Mine", (PolicyExtraction,), members))


def opened(tmp_path, dataset, **changes):
    """(cfg, data) of a run under ``mine``, with a labeling that tags the first quarter positive."""
    path = write_config(tmp_path / "c.json", dataset, tmp_path / "run", policy__policy_extraction="mine", **changes)
    cfg = load_config(path)
    if cfg.dataset.labeling:
        make_labeling(cfg, cfg.dataset.labeling, lambda count: np.arange(count) < count // 4)
    return cfg, open_offline_data(cfg)


def success_and_failure(root: Path) -> Path:
    """A dataset of an episode of 8 frames that succeeded and one of 12 that failed."""
    make_dataset(root, [{"length": 8, "success": True}, {"length": 12, "success": False}])
    return root
