"""A dataset that a command line names: its folder, or a repository of the Hub."""

from pathlib import Path
from typing import NamedTuple

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.utils import INFO_PATH
from lerobot.utils.constants import ACTION, OBS_STATE

from ..errors import UserError
from ..returns import Outcome
from .files.folder import open_dataset
from .outcomes import known_outcomes
from .pictures.cameras import policy_features
from .sources import Source, load_source, outcomes_path


class NamedDataset(NamedTuple):
    """One dataset with its columns; pictures are not opened."""

    repo_id: str  # of a folder: its name behind its parent's
    folder: Path | None  # None: what LeRobot keeps of the Hub's
    source: Source
    features: dict[str, PolicyFeature]  # cameras (3, H, W), state and action among them

    @property
    def name(self) -> str:
        """Without whose it is."""
        return self.repo_id.rpartition("/")[-1]


def open_named(dataset: str, *, tolerance_s: float, pictures: bool = False, key: str = "dataset") -> NamedDataset:
    """The dataset of a local folder or of a repository of the Hub.

    Args:
        tolerance_s: by how much a frame's time may be off, seconds.
        pictures: whether videos are downloaded, too.
        key: the configuration key, or argument, that names it, for errors.

    Raises:
        UserError: it is missing, damaged, of another format, or lacks what a policy reads.
    """
    folder = Path(dataset).expanduser().resolve()
    local = folder.is_dir()
    if folder.is_file():
        raise UserError(f"{dataset} is a file; give the dataset's folder, that which has {INFO_PATH}")
    if local and not (folder / INFO_PATH).is_file():
        raise UserError(f"there is no {INFO_PATH} in {folder}: it is no LeRobot dataset's folder")
    if not local and not could_be_repository(dataset):
        raise UserError(f"{dataset} is no folder, and no repository of the Hub either (you/dataset)")
    repo_id = f"{folder.parent.name or 'local'}/{folder.name}" if local else dataset
    root = folder if local else None
    opened = open_dataset(repo_id, root, key=key, tolerance_s=tolerance_s, pictures=pictures)
    source = load_source(repo_id, opened, "pyav")
    features = policy_features(source.features)
    if not any(feature.type is FeatureType.VISUAL for feature in features.values()):
        raise UserError(f"the dataset in {opened.root} has no camera; π0.5 needs at least one")
    missing = [name for name in (ACTION, OBS_STATE) if name not in features]
    if missing:
        raise UserError(f"the dataset in {opened.root} needs the column(s) {', '.join(missing)}")
    return NamedDataset(repo_id, root, source, features)


def could_be_repository(dataset: str) -> bool:
    """Whether a name that is no folder's may be one of the Hub's: ``you/dataset``."""
    return not dataset.startswith((".", "/", "~")) and dataset.count("/") == 1


def outcomes_as_told(source: Source) -> list[Outcome | None]:
    """(episodes,) the outcomes that the columns know, or the file in which ``pi05-rl label`` writes what it is told;
    None where neither does."""
    by_hand = outcomes_path(source)
    return known_outcomes(source, str(by_hand) if by_hand.is_file() else None, primary=True)
