"""The commands: the options of each, with their help. What a command does is in `api`.

Imports are lazy, so that help, listings and typing errors are answered without importing torch. A
command whose options are the fields of a dataclass of another room is made by a function, when the
command is called.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vitrail import api
from vitrail.config import printable, suggest
from vitrail.data.views.preparation import Preparation
from vitrail.recipes.registry import RECIPES
from vitrail.registry import REGISTRIES, registry

Command = Callable[..., None]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Weights = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|WEIGHTS")]
Spec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
Split = Literal["train", "test"]
Unnamed = tyro.conf.arg(name="")  # the fields of a dataclass are options without a prefix
Prepared = Annotated[Preparation, Unnamed]
AS_WEIGHTS = Preparation()  # images are prepared as the weights say


def make_pretrain(recipe: str) -> Command:
    """Trains an encoder: RECIPE --out RUN [--data SPEC] ..."""
    RECIPES.find(recipe)  # a wrong name is refused before torch is imported
    from vitrail.recipes.named import get_recipe

    named = get_recipe(recipe)

    def command(
        out: Path,
        resume: Literal["never", "auto"] = "never",
        recipe: Annotated[Any, Unnamed] = named,
    ) -> None:
        """Trains an encoder.

        Args:
            out: the folder of the run, which must not hold a run yet.
            resume: auto goes on with the run in that folder if this very command has begun it.
        """
        api.start(recipe, out, resume)

    return command


def resume(run: Folder, epochs: float | None = None, data: str | None = None) -> None:
    """Goes on with a run from its last checkpoint: RUN [--epochs N] [--data SPEC]

    Args:
        run: the folder of the run.
        epochs: passes over the data, from the first step on, to make a run longer, even one that
            is finished.
        data: a SPEC, if the images have moved; they must be the same.
    """
    api.resume(run, epochs, data)


def make_evaluate() -> Command:
    """Measures an encoder: RUN|WEIGHTS [--data SPEC ...] [--protocols knn ...]"""
    from vitrail.evals.settings import make_settings

    def command(
        path: Weights,
        data: tuple[str, ...] = (),
        protocols: tuple[str, ...] | None = None,
        out: Path | None = None,
        settings: Annotated[Any, Unnamed] = make_settings(),  # noqa: B008 (frozen)
        device: str = "auto",
        workers: int | None = None,
        max_bad_fraction: float | None = None,
        preparation: Prepared = AS_WEIGHTS,
    ) -> None:
        """Measures an encoder.

        Args:
            path: the folder of a run, or an encoder's weights.
            data: one SPEC or several; the first is measured whole, and the accuracies on all of
                them make a transfer table. By default the run's own.
            protocols: names of `vitrail list protocols`; by default all but the optional ones.
            out: where evaluation.json and figures/ go; by default into the run.
            device: auto (CUDA if there is one), cpu, cuda or cuda:N.
            workers: processes that decode images; None for a fair share of the cores.
            max_bad_fraction: fraction of the files of a split that may be left out; by default the
                run's.
        """
        api.evaluate(
            path, data, protocols, out, settings, device, workers, max_bad_fraction, preparation
        )

    return command


def report(
    run: Folder,
    more: Annotated[tuple[Folder, ...], tyro.conf.Positional] = (),
    out: Path | None = None,
) -> None:
    """Writes the page of a run, or of several side by side: RUN [RUN ...]

    Args:
        run: the folder of a run.
        more: folders of runs to show beside it.
        out: the page; by default RUN/report.html, which several runs do not have.
    """
    print(api.report(run, *more, out=out))


def embed(
    path: Weights,
    out: Path,
    data: str | None = None,
    split: Split = "train",
    device: str = "auto",
    workers: int | None = None,
    max_bad_fraction: float | None = None,
    preparation: Prepared = AS_WEIGHTS,
) -> None:
    """Writes features to a file: RUN|WEIGHTS --data SPEC --out FILE.npz|.parquet

    Args:
        path: the folder of a run, or an encoder's weights.
        out: FILE.npz or FILE.parquet, with features, labels and ids.
        data: a source SPEC; by default the run's own.
        split: the part of the source.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
        workers: processes that decode images; None for a fair share of the cores.
        max_bad_fraction: fraction of the files that may be left out; by default the run's.
    """
    api.embed(path, out, data, split, device, workers, max_bad_fraction, preparation)


def export(
    path: Weights,
    format: Literal["timm", "hf", "onnx", "safetensors"],
    out: Path | None = None,
    img_size: int | None = None,
    preparation: Prepared = AS_WEIGHTS,
) -> None:
    """Writes an encoder for other libraries: RUN|WEIGHTS --format timm|hf|onnx|safetensors

    Args:
        path: the folder of a run, or an encoder's weights.
        format: the library to write for.
        out: where to write; by default below RUN/export.
        img_size: pixels a side of the images to come, where they differ from the encoder's.
    """
    print(api.export(path, format, out=out, img_size=img_size, preparation=preparation))


def saliency(
    path: Weights,
    frames: Path,
    out: Path,
    size: int | None = None,
    head: int | None = None,
    fps: float | None = None,
    device: str = "auto",
    preparation: Prepared = AS_WEIGHTS,
) -> None:
    """Draws an encoder's last attention over a video: RUN|WEIGHTS --frames FOLDER --out FILE

    Args:
        path: the folder of a run, or an encoder's weights.
        frames: a folder of images, or an animated GIF, WebP or PNG.
        out: FILE.gif or FILE.webp.
        size: pixels of a frame's short side; by default the encoder's own.
        head: number of the attention head, from 1; by default the average of all heads.
        fps: frames a second; by default as the file says, else 12.5.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
    """
    from vitrail.distributed.ranks import choose_device
    from vitrail.evals.patches.saliency_video import saliency_video

    place = str(choose_device(device))
    written = saliency_video(
        path,
        frames,
        out,
        size=size,
        head=head,
        fps=fps,
        device=place,
        preparation=preparation,
    )
    for id, reason in written.skipped:
        print(printable(f"skipped {json.dumps(id)}: {reason}"), file=sys.stderr)
    if written.cut:
        print(
            "the frames after these are left out: choose a smaller --size or fewer of them",
            file=sys.stderr,
        )
    print(f"{written.path}: {written.frames} frames")


def make_pack() -> Command:
    """Writes a source's images, resized, as WebDataset shards: SPEC --out DIR"""
    from vitrail.data.loading.workers import choose_workers
    from vitrail.data.sources.registry import resolve_spec
    from vitrail.data.tools.encode import Packing
    from vitrail.data.tools.pack import pack, summary

    def command(
        spec: Spec,
        out: Path,
        packing: Annotated[Packing, Unnamed] = Packing(),  # noqa: B008 (frozen)
        channels: int | None = None,
        workers: int | None = None,
    ) -> None:
        """Writes a source's images, resized, as WebDataset shards; wds:DIR reads them.

        Args:
            spec: the images; see `vitrail list sources`.
            out: a folder that is empty or not there, or that holds a part of this pack.
            channels: channels of every image; by default the source's own, 3 for files.
            workers: processes that decode images; None for a fair share of the cores.
        """
        splits = pack(
            resolve_spec(spec),
            out,
            packing,
            channels=channels,
            workers=choose_workers(workers),
        )
        for line in summary(out, splits):
            print(line)

    return command


def stats(
    spec: Spec,
    split: Split = "train",
    channels: int | None = None,
    max: int | None = None,
    json: bool = False,
    workers: int | None = None,
) -> None:
    """Measures mean and std of pixels, for --objective.views.mean and .std: SPEC [--json]

    Also the range of values and the sizes. Every image counts alike, whatever its size, as it does
    in training.

    Args:
        spec: the images; see `vitrail list sources`.
        split: the part of the source.
        channels: channels of every image; by default the source's own, 3 for files.
        max: images to read, drawn at random; by default all.
        json: print one JSON object instead of a table.
        workers: processes that decode images; None for a fair share of the cores.
    """
    from rich.console import Console

    from vitrail.data.loading.workers import choose_workers
    from vitrail.data.sources.registry import open_source, resolve_spec
    from vitrail.data.tools.stats import statistics, stats_table, stats_title, stats_words

    source = open_source(resolve_spec(spec), split, channels)
    found = statistics(source, split, max, choose_workers(workers))
    if json:
        print(found.to_json())
        return
    console = Console()
    for part in (stats_title(found), stats_table(found), *stats_words(found)):
        if isinstance(part, str):
            console.print(printable(part), markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(part)


def list_(
    kinds: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KIND")] = (),
) -> None:
    """Lists names: [recipes|backbones|objectives|operations|sources|protocols|sinks]

    Args:
        kinds: one or several of recipes, backbones, objectives, operations (on views), sources,
            protocols and sinks; by default all of them.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plurals = {f"{kind}s": kind for kind in REGISTRIES}
    for plural in kinds or plurals:
        if plural not in plurals:
            raise ValueError(f"{plural!r} cannot be listed{suggest(plural, plurals)}")
        table = Table(
            title=plural, title_justify="left", box=None, show_header=False, padding=(0, 2)
        )
        table.add_column(overflow="fold")
        for usage, summary in registry(plurals[plural]).listing():
            table.add_row(Text(usage), Text(summary))  # Text: brackets are no markup
        Console().print(table, "")


# Commands, or functions `make_...` that make them; the first line of the docstring is the help.
COMMANDS: dict[str, Callable[..., Any]] = {
    "pretrain": make_pretrain,
    "resume": resume,
    "evaluate": make_evaluate,
    "report": report,
    "saliency": saliency,
    "embed": embed,
    "export": export,
    "pack": make_pack,
    "stats": stats,
    "list": list_,
}
