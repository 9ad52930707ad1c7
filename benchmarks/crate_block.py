"""A CRATE layer, forward and backward: our implementation against the published formulation.

Published: the attention matrix softmax(w wᵀ/√p) is formed, and ISTA takes three products with the
tokens (Ma-Lab/CRATE 674408f). For CRATE-α the overcomplete dictionary layer is compared with its
formula written out (two steps take four products on both sides). Both sides have the same weights
and tokens, and must give the same values and gradients before anything is timed. Blocks of calls
are alternated in one process; printed are medians, and the median, minimum and maximum of the
ratios within a block.

    python -m benchmarks.crate_block [--device cuda] [--batch 8 --tokens 197 ...] [--save]

On CUDA both run under bf16 autocast; ours is compiled as in training, the published layer runs with
and without `torch.compile`.
"""

import argparse
import copy
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import (
    Work,
    alternate,
    keep_freed_memory,
    one_line,
    provenance,
    speed_up,
)
from vitrail.backbones.layers import Block, Kind
from vitrail.backbones.operators.attention import MSSA
from vitrail.backbones.operators.tokenwise import ISTA, ODL

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4  # largest difference in values and gradients, relative to the largest entry
CRATE = Kind(MSSA, ISTA, residual=False, norm_eps=1e-5)
CRATE_ALPHA = Kind(MSSA, ODL, arguments={"bias": False})
ETA, LMBDA = 0.1, 0.1


class ParityError(Exception):
    """Raised if the two sides do not compute the same result."""


class PublishedMSSA(nn.Module):
    """The published attention, [B, N, D] -> [B, N, D], with an N×N matrix of each head."""

    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        w = self.qkv(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attention = torch.softmax(w @ w.transpose(-1, -2) * w.shape[-1] ** -0.5, dim=-1)
        return self.proj((attention @ w).transpose(1, 2).flatten(2))


class PublishedISTA(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        second = F.linear(F.linear(tokens, self.weight), self.weight.t())  # DᵀDu
        gradient = F.linear(tokens, self.weight.t()) - second
        return F.relu(tokens + (ETA * gradient - ETA * LMBDA))


class PublishedODL(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.D = nn.Parameter(torch.empty(dim, 4 * dim))
        self.D1 = nn.Parameter(torch.empty(dim, 4 * dim))

    def forward(self, tokens: Tensor) -> Tensor:
        first = F.relu(ETA * F.linear(tokens, self.D.t()) - ETA * LMBDA)
        gradient = F.linear(F.linear(first, self.D) - tokens, self.D.t())
        second = F.relu(first - ETA * gradient - ETA * LMBDA)
        return F.linear(second, self.D1)


class PublishedBlock(nn.Module):
    """The published layer, with the parameter names of `Block`, to share one state dict."""

    def __init__(self, kind: Kind, dim: int, heads: int):
        super().__init__()
        alpha = kind is CRATE_ALPHA
        self.norm1 = nn.LayerNorm(dim, eps=kind.norm_eps)
        self.attn = PublishedMSSA(dim, heads, bias=not alpha)
        self.norm2 = nn.LayerNorm(dim, eps=kind.norm_eps)
        self.mlp = PublishedODL(dim) if alpha else PublishedISTA(dim)
        self.residual = kind.residual

    def forward(self, tokens: Tensor) -> Tensor:
        half = tokens + self.attn(self.norm1(tokens))
        after = self.mlp(self.norm2(half))
        return half + after if self.residual else after


class Ours(nn.Module):
    """Our layer, [B, N, D] -> [B, N, D]."""

    def __init__(self, block: Block):
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> Tensor:
        batch, n = tokens.shape[:2]
        return self.block(tokens.flatten(0, 1), [(batch, n)]).unflatten(0, (batch, n))


def results(side: nn.Module, tokens: Tensor, cotangent: Tensor) -> list[Tensor]:
    """Returns the values, then the gradients of the tokens and of each weight by name."""
    values = side(tokens)
    inputs = [tokens, *(weight for _, weight in sorted(side.named_parameters()))]
    return [values, *torch.autograd.grad(values, inputs, cotangent.to(values.dtype))]


def relative_gap(first: list[Tensor], second: list[Tensor]) -> float:
    """Returns the largest difference, relative to each tensor's largest entry."""
    pairs = zip(first, second, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


@torch.no_grad()
def values_gap(first: nn.Module, second: nn.Module, tokens: Tensor) -> float:
    return relative_gap([first(tokens)], [second(tokens)])


def require_parity(first: nn.Module, second: nn.Module, tokens: Tensor, cotangent: Tensor) -> float:
    """Returns the larger gap, of the values in float32, and of values and gradients in float64.

    Gradients are not compared in float32: rounding moves a few of the hundreds of thousands of
    entries across the ReLU's kink, which changes their gradient.

    Raises:
        ParityError: the gap is above TOLERANCE.
    """
    doubles = [copy.deepcopy(side).double() for side in (first, second)]
    tokens_double = tokens.detach().double().requires_grad_()
    exact = [results(side, tokens_double, cotangent) for side in doubles]
    gap = max(values_gap(first, second, tokens), relative_gap(*exact))
    if not gap <= TOLERANCE:
        raise ParityError(f"values or gradients differ by {gap:.1e}: not timed")
    return gap


def measured(side: nn.Module, tokens: Tensor, cotangent: Tensor) -> Tensor:
    with torch.autocast("cuda", torch.bfloat16, enabled=tokens.is_cuda):
        return results(side, tokens, cotangent)[1].flatten()[0]


def compare(
    kind: Kind, dim: int, heads: int, args: argparse.Namespace
) -> list[tuple[str, list[float], list[float], float]]:
    """Returns (peer, its seconds, our seconds, gap) for each peer, with one time per block."""
    torch.manual_seed(0)
    block = Block(kind, dim, heads).to(args.device)
    published = PublishedBlock(kind, dim, heads).to(args.device)
    published.load_state_dict(block.state_dict())
    shape = (args.batch, args.tokens, dim)
    tokens = torch.randn(shape, device=args.device, requires_grad=True)
    cotangent = torch.randn(shape, device=args.device)
    ours = Ours(block)
    gap = require_parity(ours, published, tokens, cotangent)

    sides: dict[str, nn.Module] = {"ours": ours, "as published": published}
    if args.device == "cuda":
        block.compile(dynamic=False)
        compiled = copy.deepcopy(published)
        compiled.compile(dynamic=False)
        sides["published + torch.compile"] = compiled
    ways: dict[str, Work] = {
        name: partial(measured, side, tokens, cotangent) for name, side in sides.items()
    }
    alternate(ways, 1, 3)  # warm up, and compile
    times = alternate(ways, args.blocks, args.calls)
    return [(peer, times[peer], times["ours"], gap) for peer in list(ways)[1:]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=fitting)
    parser.add_argument("--batch", type=int, help="images of a batch; default 8, on CUDA 128")
    parser.add_argument("--tokens", type=int, default=197, help="tokens of an image")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 576], choices=(384, 576))
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--calls", type=int, help="calls of a block; default 4, on CUDA 50")
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    cuda = args.device == "cuda"
    args.batch = (128 if cuda else 8) if args.batch is None else args.batch
    args.calls = (50 if cuda else 4) if args.calls is None else args.calls
    if min(args.batch, args.tokens, args.blocks, args.calls) < 1:
        parser.error("--batch, --tokens, --blocks and --calls must be at least 1")
    return args


def table(args: argparse.Namespace) -> list[str]:
    lines = [
        "| layer | width, heads | peer | peer, ms | ours, ms | speed-up | least | most | gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    heads = {384: 6, 576: 12}
    for name, kind in (("CRATE", CRATE), ("CRATE-α", CRATE_ALPHA)):
        for width in args.widths:
            for peer, theirs, ours, gap in compare(kind, width, heads[width], args):
                slow, fast = (statistics.median(times) * 1e3 for times in (theirs, ours))
                ratio, least, most = speed_up(theirs, ours)
                lines.append(
                    f"| {name} | {width}, {heads[width]} | {peer} | {slow:.2f} | {fast:.2f} | "
                    f"{ratio:.2f} | {least:.2f} | {most:.2f} | {gap:.0e} |"
                )
    return lines


def main() -> None:
    args = arguments()
    origin = provenance(args.device)
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = False  # exact products for the parity check
    try:
        lines = table(args)
    except ParityError as error:
        sys.exit(str(error))
    precision = "bf16 autocast, ours compiled" if args.device == "cuda" else "float32, eager"
    what = (
        f"{args.batch} images of {args.tokens} tokens; forward + backward; {precision}; medians of "
        f"{args.blocks} alternated blocks of {args.calls} calls; gap: the largest relative "
        "difference of values (float32) and gradients (float64)."
    )
    text = "\n".join([*lines, "", what, "", f"{one_line(origin)}."])
    print(text)
    if args.save:
        path = RESULTS / f"crate_block_{args.device}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# `python -m benchmarks.crate_block`\n\n{text}\n")


if __name__ == "__main__":
    main()
