"""What a check says: a verdict, the number behind it, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a finding stands to RL, equal to the word that is printed."""

    OK = "ok"
    LOOK = "look"  # a person should; it may be meant so
    HARMS = "harms RL"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    verdict: Verdict
    value: float  # that the verdict rests on; NaN where nothing could be measured
    text: str  # the value in words, and where it was found
    advice: str = ""  # what to do; empty where nothing is to be done

    @property
    def line(self) -> str:
        """For the terminal; begins with the verdict, so that ``grep '^harms RL'`` finds what to mend."""
        return f"{self.verdict:8}  {self.check}: {self.text}{f' → {self.advice}' if self.advice else ''}"


def judge(value: float, *, look: float, harms: float = float("inf")) -> Verdict:
    """The verdict on a number that is the worse the larger it is; what is not above a bound is still within it."""
    return Verdict.HARMS if value > harms else Verdict.LOOK if value > look else Verdict.OK


def summary(findings: list[Finding]) -> str:
    """One line that counts the verdicts."""
    counts = [sum(finding.verdict is verdict for finding in findings) for verdict in Verdict]
    return f"{len(findings)} checks: {counts[2]} harm RL, {counts[1]} to look at, {counts[0]} ok"
