"""Timing several ways of doing the same work against each other, in one process.

Blocks of calls are alternated, so that a machine that slows down slows all ways down; what is
compared is the median of the blocks.
"""

import ctypes
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vitrail.train.run_folder import commit

Work = Callable[[], Tensor]  # returns a tensor of one element, which is waited for


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def provenance(device: str) -> dict[str, str]:
    """What a reader needs to know about any number printed beside it."""
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
        "commit": commit() or "unknown",
        # Of other work, when asked for before ours begins: above 0.5 the numbers are doubtful.
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def one_line(origin: dict[str, str]) -> str:
    """A provenance, for people."""
    return (
        f"{origin['hardware']}; torch {origin['torch']}; {origin['date']}; "
        f"commit {origin['commit']}; load average before {origin['load']}"
    )


def keep_freed_memory() -> None:
    """Tells glibc to reuse freed memory instead of returning it and faulting it in again.

    Without this, large activations are timed by the kernel's page faults, whichever way is faster.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4
        ctypes.CDLL(None).mallopt(m_mmap_max, 0)
        ctypes.CDLL(None).mallopt(m_trim_threshold, 2**31 - 1)


def seconds(work: Work, calls: int) -> float:
    """Of one call, mean over a block."""
    begin = time.perf_counter()
    for _ in range(calls):
        result = work()
    result.item()  # waits for the device
    return (time.perf_counter() - begin) / calls


def alternate(ways: Mapping[str, Work], blocks: int, calls: int) -> dict[str, list[float]]:
    """Seconds a call of each way, one number a block, in the order of `ways`."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for block in range(blocks):
        # The order turns around with every block, so that no way always runs first.
        for way in list(ways)[:: -1 if block % 2 else 1]:
            times[way].append(seconds(ways[way], calls))
    return times


def speed_up(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """How many times faster: the ratio within a block, its median, least and most over blocks."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
