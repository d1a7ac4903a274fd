"""Record demonstrations of the scripted operators as a LeRobot dataset.

python -m lerobot_policy_pi05_rl.demo.record --root data/demo --episodes 120
"""

import argparse
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..command.run import set_up_logging
from .constants import CUBE_JITTER_M, IMAGE_SIZE, MAX_EPISODE_STEPS
from .env_config import PANDA, SimulatorFactory
from .operators import STYLES, ScriptedOperator
from .recorder import Simulation, record_episodes

logger = logging.getLogger(__name__)

DEFAULT_MIX = {"fast": 1 / 3, "slow": 1 / 3, "misses": 1 / 3}
MIXED_QUALITY_MIX = {name: 1 / 4 for name in ("fast", "slow", "misses", "recovers")}
MIXES = {"demo": DEFAULT_MIX, "recovers": MIXED_QUALITY_MIX}
_REPO_ID = "local/panda_pick_cube"


def record_dataset(
    root: str | Path,
    repo_id: str,
    episodes: int = 120,
    seed: int = 0,
    mix: Mapping[str, float] = DEFAULT_MIX,
    image_size: int = IMAGE_SIZE,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    cube_jitter: float = CUBE_JITTER_M,
) -> Path:
    """Record a demonstration set, or return the one that the same call recorded before.

    What the frames and the recipe file hold: see `recorder.record_episodes`.

    Args:
        seed: of start states, operators' order and operators' noise.
        mix: operator name to its share; shares are normalised.
        image_size: height and width of the pictures, pixels.
        cube_jitter: half width of the cube's uniform jitter, metres.

    Raises:
        FileExistsError: when the root holds something else than a recording with these settings.
        ValueError: for an unknown operator, a negative share or episodes < 1.
    """
    operators = operator_order(episodes, mix, seed)
    settings = {"image_size": image_size, "max_episode_steps": max_episode_steps, "cube_jitter": cube_jitter}
    recipe = {"repo_id": repo_id, "seed": seed, **settings, "operators": operators}
    simulation = Simulation(
        make_env=lambda _: SimulatorFactory(PANDA, settings)(),
        make_operator=lambda _, name, rng: ScriptedOperator(name, rng),
        robot_type="panda",
    )
    return record_episodes(Path(root), recipe, [("", name) for name in operators], simulation)


def operator_order(
    episodes: int, mix: Mapping[str, float], seed: int, known: Collection[str] = tuple(STYLES)
) -> list[str]:
    """Names of the operators, one per episode: shares rounded to whole episodes, in random order.

    Raises:
        ValueError: for an unknown operator, a negative share, no positive share, or episodes < 1.
    """
    unknown = sorted(set(mix) - set(known))
    total = sum(mix.values())
    if episodes < 1 or unknown or min(mix.values(), default=0.0) < 0.0 or total <= 0.0:
        raise ValueError(
            f"Need episodes >= 1 and non-negative shares of {sorted(known)} with a positive sum, "
            f"got {episodes=}, mix={dict(mix)}."
        )
    # Cumulative rounding: the counts add up and each is within one of its share.
    edges = np.rint(np.cumsum(list(mix.values())) / total * episodes).astype(int)
    names = np.repeat(list(mix), np.diff(edges, prepend=0))
    return np.random.default_rng(seed).permutation(names).tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Record demonstrations of the scripted operators.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--repo-id", default=_REPO_ID, help="LeRobot name of the dataset")
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE)
    parser.add_argument("--mix", choices=MIXES, default="demo", help="the operators, in equal parts")
    for name in STYLES:
        parser.add_argument(f"--{name}", type=float, help=f"share of `{name}` (default: the mix's)")
    args = parser.parse_args(argv)
    set_up_logging()
    start = time.perf_counter()
    shares = {name: getattr(args, name) for name in STYLES}
    mix = MIXES[args.mix] | {name: share for name, share in shares.items() if share is not None}
    record_dataset(args.root, args.repo_id, args.episodes, args.seed, mix, args.image_size)
    logger.info(f"[DEMO] Dataset in {args.root} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
