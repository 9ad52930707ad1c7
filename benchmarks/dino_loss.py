"""DINO's loss from head features to gradients, including the product with the prototypes.

Ours (`objectives/dino.py`: centred targets, `nn/prototype_entropy.py`) against a linear layer and
lightly's `DINOLoss`, which store the logits of all crops and their softmaxes. Forward and backward:
from the unit vectors of student and teacher before the prototypes to the loss and its gradients
with respect to the student's vectors and prototypes. Both sides get the same inputs, and ours in
float32 must give the loss and gradients of the peer in float64 before anything is measured.

Time: blocks of calls are alternated in one process; medians, and the median, minimum and maximum of
the ratios within a block. Freed memory is kept for reuse, which favours the side that allocates
more. Peak memory on a CPU (Linux): each side makes one call in its own process, and the largest
growth of its resident size (VmHWM) above the inputs is shown, including gradients. On CUDA it is
the growth of the allocator's peak.

    python -m benchmarks.dino_loss [--device cuda] [--views 12 --batch 64 --blocks 5 ...] [--save]

On CUDA bf16 is autocast: the linear layer multiplies in bf16; ours stays in float32.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak_bytes
from benchmarks.timing import (
    Work,
    alternate,
    keep_freed_memory,
    one_line,
    provenance,
    speed_up,
)
from vitrail.objectives.dino import cross_view_entropy

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5  # of the loss and of each gradient, relative to its largest entry
STUDENT_TEMP, TEACHER_TEMP = 0.1, 0.04
OURS, PEER = "ours", "linear layer, lightly's DINOLoss"


class ParityError(Exception):
    """Raised if the two sides do not compute the same result."""


@dataclass(frozen=True)
class Inputs:
    """Unit vectors of both networks; those of the student are leaves with a gradient.

    Attributes:
        student: student's vectors [V, B, Z].
        prototypes: student's prototypes [K, Z].
        teacher: teacher's vectors [2, B, Z].
        teacher_prototypes: teacher's prototypes [K, Z].
    """

    student: Tensor
    prototypes: Tensor
    teacher: Tensor
    teacher_prototypes: Tensor


def make_inputs(args: argparse.Namespace) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        vectors = torch.randn(*shape, args.bottleneck, generator=generator)
        return F.normalize(vectors, dim=-1).to(args.device)

    return Inputs(
        student=rows(args.views, args.batch).requires_grad_(),
        prototypes=rows(args.prototypes).requires_grad_(),
        teacher=rows(2, args.batch),
        teacher_prototypes=rows(args.prototypes),
    )


def our_loss(given: Inputs) -> Tensor:
    center = given.prototypes.new_zeros(len(given.prototypes))
    with torch.no_grad(), torch.autocast(given.student.device.type, enabled=False):
        teacher = given.teacher @ given.teacher_prototypes.T
    loss, _ = cross_view_entropy(
        given.student, given.prototypes, teacher, center, STUDENT_TEMP, TEACHER_TEMP
    )
    center.lerp_(teacher.mean((0, 1)), 0.1)
    return loss


def peer_loss(given: Inputs) -> Tensor:
    from lightly.loss import DINOLoss

    criterion = DINOLoss(
        len(given.prototypes), teacher_temp=TEACHER_TEMP, student_temp=STUDENT_TEMP
    ).to(given.student.device)
    with torch.no_grad():
        teacher = F.linear(given.teacher, given.teacher_prototypes)
    student = F.linear(given.student.flatten(0, 1), given.prototypes)
    return criterion(list(teacher), list(student.chunk(len(given.student))))


SIDES: dict[str, Callable[[Inputs], Tensor]] = {OURS: our_loss, PEER: peer_loss}


def loss_of(side: str, given: Inputs, bf16: bool) -> Tensor:
    """Returns the loss of one side, after clearing earlier gradients."""
    given.student.grad = given.prototypes.grad = None
    with torch.autocast(given.student.device.type, torch.bfloat16, enabled=bf16):
        return SIDES[side](given)


def step(side: str, given: Inputs, bf16: bool = False) -> Tensor:
    loss = loss_of(side, given, bf16)
    loss.backward()
    return loss.detach()


def results(side: str, given: Inputs) -> list[Tensor]:
    loss = step(side, given)
    return [loss, *(x.grad for x in (given.student, given.prototypes) if x.grad is not None)]


def gaps_to_float64(given: Inputs) -> dict[str, float]:
    """Returns the gap of each side in float32 to the peer in float64.

    The gap is the largest relative difference of loss and gradients. (The peer's loss is one dot
    product of B·K terms, whose float32 rounding is visible.)

    Raises:
        ParityError: ours is above TOLERANCE.
    """
    double = {name: x.detach().double() for name, x in vars(given).items()}
    for name in ("student", "prototypes"):
        double[name].requires_grad_()
    exact = results(PEER, Inputs(**double))
    gaps = {}
    for side in SIDES:
        pairs = zip(results(side, given), exact, strict=True)
        gaps[side] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if not gaps[OURS] <= TOLERANCE:
        raise ParityError(
            f"not timed: loss or gradients differ by {gaps[OURS]:.1e} from those of lightly's loss "
            f"in float64, and {TOLERANCE:.0e} is allowed"
        )
    return gaps


def resident(which: str) -> float:
    """Returns the memory of this process in MiB.

    Args:
        which: "VmRSS" for the current resident size, "VmHWM" for its maximum since the last reset.
            (`ru_maxrss` is no alternative: a child process inherits it from its parent.)
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(which))


def resident_growth(args: argparse.Namespace) -> float:
    """Returns the largest growth of this process in MiB in one call of the side args.peak_of."""
    small = argparse.Namespace(**vars(args) | {"prototypes": 64})
    step(args.peak_of, make_inputs(small))  # imports and threads first
    given = make_inputs(args)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    before = resident("VmRSS")
    step(args.peak_of, given)
    return resident("VmHWM") - before


def peak_mib(side: str, given: Inputs, bf16: bool, args: argparse.Namespace) -> float:
    """Returns the peak memory of one call in MiB, above the inputs, including gradients."""
    if args.device == "cuda":
        given.student.grad = given.prototypes.grad = None
        return peak_bytes(partial(loss_of, side, given, bf16)) / 2**20
    sizes = [f"--{name}={getattr(args, name)}" for name in SIZES]
    command = [sys.executable, "-m", "benchmarks.dino_loss", "--device=cpu", "--peak-of", side]
    done = subprocess.run([*command, *sizes], check=True, capture_output=True, text=True)
    return float(done.stdout)


def compare(bf16: bool, args: argparse.Namespace) -> list[str]:
    """Returns the rows of the table."""
    given = make_inputs(args)
    gaps = gaps_to_float64(given)
    ways: dict[str, Work] = {side: partial(step, side, given, bf16) for side in SIDES}
    alternate(ways, 1, 1)  # warm up
    times = alternate(ways, args.blocks, args.calls)
    peaks = {side: peak_mib(side, given, bf16, args) for side in SIDES}
    ratio, least, most = speed_up(times[PEER], times[OURS])
    precision = "bf16" if bf16 else "fp32"
    rows = [
        f"| {precision} | {side} | {statistics.median(times[side]) * 1e3:.0f} | {peaks[side]:.0f} "
        f"| {gaps[side]:.0e} |"
        for side in SIDES
    ]
    less = peaks[PEER] / peaks[OURS]
    return [*rows, f"| | ratio | {ratio:.2f} ({least:.2f} to {most:.2f}) | {less:.1f} | |"]


SIZES = {"views": 12, "batch": 64, "prototypes": 65536, "bottleneck": 256}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=fitting)
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--calls", type=int, help="calls of a block; default 1, on CUDA 10")
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--peak-of", choices=tuple(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    args.calls = (10 if args.device == "cuda" else 1) if args.calls is None else args.calls
    if min(args.blocks, args.calls, *(getattr(args, name) for name in SIZES)) < 1:
        parser.error(f"--blocks, --calls, {', '.join(f'--{name}' for name in SIZES)} must be >= 1")
    if args.views < 2:
        parser.error(f"--views {args.views}: the two global views at least")
    return args


def report(args: argparse.Namespace) -> str:
    origin = provenance(args.device)
    how = "the process's resident size" if args.device == "cpu" else "the allocator"
    lines = [
        f"{args.views} crops, batch {args.batch}, {args.prototypes:,} prototypes of "
        f"{args.bottleneck}; head features to gradients. Medians of {args.blocks} alternated "
        f"blocks of {args.calls} calls, and the ratio within a block (median, least, most); "
        f"peak of {how} in one call, above the inputs; error of loss and gradients in fp32, to "
        "lightly's loss in float64.",
        "",
        "| precision | | ms | peak, MiB | error |",
        "|---|---|---|---|---|",
    ]
    for bf16 in (False, True) if args.device == "cuda" else (False,):
        lines += compare(bf16, args)
    return "\n".join([*lines, "", f"{one_line(origin)}."])


def main() -> None:
    args = arguments()
    if find_spec("lightly") is None:
        print(
            "lightly not installed, so there is no peer to stand beside; nothing was measured. "
            "`pip install -e '.[test]'` brings it."
        )
        return
    if args.peak_of:
        print(resident_growth(args))
        return
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        text = report(args)
    except ParityError as error:
        sys.exit(str(error))
    print(text)
    if args.save:
        path = RESULTS / f"dino_loss_{args.device}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# `python -m benchmarks.dino_loss`\n\n{text}\n")


if __name__ == "__main__":
    main()
