"""Images/s of a DINO and of a SimDINO step, against the same step from lightly and timm's ViT.

A step: views already on the device -> both networks -> loss -> backward -> clipping -> AdamW ->
EMA. The peers are described in `step_peers.py`. Both sides start from the same weights and must
give the same losses for the same crops (float32, no stochastic depth) before anything is timed.
Blocks of steps are alternated in one process; printed are medians, and the median, minimum and
maximum of the ratios within a block. If the ratios differ widely, the machine was busy and the
result is void. Sizes are small on a CPU; on CUDA they are DINO's, ViT-S/16 in bf16.

    python -m benchmarks.step [--device cuda --compile] [--batch 8 --blocks 7 ...] [--save]

With --compile (CUDA) ours is compiled per block, as in training, and compared with the peer as
published and with the peer with its networks under torch.compile.
"""

import argparse
import json
import sys
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.step_setting import CPU, CUDA, Setting
from benchmarks.timing import keep_freed_memory, one_line, provenance
from vitrail.backbones.families import Skeleton
from vitrail.backbones.registry import BACKBONES

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "method": "method",
    "peer": "peer",
    "ours_images_per_s": "ours, images/s",
    "peer_images_per_s": "peer, images/s",
    "ratio": "ours / peer",
    "ratio_least": "least",
    "ratio_most": "most",
    "ours_peak_mib": "ours, peak MiB",
    "peer_peak_mib": "peer, peak MiB",
    "loss_gap": "losses differ by",
}
FORMATS = dict.fromkeys(("ratio", "ratio_least", "ratio_most"), "{:.2f}") | {"loss_gap": "{:.0e}"}


def main() -> None:
    args, setting = arguments()
    missing = [name for name in ("lightly", "timm") if find_spec(name) is None]
    if missing:
        print(
            f"{' and '.join(missing)} not installed, so there is no peer to stand beside; "
            "nothing was measured. `pip install -e '.[test]'` brings both."
        )
        return
    from benchmarks.step_sides import METHODS, ParityError, compare

    if args.keep_freed_memory:
        keep_freed_memory()
    origin = provenance(setting.device)
    torch.backends.cudnn.allow_tf32 = False  # exact patch embedding for the parity check
    rows = []
    try:
        for method in METHODS:
            found = compare(method, setting, args.blocks, args.steps, args.compile)
            rows += [asdict(row) for row in found]
    except ParityError as error:
        sys.exit(f"{method}: {error}")
    result = {
        "setting": asdict(setting) | {k: vars(args)[k] for k in ("compile", "keep_freed_memory")},
        "blocks": args.blocks,
        "steps_a_block": args.steps,
        "provenance": origin,
        "rows": rows,
    }
    show(result)
    if args.save:
        save(result, RESULTS / f"step_{setting.device}")


def arguments() -> tuple[argparse.Namespace, Setting]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=fitting)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--backbone", help="a ViT: see `vitrail list backbones`")
    parser.add_argument("--batch", type=int)
    for name in ("global-size", "local-size", "n-local", "prototypes"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--drop-path", type=float)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of a block")
    parser.add_argument("--compile", action="store_true", help="compile both sides; CUDA only")
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="do not return freed memory to the kernel; see timing.py",
    )
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    if args.compile and args.device == "cpu":
        parser.error("--compile is for CUDA: training compiles nothing on a CPU")
    if min(args.blocks, args.steps) < 1:
        parser.error("--blocks and --steps must be at least 1")
    given = {f.name: getattr(args, f.name) for f in fields(Setting)}
    setting = replace(
        {"cpu": CPU, "cuda": CUDA}[args.device], **{k: v for k, v in given.items() if v is not None}
    )
    vits = [
        name
        for name, model in BACKBONES.items()
        if isinstance(model, Skeleton) and model.family == "vit"
    ]
    if setting.backbone not in vits:
        parser.error(f"--backbone {setting.backbone}: timm's side needs one of {', '.join(vits)}")
    return args, setting


def cells(rows: list[dict]) -> list[list[str]]:
    """Returns the titles, then a line for each row, without empty columns."""
    keys = [key for key in COLUMNS if any(row[key] is not None for row in rows)]

    def cell(key: str, value: str | float | None) -> str:
        if value is None or isinstance(value, str):
            return value or "–"
        return FORMATS.get(key, "{:.1f}").format(value)

    return [[COLUMNS[key] for key in keys], *([cell(k, row[k]) for k in keys] for row in rows)]


def captions(result: dict) -> tuple[str, str]:
    """Returns a line on the measured setting and one on the machine."""
    s = result["setting"]
    what = (
        f"{s['backbone']} at 2 × {s['global_size']} + {s['n_local']} × {s['local_size']} px, batch "
        f"{s['batch']}, {s['prototypes']} prototypes (DINO), {s['precision']}, stochastic depth "
        f"{s['drop_path']}; medians of {result['blocks']} alternated blocks of "
        f"{result['steps_a_block']} steps"
        + ("; ours compiled per block" if s["compile"] else "; nothing compiled")
        + ("; freed memory kept" if s["keep_freed_memory"] else "")
    )
    return what, one_line(result["provenance"])


def show(result: dict) -> None:
    table = Table()
    titles, *lines = cells(result["rows"])
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i < 2 else "right")
    for line in lines:
        table.add_row(*line)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for caption in captions(result):
        console.print(caption, highlight=False, soft_wrap=True)


def save(result: dict, path: Path) -> None:
    """Writes path.json and path.md."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    titles, *lines = cells(result["rows"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *lines))
    what, where = captions(result)
    path.with_suffix(".md").write_text(
        f"# `python -m benchmarks.step`\n\n{table}\n\n{what}.\n\n{where}.\n"
    )


if __name__ == "__main__":
    main()
