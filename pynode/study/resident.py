"""The resident memory of a process and of those that it started."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["resident_mb"]

_LINUX = Path("/proc/self/statm").exists()


def resident_mb(pid: int) -> float | None:
    """MB that a process and its descendants hold; `None` where that is not known, or nobody is there any more."""
    if _LINUX:
        pages = [_pages(each) for each in _family(pid)]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20 if any(pages) else None
    try:
        import psutil
    except ImportError:
        return None
    try:
        process = psutil.Process(pid)
        return float(sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 2**20)
    except psutil.Error:
        return None


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:  # which grows on the way
        for file in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:  # the thread has ended
                continue
    return found


def _pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has ended
        return 0
