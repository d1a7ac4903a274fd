"""A picture of a few recorded episodes, one row each: front camera above, wrist camera below.

python benchmarks/contact_sheet.py --root data/demo --output docs/demo.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import OBS_IMAGES
from PIL import Image, ImageDraw, ImageFont

from lerobot_policy_pi05_rl.demo.constants import CAMERA_NAMES
from lerobot_policy_pi05_rl.demo.recorder import RECIPE_FILE, SUCCESS

_TITLE_PX = 22


def write_contact_sheet(
    root: str | Path, output: str | Path, episodes: Sequence[int] | None = None, columns: int = 8, zoom: int = 2
) -> Path:
    """Draw evenly spaced frames of recorded episodes.

    Args:
        root: folder of a dataset recorded by `record_dataset`.
        output: PNG file to write.
        episodes: which ones; the first of every operator if None.
        columns: frames per episode; the first is the episode's first frame, the last its last.
        zoom: whole factor by which the pictures are enlarged.

    Returns:
        The output path.

    Raises:
        FileNotFoundError: when the root holds no demo recording.
        ValueError: for fewer than two columns or an episode that does not exist.
    """
    root, output = Path(root), Path(output)
    recipe = json.loads((root / RECIPE_FILE).read_text())
    operators = recipe["operators"]
    chosen = [operators.index(name) for name in sorted(set(operators))] if episodes is None else list(episodes)
    if columns < 2 or not all(0 <= i < len(operators) for i in chosen):
        raise ValueError(f"Need columns >= 2 and episodes in 0..{len(operators) - 1}, got {columns=}, {chosen}.")
    dataset = LeRobotDataset(recipe["repo_id"], root=root)
    rows = []
    for episode in chosen:
        meta = dataset.meta.episodes[episode]
        start, end = meta["dataset_from_index"], meta["dataset_to_index"]
        frames = [dataset[int(i)] for i in np.linspace(start, end - 1, columns).round()]
        outcome = "success" if bool(frames[-1][SUCCESS]) else "failure"
        what = f"{recipe['tasks'][episode]}, {operators[episode]}" if "tasks" in recipe else operators[episode]
        title = f"episode {episode}: {what}, {outcome}, {end - start} steps"
        rows += [_title(title, columns * recipe["image_size"] * zoom), _strip(frames, zoom)]
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(output)
    return output


def _strip(frames: Sequence[dict], zoom: int) -> np.ndarray:
    """Cameras below each other, frames side by side: uint8 (cameras * size * zoom, frames * size * zoom, 3)."""
    cameras = []
    for name in CAMERA_NAMES:
        # float (3, size, size) in [0, 1] as LeRobot decodes it
        pictures = [frame[f"{OBS_IMAGES}.{name}"].numpy().transpose(1, 2, 0) for frame in frames]
        cameras.append(np.concatenate(pictures, axis=1))
    strip = (np.concatenate(cameras) * 255).round().astype(np.uint8)
    return strip.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _title(text: str, width: int) -> np.ndarray:
    """Black text on white: uint8 (_TITLE_PX, width, 3)."""
    picture = Image.new("RGB", (width, _TITLE_PX), "white")
    ImageDraw.Draw(picture).text((4, 3), text, fill="black", font=ImageFont.load_default(14))
    return np.asarray(picture)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet of recorded episodes.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the recorded dataset")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    parser.add_argument("--episodes", type=int, nargs="+", help="default: the first of every operator")
    args = parser.parse_args(argv)
    print(f"[DEMO] Wrote {write_contact_sheet(args.root, args.output, args.episodes)}")


if __name__ == "__main__":
    main()
