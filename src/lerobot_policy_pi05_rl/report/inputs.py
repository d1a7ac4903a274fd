"""What the report is about: a run directory or a dataset folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.files.metadata import read_info
from ..data.named import could_be_repository
from ..errors import UserError, typed_line

LAST_TRAIN_CONFIG = Path("checkpoints/last/pretrained_model/train_config.json")
INFO = Path("meta/info.json")
RUN_FOLDER = "checkpoints"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Subject:
    """A dataset and, unless the dataset was named itself, the run that was trained on it."""

    run: Path | None
    dataset_root: Path
    repo_id: str | None
    info: dict[str, Any]  # the dataset's meta/info.json
    labeling: str | None = None  # that the run was trained from
    episodes: list[int] | None = None  # that the run was trained on; None: all

    @property
    def name(self) -> str:
        return (self.run or self.dataset_root).resolve().name

    @property
    def fps(self) -> float:
        return float(self.info["fps"])

    @property
    def checkpoint_step(self) -> int | None:
        """The step of the run's newest checkpoint."""
        if self.run is None:
            return None
        name = (self.run / "checkpoints" / "last").resolve().name
        return int(name) if name.isdigit() else None


def is_dataset(subject: str | Path) -> bool:
    """Whether a command's argument names a dataset: its folder, or a repository of the Hub; else it is a run's.

    Raises:
        UserError: it is none of these.
    """
    path = Path(subject)
    if path.is_dir():
        if not (path / INFO).is_file() and not (path / RUN_FOLDER).is_dir():
            what = f"neither a run (it has no {RUN_FOLDER}/) nor a LeRobot dataset (it has no {INFO.as_posix()})"
            raise UserError(f"{path} is {what}")
        return (path / INFO).is_file()
    if path.exists() or not could_be_repository(str(subject)):
        raise UserError(
            f"{subject} is not a folder; give a run directory, a LeRobot dataset's folder, or a dataset of the Hub "
            "(you/dataset)"
        )
    return True


def open_subject(path: str | Path) -> Subject:
    """Tell a run from a dataset and read what both need.

    Raises:
        UserError: ``path`` is neither, the run's dataset is not there, or the dataset cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give a run directory or a LeRobot dataset's folder")
    if is_dataset(path):
        return Subject(None, path, None, read_info(path, path.name))
    dataset = run_dataset(path)
    repo_id, root = dataset["repo_id"], dataset["root"]
    if not (root / INFO).is_file():
        raise UserError(
            f"the run {path} was trained on {root}, which has no {INFO.as_posix()}; start from the folder the run was "
            "started in, or give the dataset's folder itself"
        )
    return Subject(path, root, repo_id, read_info(root, repo_id), dataset.get("labeling"), dataset.get("episodes"))


def run_dataset(run: Path) -> dict[str, Any]:
    """The ``dataset`` keys of the run's newest checkpoint; ``root`` is the first dataset's folder.

    Raises:
        UserError: there is no readable checkpoint, or it names no dataset.
    """
    path = run / LAST_TRAIN_CONFIG
    try:
        dataset = json.loads(path.read_text())["dataset"]
        repo_id, root = str(dataset["repo_id"]), dataset.get("root")
    except FileNotFoundError:
        raise UserError(f"the run {run} has no finished checkpoint yet: {path} does not exist") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} names no dataset ({typed_line(error)}); give the dataset's folder") from error
    if root is None:
        from lerobot.utils.constants import HF_LEROBOT_HOME

        root = HF_LEROBOT_HOME / repo_id
    return {**dataset, "repo_id": repo_id, "root": Path(root)}


def read_metrics(run: Path | None) -> dict[str, list[tuple[int, float]]]:
    """Metric → (step, value) pairs of the run's ``metrics.jsonl``; empty without a run or a file."""
    path = None if run is None else run / METRICS_FILE
    if path is None or not path.is_file():
        return {}
    series: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the line that a running process is writing
        for name, value in values.items():
            if isinstance(value, int | float):
                series.setdefault(name, []).append((step, float(value)))
    return series
