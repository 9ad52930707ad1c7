"""The commands; what they do lives elsewhere."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitrail import api
from vitrail.backbones.registry import BACKBONES, describe
from vitrail.config import suggest
from vitrail.data.loading.workers import fair_workers
from vitrail.data.sources.registry import SOURCES, open_source, resolve_spec
from vitrail.data.tools.encode import Packing
from vitrail.data.tools.pack import pack, summary
from vitrail.data.tools.stats import statistics, stats_table, stats_title, stats_words
from vitrail.distributed.ranks import choose_device
from vitrail.evals.contract import Settings
from vitrail.evals.embed import embed
from vitrail.evals.evaluate import evaluate
from vitrail.evals.patches.saliency_video import saliency_video
from vitrail.evals.registry import PROTOCOLS
from vitrail.export.export import Format, export
from vitrail.objectives.registry import OBJECTIVES
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.registry import RECIPES, get_recipe
from vitrail.report.build import build_report

Path_ = Annotated[Path, tyro.conf.Positional]


def pretrain(arguments: list[str]) -> None:
    """Train an encoder: vitrail pretrain RECIPE --data SPEC --out RUN"""
    if not arguments or arguments[0].startswith("-"):
        _usage(
            "usage: vitrail pretrain RECIPE --out RUN [--data SPEC] ...\n\nrecipes:\n  "
            + "\n  ".join(RECIPES)
            + "\n\n`vitrail pretrain RECIPE --help` lists a recipe's fields.",
            asked="--help" in arguments or "-h" in arguments,
        )
    named = get_recipe(arguments[0])

    def command(
        out: Path, recipe: Annotated[Recipe, tyro.conf.arg(name="")] = named
    ) -> tuple[Recipe, Path]:
        """Trains an encoder.

        Args:
            out: the run's folder, which must not hold a run yet.
        """
        return recipe, out

    asked = tyro.cli(
        command,
        prog=f"vitrail pretrain {named.name}",
        args=arguments[1:],
        config=(tyro.conf.FlagConversionOff,),
    )
    api.start(*asked)


def resume(arguments: list[str]) -> None:
    """Go on with a run: vitrail resume RUN"""

    def command(run: Path_) -> None:
        api.resume(run)

    tyro.cli(command, prog="vitrail resume", args=arguments)


def evaluate_(arguments: list[str]) -> None:
    """Measure an encoder: vitrail evaluate RUN|WEIGHTS [--data SPEC ...] [--protocols knn ...]"""

    def command(
        path: Path_,
        data: tuple[str, ...] = (),
        protocols: tuple[str, ...] | None = None,
        out: Path | None = None,
        settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings(),  # noqa: B008 (frozen)
        device: str = "auto",
        workers: int | None = None,
        max_bad_fraction: float | None = None,
    ) -> None:
        """Measures an encoder.

        Args:
            data: one SPEC or several; the first is measured whole, and the accuracies on all of
                them make a transfer table. By default the run's own.
            protocols: see `vitrail list protocols`; by default all but the optional ones.
            out: where evaluation.json and figures/ go; by default into the run.
            max_bad_fraction: of the files of a split that may be left out; by default the run's.
        """
        evaluate(
            path,
            data=data,
            protocols=protocols,
            out=out,
            settings=settings,
            device=str(choose_device(device)),
            workers=fair_workers() if workers is None else workers,
            max_bad_fraction=max_bad_fraction,
        )

    tyro.cli(command, prog="vitrail evaluate", args=arguments)


def report(arguments: list[str]) -> None:
    """Make a page of one run, or of several side by side: vitrail report RUN [RUN ...]"""

    def command(
        run: Path_,
        more: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
        out: Path | None = None,
    ) -> None:
        """Writes a page.

        Args:
            more: runs to show beside it.
            out: the page; by default RUN/report.html, which several runs do not have.
        """
        print(build_report(run) if out is None and not more else build_report(run, *more, out=out))

    tyro.cli(command, prog="vitrail report", args=arguments)


def saliency(arguments: list[str]) -> None:
    """Draw what it looks at in a video: vitrail saliency RUN|WEIGHTS --frames FOLDER --out FILE"""

    def command(
        path: Path_,
        frames: Path,
        out: Path,
        size: int | None = None,
        head: int | None = None,
        fps: float | None = None,
        device: str = "auto",
    ) -> None:
        """Draws the last layer's maps of a moving picture beside it.

        Args:
            frames: a folder of images, or an animated GIF, WebP or PNG.
            out: FILE.gif or FILE.webp.
            size: pixels of a frame's short side; by default the encoder's own.
            head: one head's map, from 1; by default the average.
            fps: frames a second; by default as the file says, else 12.5.
        """
        written = saliency_video(
            path,
            frames,
            out,
            size=size,
            head=head,
            fps=fps,
            device=str(choose_device(device)),
        )
        for id, reason in written.skipped:
            print(f"skipped {json.dumps(id)}: {reason}", file=sys.stderr)
        if written.cut:
            print(
                "the frames after these are left out: choose a smaller --size or fewer of them",
                file=sys.stderr,
            )
        print(f"{written.path}: {written.frames} frames")

    tyro.cli(command, prog="vitrail saliency", args=arguments)


def embed_(arguments: list[str]) -> None:
    """Write features: vitrail embed RUN|WEIGHTS --data SPEC --out FILE.npz|.parquet"""

    def command(
        path: Path_,
        out: Path,
        data: str | None = None,
        split: Literal["train", "test"] = "train",
        device: str = "auto",
        workers: int | None = None,
        max_bad_fraction: float | None = None,
    ) -> None:
        embed(
            path,
            out=out,
            data=data,
            split=split,
            device=str(choose_device(device)),
            workers=fair_workers() if workers is None else workers,
            max_bad_fraction=max_bad_fraction,
        )

    tyro.cli(command, prog="vitrail embed", args=arguments)


def export_(arguments: list[str]) -> None:
    """Write for other libraries: vitrail export RUN|WEIGHTS --format timm|hf|onnx|safetensors"""

    def command(
        path: Path_, format: Format, out: Path | None = None, img_size: int | None = None
    ) -> None:
        """Writes an encoder in another format.

        Args:
            out: where to write; by default below RUN/export.
            img_size: pixels a side of the images to come, where they differ from the encoder's.
        """
        print(export(path, format, out=out, img_size=img_size))

    tyro.cli(command, prog="vitrail export", args=arguments)


def pack_(arguments: list[str]) -> None:
    """Write images once more, smaller, in tar shards: vitrail pack SPEC --out DIR"""

    def command(
        spec: Annotated[str, tyro.conf.Positional],
        out: Path,
        packing: Annotated[Packing, tyro.conf.arg(name="")] = Packing(),  # noqa: B008 (frozen)
        channels: int | None = None,
        workers: int | None = None,
    ) -> None:
        """Writes a source's images, resized, as WebDataset shards; wds:DIR reads them.

        Args:
            spec: the images; see `vitrail list sources`.
            out: a folder that is empty or not there, or that holds a part of this pack.
            channels: of every image; by default the source's own, 3 for files.
        """
        splits = pack(
            resolve_spec(spec),
            out,
            packing,
            channels=channels,
            workers=fair_workers() if workers is None else workers,
        )
        for line in summary(out, splits):
            print(line)

    tyro.cli(command, prog="vitrail pack", args=arguments)


def stats(arguments: list[str]) -> None:
    """Count pixels, for --objective.views.mean and .std: vitrail stats SPEC [--json]"""

    def command(
        spec: Annotated[str, tyro.conf.Positional],
        split: Literal["train", "test"] = "train",
        channels: int | None = None,
        max: int | None = None,
        json: bool = False,
        workers: int | None = None,
    ) -> None:
        """Mean and standard deviation of each channel, the range of values, and sizes.

        Every image counts alike, whatever its size, as it does in training.

        Args:
            channels: of every image; by default the source's own, 3 for files.
            max: images to read, drawn at random; by default all.
            json: print one JSON object instead of a table.
        """
        source = open_source(resolve_spec(spec), split, channels)
        found = statistics(source, split, max, fair_workers() if workers is None else workers)
        if json:
            print(found.to_json())
            return
        console = Console()
        for part in (stats_title(found), stats_table(found), *stats_words(found)):
            console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))

    tyro.cli(command, prog="vitrail stats", args=arguments)


def list_(arguments: list[str]) -> None:
    """Show what there is: vitrail list [recipes|backbones|objectives|sources|protocols]"""
    tables: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "recipes": lambda: [(name, _first_line(make)) for name, make in RECIPES.items()],
        "backbones": lambda: [(name, describe(name)) for name in BACKBONES],
        "objectives": lambda: [(name, row.help) for name, row in OBJECTIVES.items()],
        "sources": lambda: [(row.usage, row.summary) for row in SOURCES.values()],
        "protocols": lambda: [(name, row.help) for name, row in PROTOCOLS.items()],
    }
    if "--help" in arguments or "-h" in arguments:
        _usage(f"usage: vitrail list [{'|'.join(tables)}]", asked=True)
    for kind in arguments or tables:
        if kind not in tables:
            raise ValueError(f"{kind!r} cannot be listed{suggest(kind, tables)}")
        table = Table(title=kind, title_justify="left", box=None, show_header=False, padding=(0, 2))
        table.add_column(overflow="fold")
        for name, help_ in tables[kind]():
            table.add_row(Text(name), Text(help_))  # brackets are no markup
        Console().print(table, "")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "pretrain": pretrain,
    "resume": resume,
    "evaluate": evaluate_,
    "report": report,
    "saliency": saliency,
    "embed": embed_,
    "export": export_,
    "pack": pack_,
    "stats": stats,
    "list": list_,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. Exits with 0, with 1 and one line on an error, or with 2 on misuse."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:10}{_first_line(do)}" for name, do in COMMANDS.items())
        _usage(
            f"vitrail: representation learning you can see through\n\n{commands}",
            asked=bool(arguments),
        )
    if arguments[0] == "--version":
        from vitrail import __version__

        print(__version__)
        return
    try:
        if arguments[0] not in COMMANDS:
            raise ValueError(f"{arguments[0]!r} is not a command{suggest(arguments[0], COMMANDS)}")
        COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        who = f"rank {os.environ.get('RANK')}: " if several else ""
        print(f"vitrail: error: {who}{_words(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error


def _words(error: Exception) -> str:
    """The message without the number of a system error, and what was noted about it."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    return "\n".join([message, *getattr(error, "__notes__", ())])


def _usage(text: str, asked: bool) -> NoReturn:
    """Prints how to call a command: to who asked for it, or to who got it wrong."""
    print(text, file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)


def _first_line(documented: Callable[..., object]) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]
