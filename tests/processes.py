"""Child processes of tests: killed runs, and the ranks of a run.

A fork server imports vitrail once for each test process. Its children start in milliseconds, and
without the threads of the test process.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch.distributed as dist

_processes = multiprocessing.get_context("forkserver")
# All that a run of the tests imports, also what torch and scikit-learn import on first use.
_processes.set_forkserver_preload(
    [
        "vitrail.train.build",
        "vitrail.train.loop",
        "vitrail.train.tensorboard",
        "vitrail.recipes.simdino",
        "vitrail.data.sources.datasets.digits",
        "vitrail.data.views.operations",
        "sklearn.datasets",
        "torch._dynamo",
        "torch.nn.parallel",
        "torch.utils.tensorboard",
    ]
)


def child(action: Callable[..., None], *arguments: Any) -> Any:
    """Starts a process that runs an action, and returns it."""
    process = _processes.Process(target=action, args=arguments)
    process.start()
    return process


def finish(action: Callable[..., None], *arguments: Any) -> int:
    """Runs a child to its end, and returns its exit code (-9: killed)."""
    process = child(action, *arguments)
    process.join()
    return process.exitcode


def as_rank(rank: int, world: int) -> None:
    """Makes this process look like one that torchrun started."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}


def on_ranks(action: Callable[..., None], *arguments: Any, world: int = 2) -> None:
    """Runs an action in processes that torchrun seems to have started, with one thread each.

    Fails if one of them does, and then stops the others, which would wait for it.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [child(_on_rank, rank, world, port, action, arguments) for rank in range(world)]
    waiting = {process.sentinel: process for process in ranks}
    while waiting:
        for sentinel in wait(list(waiting)):
            process = waiting.pop(sentinel)
            process.join()
            if process.exitcode:
                for other in waiting.values():
                    other.kill()
    codes = [process.exitcode for process in ranks]
    assert not any(codes), f"exit codes of the ranks: {codes}"


def _on_rank(
    rank: int, world: int, port: int, action: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    as_rank(rank, world)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    action(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
