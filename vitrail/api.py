"""vitrail in Python: one function for each command of the command line, with the same arguments.

Imports are lazy: torch takes seconds to import, and a function waits only for what it uses.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.atomic import parse_json, read_text
from vitrail.config import override

if TYPE_CHECKING:
    import vitrail.data.views.preparation
    import vitrail.encoder
    import vitrail.recipes.recipe


class Run(type(Path())):  # type: ignore[misc]
    """The folder of a run: a `Path` that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        return f"<table><caption>{html.escape(str(self))}</caption>{cells}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        """Returns what the run has written so far, as pairs of a name and a text."""
        config = _read_object(self / "config.json")
        facts = [
            (name, str(config[name])) for name in ("name", "backbone", "data") if name in config
        ]
        last = _last_row(self / "metrics.jsonl")
        if _is_number(last.get("step")):
            facts.append(("steps", str(last["step"] + 1)))
        if _is_number(last.get("loss")):
            facts.append(("loss", f"{last['loss']:.4f}"))
        knn = _read_object(self / "evaluation.json").get("knn")
        if isinstance(knn, dict):
            shown = (
                f"{kind} {100 * value:.1f}" for kind, value in knn.items() if _is_number(value)
            )
            facts.append(("k-NN accuracy (%)", ", ".join(shown)))
        return facts


def pretrain(
    recipe: "str | vitrail.recipes.recipe.Recipe",
    out: str | Path,
    data: str | None = None,
    resume: Literal["never", "auto"] = "never",
    **changes: Any,
) -> Run:
    """Trains an encoder, and returns the folder of the run.

    >>> run = vitrail.pretrain("simdino_digits", out="runs/mine", epochs=20, optim={"lr": 5e-4})
    >>> vitrail.load(run).transform(images)

    Args:
        recipe: a name of `vitrail list recipes`, or a Recipe.
        out: a folder that does not hold a run yet.
        data: a source SPEC instead of the recipe's.
        resume: auto goes on with the run in `out` if the same command has begun it.
        changes: fields of the recipe by name; nested fields as dicts.

    Raises:
        ValueError: a name, a field or a value that does not fit, or a loss that is not finite.
    """
    from vitrail.recipes.named import get_recipe

    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = override(chosen, changes | ({} if data is None else {"data": data}))
    return start(chosen, _named(out), resume)


def start(
    recipe: "vitrail.recipes.recipe.Recipe",
    out: Path,
    resume: Literal["never", "auto"] = "never",
) -> Run:
    """Makes the folder of the run, and trains; under torchrun, on every rank.

    The folder is made only when everything that can be refused beforehand has been checked.
    """
    from vitrail.train.start import begin

    begin(recipe, out, resume)
    return Run(out)


def resume(run: str | Path, epochs: float | None = None, data: str | None = None) -> Run:
    """Goes on with a run from its last whole checkpoint, as if it had never stopped.

    A finished run is left as it is, unless it is made longer.

    Args:
        run: the folder of the run.
        epochs: passes over the data, from the first step on, if the run is to have another length.
        data: a source SPEC, if the images have moved; they must be the same.

    Raises:
        ValueError: no such run, one in use, one that was edited, or data that changed.
    """
    from vitrail.train.start import go_on

    run = Run(run)
    go_on(run, epochs, data)
    return run


def load(
    path: str | Path, device: str = "cpu", preparation: Any = None
) -> "vitrail.encoder.Encoder":
    """Returns the encoder of a run, or of an encoder.safetensors beside its encoder.json.

    Args:
        path: a run, an encoder's weights, or an official checkpoint.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
        preparation: changes to how images are prepared, for weights that do not say it: a dict of
            mean, std, interpolation and crop.
    """
    from vitrail.distributed.ranks import choose_device
    from vitrail.encoder import Encoder

    return Encoder.load(path, str(choose_device(device)), _preparation(preparation))


def evaluate(
    path: str | Path,
    data: str | Sequence[str] = (),
    protocols: Sequence[str] | None = None,
    out: str | Path | None = None,
    settings: Any = None,
    device: str = "auto",
    workers: int | None = None,
    max_bad_fraction: float | None = None,
    preparation: Any = None,
) -> Any:
    """Measures an encoder: writes evaluation.json and figures, and returns the numbers.

    Args:
        path: a run, or an encoder's weights.
        data: one source SPEC or several; the first is measured whole, and the accuracies on all of
            them make a transfer table. By default the run's own.
        protocols: names of `vitrail list protocols`; by default all but the optional ones.
        out: where evaluation.json and figures/ go; by default into the run.
        settings: of protocols, by their group: {"knn": {"k": 5}}.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
        workers: processes that decode images; None for a fair share of the cores.
        max_bad_fraction: fraction of the files of a split that may be left out; by default the
            run's.
        preparation: changes to how images are prepared, for weights that do not say it: a dict of
            mean, std, interpolation and crop.

    Raises:
        ValueError: an unknown protocol or setting, or data that a protocol cannot be measured on.
    """
    from vitrail.data.loading.start_method import refuse_second_run
    from vitrail.data.loading.workers import choose_workers
    from vitrail.distributed.ranks import choose_device
    from vitrail.evals import evaluate as evals

    refuse_second_run()
    return evals.evaluate(
        path,
        data=data,
        protocols=protocols,
        out=None if out is None else _named(out),
        **({} if settings is None else {"settings": settings}),
        device=str(choose_device(device)),
        workers=choose_workers(workers),
        max_bad_fraction=max_bad_fraction,
        preparation=_preparation(preparation),
    )


def embed(
    path: str | Path,
    out: str | Path,
    data: str | None = None,
    split: Literal["train", "test"] = "train",
    device: str = "auto",
    workers: int | None = None,
    max_bad_fraction: float | None = None,
    preparation: Any = None,
) -> Path:
    """Writes the features of a source's images to a file, and returns the file's path.

    Args:
        path: a run, or an encoder's weights.
        out: FILE.npz or FILE.parquet, with features, labels and ids.
        data: a source SPEC; by default the run's own.
        split: the part of the source.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
        workers: processes that decode images; None for a fair share of the cores.
        max_bad_fraction: fraction of the files that may be left out; by default the run's.
        preparation: changes to how images are prepared, for weights that do not say it: a dict of
            mean, std, interpolation and crop.

    Raises:
        ValueError: another suffix, a missing extra, nothing to embed, or too many bad files.
    """
    from vitrail.data.loading.start_method import refuse_second_run
    from vitrail.data.loading.workers import choose_workers
    from vitrail.distributed.ranks import choose_device
    from vitrail.evals import embed as evals

    refuse_second_run()
    return evals.embed(
        path,
        out=_named(out),
        data=data,
        split=split,
        device=str(choose_device(device)),
        workers=choose_workers(workers),
        max_bad_fraction=max_bad_fraction,
        preparation=_preparation(preparation),
    )


def report(run: str | Path, *more: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a run, or of several side by side, and returns its path.

    Args:
        run: the folder of a run, finished or not.
        more: folders of runs to show beside it.
        out: the page; by default RUN/report.html, which several runs do not have.

    Raises:
        ValueError: no such folder, one without a run, the same run twice, or several without `out`.
    """
    from vitrail.reporting.build import build_report

    return build_report(run, *more, out=None if out is None else _named(out))


def export(
    path: str | Path,
    format: Literal["timm", "hf", "onnx", "safetensors"],
    out: str | Path | None = None,
    img_size: int | None = None,
    preparation: Any = None,
) -> str:
    """Writes an encoder in another library's format.

    Args:
        path: a run, or an encoder's weights.
        format: timm and hf make folders, onnx a file, safetensors a folder of vitrail's own.
        out: where to write; by default below RUN/export.
        img_size: pixels a side of the images to come, where they differ from the encoder's.
        preparation: changes to how images are prepared, for weights that do not say it: a dict of
            mean, std, interpolation and crop.

    Returns:
        One line: the path, and how to load it.

    Raises:
        ValueError: something at `out`, an architecture that the format cannot hold, or a missing
            package.
    """
    from vitrail.exporting.export import export as write

    place = None if out is None else _named(out)
    return write(path, format, out=place, img_size=img_size, preparation=_preparation(preparation))


def _preparation(given: Any) -> "vitrail.data.views.preparation.Preparation | None":
    """Returns changes to how images are prepared, which may be given as a dict."""
    from vitrail.config import from_dict
    from vitrail.data.views.preparation import Preparation

    return from_dict(Preparation, dict(given)) if isinstance(given, Mapping) else given


def _named(path: str | Path) -> Path:
    """Returns a path. Raises ValueError for an empty one, which would mean this very folder."""
    if not str(path) or (isinstance(path, str) and not path.strip()):
        raise ValueError("out is empty; name a folder or file")
    return Path(path)


def _read_object(path: Path) -> Mapping[str, Any]:
    """Returns the object that a JSON file holds; nothing of a file that is missing or damaged."""
    return _parsed(_text(path))


def _last_row(path: Path) -> Mapping[str, Any]:
    """Returns the last whole line of metrics.jsonl: a kill may have cut the very last one."""
    return next(filter(None, map(_parsed, reversed(_text(path).splitlines()))), {})


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError):  # a notebook shows what there is
        return ""


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
