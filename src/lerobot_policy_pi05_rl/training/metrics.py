"""Where numbers go: means over the log window, ``metrics.jsonl``, W&B."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.common.wandb_utils import WandBLogger
from lerobot.configs.train import TRAIN_CONFIG_NAME, TrainPipelineConfig
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from ..config.resolve import changed
from ..errors import UserError, one_line
from ..runtime.files import replacing

logger = logging.getLogger(__name__)

STEP_KEY = "Optimization step"
METRICS_FILE = "metrics.jsonl"
EVAL = "eval"  # mode of a held-out evaluation's numbers
HISTOGRAM_BINS = 64  # W&B's default
ROUNDING = 1e-6  # relative; fp32 has 1.2e-7, and a value is a sum over some bins


class MetricsWindow:
    """Means of scalars since the last log line; its state is part of the checkpoint, so a resumed run's first
    line equals the uninterrupted run's."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, float]) -> None:
        """Add one step's scalars; NaN (nothing to average in that step) is left out."""
        for name, value in values.items():
            if not math.isnan(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self) -> dict[str, float]:
        """The means, and start anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is none.
        """
        sums = {str(name): float(value) for name, value in state["sums"].items()}
        counts = {str(name): int(value) for name, value in state["counts"].items()}
        if sums.keys() != counts.keys() or not all(count > 0 for count in counts.values()):
            raise ValueError("sums and counts do not belong together")
        self.sums, self.counts = sums, counts


class MetricsWriter:
    """One line per log step in ``metrics.jsonl``, and the same to W&B if that is enabled.

    Attributes:
        wandb_run_id: of the W&B run; what the configuration says where W&B is not enabled.
        held_out: step and numbers of the last held-out evaluation, also of one before the checkpoint that the run
            goes on from; None: there was none.
    """

    def __init__(self, cfg: TrainPipelineConfig, run_dir: Path, *, project: str | None, resumed_step: int | None):
        """``project``: of W&B."""
        self.path = run_dir / METRICS_FILE
        # A run killed before its first checkpoint has left lines, too.
        self.held_out = last_held_out(drop_lines_after(self.path, resumed_step or 0))
        self._file = self.path.open("a")
        self._wandb, self.wandb_run_id = _make_wandb(cfg, run_dir, project)

    def log(self, step: int, values: dict[str, float], *, mode: str = "train") -> None:
        """Write scalars of ``step``."""
        prefix = "" if mode == "train" else f"{mode}/"
        if mode == EVAL:
            self.held_out = step, values
        line = {"step": step, **{f"{prefix}{name}": value for name, value in sorted(values.items())}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log_dict({STEP_KEY: step, **values}, mode=mode, custom_step_key=STEP_KEY)

    def log_histograms(self, step: int, histograms: dict[str, Any]) -> None:
        """Histograms of (B,) tensors; W&B only."""
        if self._wandb is None or not histograms:
            return
        import wandb

        arrays = {name: values[values.isfinite()].double().cpu().numpy() for name, values in histograms.items()}
        data = {
            f"train/{name}": wandb.Histogram(np_histogram=histogram(array))
            for name, array in arrays.items()
            if array.size
        }
        wandb.log({**data, f"train/{STEP_KEY}": step})

    def log_video(self, step: int, name: str, path: Path) -> None:
        """A video file; W&B only."""
        if self._wandb is not None:
            import wandb

            wandb.log({f"train/{name}": wandb.Video(str(path)), f"train/{STEP_KEY}": step})

    def sync(self) -> None:
        """To the disk with all lines: a checkpoint must not outlive, in a power cut, the lines before it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and end the W&B run."""
        self._file.close()
        if self._wandb is not None:
            import wandb

            wandb.finish()


class NoWriter:
    """Takes the place of :class:`MetricsWriter` in the processes that do not write."""

    wandb_run_id: str | None = None
    held_out: tuple[int, dict[str, float]] | None = None

    def log(self, step: int, values: dict[str, float], *, mode: str = "train") -> None:
        """Nothing."""

    def log_histograms(self, step: int, histograms: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(64,) counts and (65,) edges of (N,) finite float64; values that differ by no more than fp32 rounds fall into
    one bin, where numpy refuses ("too many bins for data range") or shows the rounding as a shape."""
    low, high = float(values.min()), float(values.max())
    scale = max(1.0, abs(low), abs(high))
    if high - low <= ROUNDING * scale:
        low = (low + high) / 2 - scale * (0.5 + 0.5 / HISTOGRAM_BINS)  # the values in the middle of a bin
        high = low + scale
    return np.histogram(values, bins=HISTOGRAM_BINS, range=(low, high))


def last_held_out(lines: list[dict[str, Any]]) -> tuple[int, dict[str, float]] | None:
    """Step and numbers of the last held-out evaluation that these lines tell of; None: of none."""
    prefix = f"{EVAL}/"
    for line in reversed(lines):
        found = {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}
        if found:
            return line["step"], found
    return None


def drop_lines_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Forget lines that a run wrote after the checkpoint it resumes from (and a half-written last line); what the
    others say."""
    if not path.exists():
        return []
    kept, said = [], []
    for line in path.read_text(errors="replace").splitlines():
        try:
            values = json.loads(line)
            if values["step"] <= step:
                kept.append(line)
                said.append(values)
        except json.JSONDecodeError:
            logger.warning("%s: a half-written line was dropped", path)
    with replacing(path, path.with_suffix(".partial")) as aside:
        aside.write_text("".join(f"{line}\n" for line in kept))
    return said


def _make_wandb(cfg: TrainPipelineConfig, run_dir: Path, project: str | None) -> tuple[WandBLogger | None, str | None]:
    """LeRobot's logger, if W&B is enabled, and the run's id."""
    if not cfg.wandb.enable:
        return None, cfg.wandb.run_id
    import wandb

    run_id = cfg.wandb.run_id or (wandb_run_id(run_dir) if cfg.resume else None)
    goes_on = cfg.resume and run_id is not None
    logger.info("W&B project %s, mode %s", project, cfg.wandb.mode or "online")
    if goes_on:  # W&B's own step only ever grows
        logger.info(
            "W&B run %s goes on; what it got after the checkpoint comes again, at the same %r", run_id, STEP_KEY
        )
    # LeRobot's logger reads these, and puts the new run's id into what it is given.
    section = changed(cfg.wandb, project=project, run_id=run_id)
    view = changed(cfg, wandb=section, output_dir=run_dir, resume=goes_on)
    try:
        made = WandBLogger(view)
    except wandb.errors.Error as error:
        raise UserError(
            f"W&B: {one_line(error)}. Set wandb.enable=false, or wandb.run_id to the run to go on with"
        ) from error
    return made, section.run_id


def wandb_run_id(run_dir: Path) -> str | None:
    """The id of the W&B run that this run has logged to: W&B's own note of it, else the newest checkpoint's.

    None if it has not logged to any."""
    for file in (run_dir / "wandb" / "latest-run").glob("run-*.wandb"):
        return file.stem.removeprefix("run-")
    stored = run_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR / TRAIN_CONFIG_NAME
    if not stored.is_file():
        return None
    return json.loads(stored.read_text()).get("wandb", {}).get("run_id")
