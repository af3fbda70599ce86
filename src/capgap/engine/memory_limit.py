"""
How much memory this process may still take, on a device or in main memory under any limit, and how
what it frees goes back to the system.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
KIB = 1024
MAPPED_BYTES = 2**20  # a tensor of this size or more is mapped
M_MMAP_THRESHOLD = -3  # number of the setting in glibc's malloc.h


def available_bytes(device: torch.device) -> int:
    """Bytes that may still be taken where a job computes.

    In main memory the least of what is free, what the control group allows, and what the limits of
    this process (`ulimit -v`, `ulimit -d`) leave. Where nothing is known, as many as can be counted.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    status, free = _fields(Path("/proc/self/status")), _fields(Path("/proc/meminfo"))
    found = [free[key] for key in ("MemAvailable",) if key in free]
    for limit, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            found.append(max(0, most - status.get(used, 0)))
    return min([*found, *_group_limits()], default=2**62)


def map_large_tensors() -> None:
    """From now on give every large tensor of this process pages of its own (glibc; else nothing).

    They go back to the system when the tensor is freed. By default glibc takes tensors of up to 32 MiB
    from its heap once some have been freed, and layers that come and go leave holes there: a heap for
    two layers grew by half after 27. Each tensor's pages are new ones, which costs time where tensors
    are small or many, as in training. Whoever sets MALLOC_MMAP_THRESHOLD_ keeps that.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _fields(path: Path) -> dict[str, int]:
    """Sizes in a file of /proc by name, bytes; none if there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): KIB * int(words[1]) for words in lines if words[-1:] == ["kB"]}


def _group_limits() -> list[int]:
    """What control groups of version 2 and 1 leave; pages of files that can go count as free."""
    found = []
    for folder, limit, usage, idle in _groups():
        try:
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit ("max"), or no such group here
            continue
        if most < 2**60:
            found.append(max(0, most - used + int(stat.get(idle, 0))))
    return found


def _groups() -> list[tuple[Path, str, str, str]]:
    """Folders of this process's control groups for memory, the outermost last."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    found = []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds == "":
            root, names = CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = CGROUP / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = root / path.lstrip("/")
        found += [
            (folder, *names)
            for folder in (inner, *inner.parents)
            if root in (folder, *folder.parents)
        ]
    return found
