"""Timing of several implementations of the same work against each other, in one process.

Blocks of calls are alternated, so a temporary slowdown of the machine affects all implementations;
the medians over blocks are compared.
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

Work = Callable[[], Tensor]  # returns a tensor of one element, to wait for the device


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def provenance(device: str) -> dict[str, str]:
    """Returns the machine, versions and load that measured numbers depend on."""
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
        "commit": commit() or "unknown",
        # before a measurement, the load of other work: above 0.5, its numbers are doubtful
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def one_line(origin: dict[str, str]) -> str:
    """Formats a provenance as a line of text."""
    return (
        f"{origin['hardware']}; torch {origin['torch']}; {origin['date']}; "
        f"commit {origin['commit']}; load average before {origin['load']}"
    )


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of returning it and faulting it in again.

    Without this, times of large activations are dominated by the kernel's page faults.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4
        ctypes.CDLL(None).mallopt(m_mmap_max, 0)
        ctypes.CDLL(None).mallopt(m_trim_threshold, 2**31 - 1)


def seconds(work: Work, calls: int) -> float:
    """Returns the mean seconds of a call over a block."""
    begin = time.perf_counter()
    for _ in range(calls):
        result = work()
    result.item()  # waits for the device
    return (time.perf_counter() - begin) / calls


def alternate(ways: Mapping[str, Work], blocks: int, calls: int) -> dict[str, list[float]]:
    """Returns the seconds per call of each way, one number per block, in the order of `ways`."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for block in range(blocks):
        # reversed with every block, so no way always runs first
        for way in list(ways)[:: -1 if block % 2 else 1]:
            times[way].append(seconds(ways[way], calls))
    return times


def speed_up(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Returns the median, minimum and maximum over blocks of the ratio slow / fast in a block."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
