"""How much host memory there is for more."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # of this process as a container shows it: version 2, Linux


def available_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that this process can take without the system, or its container's limit, ending it."""
    return min(psutil.virtual_memory().available, _left_in(cgroup))


def _left_in(cgroup: Path) -> float:
    """What a control group's limit leaves, its cached files counted as free; infinite without a limit."""
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no group, one of another version, or "max": no limit
        return float("inf")
    cached = {name: int(count) for name, _, count in (line.partition(" ") for line in lines)}.get("inactive_file", 0)
    return max(0, limit - used + cached)
