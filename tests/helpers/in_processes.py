"""Runs offline jobs as one of several processes: ``python -m torch.distributed.run … in_processes.py JOBS.json OUT``.

A job is ``{"name", "arguments", "fsdp", "bf16", "stop": {"rank", "step"}}``. Each process writes
``OUT/<name>.<rank>.json`` with what became of it; the first one the whole parameters, ``OUT/<name>.safetensors``.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch.distributed import GradBucket
from torch.distributed.tensor import DTensor

from lerobot_policy_pi05_rl import cli, offline_learner
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.distributed.fsdp import full_tensors
from lerobot_policy_pi05_rl.distributed.processes import Replicated
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.recap import RecapAlgorithm
from lerobot_policy_pi05_rl.training import start as preparation


class Observed(RecapAlgorithm):
    """The update, watched."""

    newest: "Observed | None" = None
    stop: dict | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Observed.newest, self.sent, self.sent_by_step = self, 0, []
        if isinstance(self.wrapped, Replicated):
            for wrapper in {self.wrapped.both, self.wrapped.critic} - {None}:
                wrapper.register_comm_hook(self, count_and_average)

    def update(self, batches):
        stats = super().update(batches)
        self.sent_by_step.append(self.sent)
        self.sent = 0
        stop = self.stop
        if stop and self.processes.rank == stop["rank"] and self.optimization_step == stop["step"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return stats


def count_and_average(algorithm: Observed, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What the wrapper does by itself, with the number of gradients noted."""
    algorithm.sent += bucket.buffer().numel()
    summed = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return summed.then(lambda future: future.value()[0] / algorithm.processes.count)


def run(job: dict, out: Path) -> dict:
    """One job in this process."""
    os.environ["ACCELERATE_USE_FSDP"] = str(job.get("fsdp", False)).lower()
    os.environ["FSDP_VERSION"] = "2"
    Observed.newest, Observed.stop = None, job.get("stop")
    result: dict = {"error": None}
    try:
        offline_learner.train_offline(load_config(job["arguments"][0], job["arguments"][1:]))
    except (UserError, SystemExit) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    algorithm = Observed.newest
    if algorithm is None:
        return result
    local = algorithm.policy.state_dict()
    held = sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel() for tensor in local.values())
    tensors = {name: tensor.contiguous() for name, tensor in full_tensors(dict(local)).items()}
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors.values():
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    if algorithm.processes.is_main:
        save_file(tensors, out / f"{job['name']}.safetensors")
    groups = {name: sum(p.numel() for p in params) for name, params in algorithm.parameters.items()}
    return result | {
        "step": algorithm.optimization_step,
        "checksum": digest.hexdigest(),
        "thresholds": algorithm.thresholds.state_dict()["advantage_window"].nan_to_num(-9).tolist(),
        "held": held,
        "all": sum(tensor.numel() for tensor in tensors.values()),
        "sent_by_step": algorithm.sent_by_step,
        "groups": groups,
    }


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The network computes in bf16, by the CPU's own autocast."""
    with (
        patch.object(PI05RLPolicy, "computes_in_bf16", True),
        patch.object(PI05RLPolicy, "autocast", lambda _: torch.autocast("cpu", dtype=torch.bfloat16)),
    ):
        yield


def main() -> None:
    """Run all jobs, one behind the other."""
    cli.set_up_logging()
    torch.set_num_threads(1)
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    with patch.object(preparation, "RecapAlgorithm", Observed):
        for job in jobs:
            with as_on_a_gpu() if job.get("bf16") else contextlib.nullcontext():
                result = run(job, out)
            (out / f"{job['name']}.{rank}.json").write_text(json.dumps(result))
    Observed.newest = None
    # The interpreter ends right behind the last collective, and does not give way to gloo's threads of its own accord:
    # without the grace of ``distributed.processes`` one end in four aborts.
    sys.setswitchinterval(100)
    broadcast_object_list(["last"])


if __name__ == "__main__":
    main()
