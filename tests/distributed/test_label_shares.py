"""What processes that label together owe one another; they are threads here, which a test can hold up."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lerobot_policy_pi05_rl.distributed.processes import Processes
from lerobot_policy_pi05_rl.labels.values import PartialValues, Timing, compute_values
from lerobot_policy_pi05_rl.runtime.progress import StopSignal

FRAMES, BATCH = 10, 2


class Thread(Processes):
    """One of two processes."""

    barrier = threading.Barrier(2)

    def wait(self) -> None:
        self.barrier.wait(timeout=20)

    def any(self, here: bool, device: torch.device) -> bool:
        return here


class SlowToRead(PartialValues):
    """The second process finds the files, and opens them after a while."""

    def _rows(self, file):
        if self.own != self.path:
            time.sleep(0.3)
        return super()._rows(file)


@pytest.mark.parametrize("kind", [PartialValues, SlowToRead])
def test_all_have_read_the_values_before_one_removes_their_files(tmp_path, kind):
    def one(rank: int) -> np.ndarray:
        partial = kind(tmp_path / "0.values", dataset="d", critic="c", critics=1, rank=rank)
        found = compute_values(
            preprocess=lambda batch: batch,
            predict=lambda frames: frames[:, None, None].expand(-1, 1, 2),
            partial=partial,
            make_loader=lambda batches: [torch.tensor(list(batch)) for batch in batches],
            stop=StopSignal(),
            total=FRAMES,
            batch_size=BATCH,
            timing=Timing(),
            processes=Thread(rank, 2),
        )
        if rank == 0:
            for file in tmp_path.glob("*.values*"):
                file.unlink()
        return found

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(one, range(2)):
            assert (found == np.arange(FRAMES)[:, None, None]).all()
