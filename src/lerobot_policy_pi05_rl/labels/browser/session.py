"""What the page shows and changes: the episodes of all datasets, how each ended, and who says so."""

from collections import Counter
from dataclasses import dataclass

from ...data.outcomes import FILE, FoundOutcome, LabelColumns
from ...data.sources import Source, outcomes_path
from ...errors import UserError
from ...returns import Outcome
from ..outcomes import Outcomes, earlier_outcomes, save_outcomes


@dataclass(frozen=True)
class Episode:
    """One episode as the page lists it."""

    source: int
    index: int  # its episode_index
    length: int  # frames
    task: str
    recorded: FoundOutcome  # what the dataset's own columns say


class LabelSession:
    """Outcomes that people set one by one: each is in the outcome file before :meth:`set_outcome` returns.

    The file is the truth: what another command writes into it meanwhile is read before the next outcome is set.
    """

    def __init__(self, sources: list[Source], outcome_file: str | None):
        """``outcome_file``: of the configuration; what it says is over what this verb has set before.

        Raises:
            DatasetError: the outcome file is damaged.
        """
        self.sources, self.path = sources, outcomes_path(sources[0])
        self.episodes: dict[tuple[int, int], Episode] = {}  # (source, episode_index) → episode, in their order
        for number, source in enumerate(sources):
            columns = LabelColumns(source)
            for row, (start, end) in enumerate(zip(source.starts.tolist(), source.ends.tolist(), strict=True)):
                index = int(source.columns["episode_index"][start])
                found = columns.find(row)
                self.episodes[number, index] = Episode(number, index, end - start, source.tasks[row], found)
        self._set = earlier_outcomes(sources, outcome_file)
        self._version = self._file_version()
        self._undo: list[tuple[int, int, Outcome | None]] = []

    def found(self, source: int, episode: int) -> FoundOutcome:
        """How the episode ended and who says so: a person, else the dataset's own columns."""
        outcome = self._set[source].get(episode)
        return self.episodes[source, episode].recorded if outcome is None else FoundOutcome(outcome, FILE)

    def set_outcome(self, source: int, episode: int, outcome: Outcome | None) -> None:
        """Say how an episode ended; None takes back what was said.

        Raises:
            UserError: there is no such episode, or the file was damaged meanwhile.
            OSError: it cannot be written; nothing has changed.
        """
        before = self._save(source, episode, outcome)
        self._undo.append((source, episode, before))

    def undo(self) -> tuple[int, int] | None:
        """Take back the last outcome that was set here; returns the episode, None: there is nothing to take back.

        Raises:
            UserError, OSError: as :meth:`set_outcome`.
        """
        if not self._undo:
            return None
        source, episode, before = self._undo[-1]
        self._save(source, episode, before)
        self._undo.pop()
        return source, episode

    @property
    def can_undo(self) -> bool:
        """Whether something was set here."""
        return bool(self._undo)

    def counts(self) -> Counter[str]:
        """Outcome, or "unlabelled" → number of episodes."""
        found = (self.found(*key).outcome for key in self.episodes)
        return Counter("unlabelled" if outcome is None else outcome.value for outcome in found)

    def _save(self, source: int, episode: int, outcome: Outcome | None) -> Outcome | None:
        if (source, episode) not in self.episodes:
            raise UserError(f"there is no episode {episode} of dataset {source}")
        if self._file_version() != self._version:
            self._set = earlier_outcomes(self.sources, None)
        changed: list[Outcomes] = [dict(own) for own in self._set]
        before = changed[source].pop(episode, None)
        if outcome is not None:
            changed[source][episode] = outcome
        save_outcomes(self.sources, changed)
        self._set, self._version = changed, self._file_version()
        return before

    def _file_version(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino
