"""How much host memory is left: the system's, or what a container's limit leaves."""

import psutil
import pytest

from lerobot_policy_pi05_rl.runtime.memory import available_memory

GIB = 2**30


def limited(folder, limit: str, used: int = GIB, cached: int = 0):
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "used", "cached", "left"),
    [(2 * GIB, GIB, 0, GIB), (2 * GIB, GIB, GIB // 2, 3 * GIB // 2), (GIB, 2 * GIB, 0, 0)],
)
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit, used, cached, left):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("V", (), {"available": 100 * GIB}))
    assert available_memory(limited(tmp_path, str(limit), used, cached)) == left


@pytest.mark.parametrize("limit", ["max", str(1000 * GIB), "nonsense", None])
def test_without_a_limit_the_system_counts(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("V", (), {"available": 3 * GIB}))
    assert available_memory(tmp_path if limit is None else limited(tmp_path, limit)) == 3 * GIB
