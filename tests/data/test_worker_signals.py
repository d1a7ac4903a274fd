"""Signals to the whole process group while workers start: they end no worker, and reach the main process."""

import signal
import threading

import pytest
from torch.utils.data import DataLoader

from lerobot_policy_pi05_rl.data.workers import Loader, Workers

AT_BIRTH = signal.pthread_sigmask(signal.SIG_BLOCK, set())  # of a spawned worker: while it imports this file


class Told:
    """A dataset of what a worker's process knows."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, list[int] | int]:
        now = signal.pthread_sigmask(signal.SIG_BLOCK, set())
        return {
            "blocked at birth": sorted(map(int, AT_BIRTH)),
            "blocked now": sorted(map(int, now)),
            "ignores interrupts": int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN),
        }


def told(kind: type[DataLoader]) -> dict:
    return next(iter(kind(Told(), batch_size=None, **Workers(1, 1, "spawn").loader_kwargs)))


def test_a_worker_is_born_with_the_stopping_signals_blocked_and_can_be_ended_later():
    found = told(Loader)
    assert {signal.SIGINT, signal.SIGTERM} <= set(found["blocked at birth"])
    assert not {signal.SIGINT, signal.SIGTERM} & set(found["blocked now"])
    assert found["ignores interrupts"]
    assert signal.SIGINT not in told(DataLoader)["blocked at birth"], (
        "torch's own: the comparison must be able to fail"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_comes_while_workers_start_arrives_and_they_read(number, monkeypatch):
    seen, started = [], []
    before = signal.signal(number, lambda *_: seen.append(len(started)))
    begin = DataLoader.__iter__

    def start(self):
        signal.pthread_kill(threading.get_ident(), number)  # this thread's: another one may not hold it back
        iterator = begin(self)
        started.append(iterator)
        return iterator

    monkeypatch.setattr(DataLoader, "__iter__", start)
    try:
        batch = told(Loader)
    finally:
        signal.signal(number, before)
    assert seen == [1], "once, behind the start"
    assert batch["ignores interrupts"]
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_a_termination_of_the_group_that_came_early_is_the_main_processs_business():
    """A worker in whose start it fell goes on reading."""
    from lerobot_policy_pi05_rl.data import workers

    with workers._held_back(workers.STOPPING):
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        before = signal.getsignal(signal.SIGINT)
        try:
            workers._begin_work(0)
        finally:
            signal.signal(signal.SIGINT, before)
    assert signal.SIGTERM not in signal.sigpending()
