"""Real-time priority, which the video encoder takes as root, is gone after an episode is written, and while it is."""

import os
import threading

import numpy as np
import pytest
from recordings import make_dataset

from lerobot_policy_pi05_rl.runtime.scheduling import unchanged_scheduling

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="Linux alone has it")


def policies() -> set[int]:
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}


@pytest.fixture
def may_be_real_time():
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("only root is given real-time priority")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_threads_are_scheduled_as_before_and_new_ones_as_the_caller(may_be_real_time):
    end = threading.Event()
    with unchanged_scheduling() as restore:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        thread = threading.Thread(target=end.wait)
        thread.start()
        assert os.sched_getscheduler(thread.native_id) == os.SCHED_FIFO, "it is inherited"
        restore()
        assert os.SCHED_FIFO not in policies()
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    assert os.SCHED_FIFO not in policies()
    end.set()
    thread.join()


def test_a_person_who_asked_for_real_time_keeps_it(may_be_real_time):
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(7))
    try:
        with unchanged_scheduling():
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
        assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == (os.SCHED_RR, 7)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_recording_a_video_leaves_no_thread_in_real_time(tmp_path):
    picture = np.zeros((32, 32, 3), np.uint8)
    make_dataset(tmp_path / "data", [{"length": 3}], video=True, picture=lambda episode, step: picture)
    assert os.SCHED_FIFO not in policies()
