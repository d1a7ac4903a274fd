"""How episodes ended and how long they took: what RL tells good from bad by."""

from collections import Counter

import numpy as np

from ...training.critic_metrics import LEAST_EPISODES
from .finding import Finding, Verdict, judge
from .recording import UNKNOWN, Recording, numbered

ALIKE = 1.25  # slow tenth over fast tenth of the successes: below, there is no better one among them
LONGEST = 5.0  # times the median: returns are divided by a task's longest episode


def outcomes(recording: Recording) -> Finding:
    """The share of failures, and whether every outcome is known; a task may lack what the others have."""
    counts = Counter(recording.outcomes)
    total, failed = len(recording.outcomes), counts["failure"]
    label = f"pi05-rl label {recording.name}.json"
    by_label = (
        f"`pi05-rl init` writes {recording.name}.json; then `{label} --browser` shows each and takes a key for its end"
    )
    if counts[UNKNOWN]:
        unknown = numbered(recording.episodes[recording.ended_as(UNKNOWN)])
        text = f"{counts[UNKNOWN]} of {total} episodes have no outcome ({unknown})"
        return Finding("outcomes", Verdict.HARMS, counts[UNKNOWN] / total, text, by_label)
    known = counts["success"] + failed
    if not known:
        return Finding("outcomes", Verdict.HARMS, 0.0, f"all {total} episodes were cut by a time limit", by_label)
    share = failed / known
    text = f"{failed} of {known} episodes failed ({share:.1%})"
    text += f", {counts['truncated']} more were cut by a time limit" if counts["truncated"] else ""
    if not failed or not counts["success"]:
        kind = "success" if failed else "failure"
        advice = (
            f"without a {kind} a critic learns how long an episode takes, not what leads to success; if the labels "
            f"are wrong: `{label} --{kind} …` (numbers such as 0-40,52), else record the other kind, or clone"
        )
        return Finding("outcomes", Verdict.HARMS, share, text, advice)
    rare = min(("success", "failure"), key=counts.__getitem__)
    if counts[rare] < LEAST_EPISODES:
        advice = f"fewer than {LEAST_EPISODES} of a kind say little of a critic, trained or held out: record more"
        return Finding("outcomes", Verdict.LOOK, share, text, advice)
    lacking = [task for task in dict.fromkeys(recording.tasks) if not _has_both(recording, task)]
    if lacking:
        more = f" and {len(lacking) - 1} other task(s)" if len(lacking) > 1 else ""
        text += f"; “{lacking[0]}”{more} has not both successes and failures"
        return Finding("outcomes", Verdict.LOOK, share, text, "record the other kind of these tasks, too")
    return Finding("outcomes", Verdict.OK, share, text)


def _has_both(recording: Recording, task: str) -> bool:
    found = {outcome for outcome, own in zip(recording.outcomes, recording.tasks, strict=True) if own == task}
    return {"success", "failure"} <= found


def lengths(recording: Recording) -> Finding:
    """A task's longest episode over its median one: the longest is the unit of all its returns."""
    worst, text, episode = 0.0, "", 0
    for task in dict.fromkeys(recording.tasks):
        rows = recording.of_task(task)
        seconds = recording.lengths[rows] / recording.fps
        ratio = float(seconds.max() / np.median(seconds))
        if ratio > worst:
            worst, episode = ratio, int(recording.episodes[rows][np.argmax(seconds)])
            text = (
                f"the longest episode ({episode}) lasts {seconds.max():.1f} s, {ratio:.1f} times the median of "
                f"{np.median(seconds):.1f} s"
            )
    advice = f"it sets the unit of the task's returns: leave episode {episode} out (dataset.episodes) if nobody worked"
    verdict = judge(worst, look=LONGEST)
    return Finding("longest episode", verdict, worst, text, "" if verdict is Verdict.OK else advice)


def spread(recording: Recording) -> Finding:
    """How much slower the slow successes of a task are than the fast ones, of the task where they differ least."""
    found = []
    for task in dict.fromkeys(recording.tasks):
        lengths = recording.lengths[recording.of_task(task) & recording.ended_as("success")]
        if len(lengths) > 1:
            fast, slow = np.quantile(lengths, (0.1, 0.9))
            found.append((float(slow / fast), task, lengths / recording.fps))
    check = "spread of successes"
    if not found:
        advice = "say how the episodes ended" if UNKNOWN in recording.outcomes else "record more"
        return Finding(check, Verdict.LOOK, float("nan"), "no task has two successes to compare", advice)
    ratio, task, seconds = min(found, key=lambda each: each[0])
    several = f" in “{task}”" if len(set(recording.tasks)) > 1 else ""
    text = (
        f"successes last {seconds.min():.1f} to {seconds.max():.1f} s{several}, the slowest "
        f"{seconds.max() / seconds.min():.1f} times the fastest; slow tenth over fast tenth: {ratio:.2f}"
    )
    if ratio >= ALIKE:
        return Finding(check, Verdict.OK, ratio, text)
    advice = "successes are alike, so only failures can tell good actions from bad ones: expect little over cloning"
    return Finding(check, Verdict.LOOK, ratio, text, advice)
