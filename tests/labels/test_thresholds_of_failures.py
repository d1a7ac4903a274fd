"""A share of positive frames that successes do not have: all of theirs are positive, and a warning says so."""

import logging

import numpy as np
import pytest

from lerobot_policy_pi05_rl.data.labeling import OF_A_FAILURE
from lerobot_policy_pi05_rl.labels.making import warn_of_whole_successes
from lerobot_policy_pi05_rl.thresholds import task_thresholds


@pytest.mark.parametrize(("fraction", "warns"), [(0.2, False), (0.4, False), (0.5, True), (1.0, False)])
def test_a_share_that_reaches_into_the_failures_is_a_warning(caplog, fraction, warns):
    """Four of ten frames belong to a success."""
    columns = {
        "advantage": np.array([0.3, 0.2, 0.1, -0.2] + 6 * [OF_A_FAILURE], dtype=np.float32),
        "intervention": np.zeros(10, dtype=bool),
        "task": np.array(10 * ["pick"], dtype=object),
    }
    thresholds = task_thresholds([columns], {"pick": fraction})
    with caplog.at_level(logging.WARNING):
        warn_of_whole_successes([columns], thresholds, {"pick": fraction})
    assert ("pick: a share of" in caplog.text) == warns
    if warns:
        assert "only 0.40 of its frames belong to successes" in caplog.text
