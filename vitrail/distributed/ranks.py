"""The process group of a torchrun launch, and the functions of it that training needs.

One process (no torchrun) needs no process group: the functions then do nothing beyond their result.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of a run.

    Attributes:
        rank: number of the process, from 0.
        local_rank: number of the process on its machine, from 0.
        world: number of processes.
        device: the process's device.
    """

    rank: int
    local_rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Returns the device for "auto" (CUDA if available), "cpu", "cuda" or "cuda:N".

    Args:
        device: the name.
        local_rank: number of the CUDA device for a name without one.

    Raises:
        ValueError: CUDA where there is none, or not a device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N")
    if place.type == "cpu":
        return place
    if not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch sees no CUDA device; use --device cpu")
    index, there = local_rank if place.index is None else place.index, torch.cuda.device_count()
    if index >= there:
        raise ValueError(
            f"device 'cuda:{index}' is asked for and torch sees {there}; "
            "with torchrun, --nproc-per-node may be at most that"
        )
    return torch.device("cuda", index)


def join(device: str = "auto") -> Ranks:
    """Joins torchrun's process group, if any. `device` is as for `choose_device`."""
    rank, local_rank, world = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
    )
    place = choose_device(device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
        # otherwise torch would run convolutions (the patch embedding) of "fp32" runs in TF32
        torch.backends.cudnn.allow_tf32 = False
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    return Ranks(rank, local_rank, world, place)


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Joins as `join`, and at the end leaves the process group that it joined."""
    was_member = dist.is_initialized()
    ranks = join(device)
    try:
        yield ranks
    finally:
        if dist.is_initialized() and not was_member:
            dist.destroy_process_group()


def any_rank(flag: bool) -> bool:
    """Returns True if `flag` is True on any rank. A sync point over the CPU group."""
    if not dist.is_initialized():
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes)


def on_main(ranks: Ranks, action: Callable[[], object]) -> None:
    """Runs an action on rank 0 only, while the others wait. A sync point.

    Raises:
        ValueError: on every rank, with the message of the action's error on rank 0.
    """
    if not dist.is_initialized():
        action()
        return
    complaint: list[str | None] = [None]
    if ranks.is_main:
        try:
            action()
        except (ValueError, OSError) as error:
            complaint = [str(error)]
    dist.broadcast_object_list(complaint, src=0)
    if complaint[0] is not None:
        raise ValueError(complaint[0])
