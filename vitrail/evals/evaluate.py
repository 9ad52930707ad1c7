"""Evaluates an encoder by protocols, beside raw pixels and the untrained encoder."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vitrail.atomic import write_atomically
from vitrail.config import printable
from vitrail.data.contract import Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset
from vitrail.data.views.preparation import Preparation
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import DESCRIPTION, WEIGHTS, Encoder
from vitrail.evals.choose import choose_protocols, require_known, require_labels
from vitrail.evals.contract import KINDS, Context, Split
from vitrail.evals.features import Embed, collect, raw_pixels, raw_side
from vitrail.evals.rank import rank_numbers
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.result import Evaluation
from vitrail.evals.reuse import identity, preprocessing, read_previous, reusable
from vitrail.evals.settings import Shared, configs_of, make_settings, to_json
from vitrail.evals.splits import bad_file_counts, bad_file_limit, bad_file_summary, open_splits
from vitrail.evals.tables import accuracy_names, rank_line, results_table, transfer_table
from vitrail.registry import resolve
from vitrail.text_encoder import TextEncoder, has_text


@dataclass(frozen=True)
class _Bench:
    """The parts of an evaluation that all sources of one call share.

    Attributes:
        encoder: the trained one.
        text: its text side, if any.
        asked: names of the protocols that the caller asks for; None for the default ones.
        settings: of `make_settings`.
        figures: the folder of figures.
        device: of the encoder.
        workers: processes that decode.
        max_bad_fraction: of a split's files.
        console: where lines and tables go.
    """

    encoder: Encoder
    text: TextEncoder | None
    asked: Sequence[str] | None
    settings: Any
    figures: Path
    device: str
    workers: int
    max_bad_fraction: float
    console: Console

    def print(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def evaluate(
    path: str | Path,
    data: str | Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | Shared | None = None,
    device: str = "cpu",
    workers: int = 0,
    max_bad_fraction: float | None = None,
    preparation: Preparation | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Evaluates a run, writes evaluation.json and figures/ into it, and prints a table.

    Accuracies are fractions in [0, 1] on the test split, for "raw" (the preprocessed pixels),
    "untrained" (the same architecture, the run's initial weights) and "trained"; what `xray` gives
    is described there. Results of other protocols on the same data, weights and settings are kept.

    Args:
        path: a run folder, or an encoder.safetensors with its encoder.json.
        data: a source SPEC; None is the run's own. A fifth is held out if it has no test split. Of
            several, the first is measured as one alone is, and the accuracies of the others go to
            "transfer" in evaluation.json, by SPEC.
        protocols: names of PROTOCOLS; None is all that the data and the backbone allow, without
            the optional ones.
        out: the folder to write to; None is the run's, or PATH.evaluation for other people's
            weights.
        settings: of protocols by group, and those that they share, as in
            {"seed": 1, "knn": {"k": 5}}; `vitrail evaluate --help` lists them.
        device: of the encoder, such as "cpu" or "cuda".
        workers: processes that decode images; 0 is this process.
        max_bad_fraction: share of each split's files that may be unreadable; more are an error,
            fewer are left out and counted under "bad". None is the run's own.
        preparation: changes to how images are prepared, for weights that do not say it.
        quiet: print nothing.

    Returns:
        what evaluation.json holds.

    Raises:
        ValueError: a path, SPEC, protocol or setting that does not fit, labels where there are
            none, and too many bad files.
    """
    started = time.perf_counter()
    checked = make_settings(settings)
    require_known(protocols)
    encoder = Encoder.load(path, device, preparation)
    out = Path(out) if out is not None else _home(Path(path))
    console = Console(quiet=quiet, stderr=False)
    text = _text_side(Path(path), encoder, protocols, device)
    bad = bad_file_limit(Path(path), max_bad_fraction)
    figures = out / "figures"
    bench = _Bench(encoder, text, protocols, checked, figures, device, workers, bad, console)
    first, *others = _specs(path, data, encoder)
    splits = {spec: open_splits(spec, encoder.channels) for spec in (first, *others)}
    for spec in others:
        require_labels(splits[spec][0], ["--data with several sources"])
    prepared = preprocessing(encoder, preparation)
    before = read_previous(out / "evaluation.json", encoder, checked, prepared)
    fresh, facts = _measure(bench, *splits[first], transfer=False)
    results = Evaluation(reusable(before, first) | fresh)
    results["figures"] = _figures(out)
    results |= facts | {"data": first}
    transfer = before.get("transfer", {})
    for spec in others:
        numbers, facts = _measure(bench, *splits[spec], transfer=True)
        transfer[spec] = transfer.get(spec, {}) | numbers | facts
    results |= {
        "weights": identity(encoder)[0],
        "step": identity(encoder)[1],
        "settings": to_json(checked),
        **prepared,
        "hardware": hardware(device),
        "seconds": round(time.perf_counter() - started, 1),
        "vitrail": version("vitrail"),
    }
    if transfer:
        results["transfer"] = transfer
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "evaluation.json", json.dumps(results, indent=2) + "\n")
    _show(bench, results, fresh, bool(others))
    return results


def _show(bench: _Bench, results: dict[str, Any], fresh: dict[str, Any], several: bool) -> None:
    if accuracy_names(results):
        bench.console.print(results_table(results))
    if several:
        bench.console.print(transfer_table(results))
    if "features" in results:
        bench.print(rank_line(results["features"]))
    for name, numbers in fresh.items():
        if table := resolve(PROTOCOLS[name].table):
            bench.console.print(table(numbers))


def _specs(path: str | Path, data: str | Sequence[str] | None, encoder: Encoder) -> list[str]:
    specs = [data] if isinstance(data, str) else list(dict.fromkeys(data or ()))
    specs = specs or [spec for spec in [encoder.info.get("data")] if spec is not None]
    if not specs:
        raise ValueError(f"{path} does not say what it was trained on; name the data with --data")
    return specs


def _measure(
    bench: _Bench, train: Source, test: Source, *, transfer: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns results by protocol, and facts about data and features, of one source."""
    encoder = bench.encoder
    names, notes = choose_protocols(bench.asked, encoder, bench.text, train)
    if transfer:
        names = [name for name in names if PROTOCOLS[name].accuracies]
    for note in [] if transfer else notes:
        bench.print(note)
    rows = [PROTOCOLS[name] for name in names]
    whole = any("features" in row.needs for row in rows)
    compared = any(row.compares or "labels" in row.needs for row in rows)
    kinds = KINDS if compared else KINDS[-1:]
    embeds = _embeds(encoder, kinds, len(train) + len(test)) if whole else {}
    settings = bench.settings
    context = Context(
        encoder=encoder,
        train=_split(train, encoder.preprocess, embeds, bench),
        test=_split(test, encoder.preprocess, embeds, bench),
        figures=bench.figures,
        device=bench.device,
        seed=settings.seed,
        pictures=settings.pictures,
        image_size=settings.image_size,
        asked_metric=settings.metric,
        workers=bench.workers,
        text=bench.text,
    )
    facts: dict[str, Any] = {}
    if whole:
        facts["features"] = rank_numbers(context.test.features, settings.seed)
    facts |= {
        "metric": context.metric,
        "n_train": len(context.train.index),
        "n_test": len(context.test.index),
        "held_out": isinstance(test, Subset),  # the data have no test split of their own
    }
    results = _run(names, context, explicit=bench.asked is not None, bench=bench)
    return results, facts | _left_out(bench, context)


def _left_out(bench: _Bench, context: Context) -> dict[str, Any]:
    """Prints and counts the files that could not be read."""
    bad = {"train": context.train.quarantine, "test": context.test.quarantine}
    for name in bad_file_counts(bad):
        bench.print(bad_file_summary(name, bad[name]))
    return {"bad": bad_file_counts(bad)} if bad_file_counts(bad) else {}


def _home(path: Path) -> Path:
    """Returns a run's own folder, or one beside other people's weights (maybe in a cache)."""
    folder = path if path.is_dir() else path.parent
    ours = path.is_dir() or path.name in (WEIGHTS, DESCRIPTION)
    if ours and (folder / DESCRIPTION).exists():
        return folder
    return path.with_name(f"{path.name}.evaluation")


def _text_side(
    path: Path, encoder: Encoder, protocols: Sequence[str] | None, device: str
) -> TextEncoder | None:
    """Returns the text side beside the encoder, if there is one and a protocol may need it."""
    folder = path if path.is_dir() else path.parent
    wanted = protocols is None or any("text" in PROTOCOLS[name].needs for name in protocols)
    if not wanted or not has_text(folder):
        return None
    text = TextEncoder.load(folder, device)
    if text.step != encoder.info.get("step"):
        raise ValueError(
            f"{folder}: its text side is of step {text.step} and its encoder of step "
            f"{encoder.info.get('step')}; put back those of one step, or go on with the run by "
            f"`vitrail resume {folder}`"
        )
    return text


def _embeds(encoder: Encoder, kinds: Sequence[str], n_samples: int) -> dict[str, Embed]:
    side = raw_side(encoder.preprocess, encoder.channels, n_samples)
    known: dict[str, Embed] = {"trained": encoder.embed}
    if "untrained" in kinds:
        known["untrained"] = encoder.untrained().embed
        known["raw"] = raw_pixels(side)
    return {kind: known[kind] for kind in kinds}


def _split(
    source: Source, preprocess: Preprocess, embeds: dict[str, Embed], bench: _Bench
) -> Split:
    quarantine = Quarantine(None, len(source), bench.max_bad_fraction)
    if not embeds:
        index = np.arange(len(source))
        return Split(source, {}, np.full(len(source), -1), index, quarantine)
    read = collect(preprocess, embeds, source, quarantine, workers=bench.workers)
    return Split(source, *read, quarantine)


def _run(
    names: Sequence[str], context: Context, *, explicit: bool, bench: _Bench
) -> dict[str, Any]:
    results = {}
    for name in names:
        try:
            row = PROTOCOLS[name]
            result = resolve(row.run)(context, *configs_of(row, bench.settings))
        except ValueError as error:
            if explicit:  # by default, the other protocols go on
                raise
            bench.print(f"{name} is left out: {error}")
            continue
        if result is not None:
            results[name] = result
    return results


def _figures(out: Path) -> dict[str, str]:
    drawn = [name for name, row in PROTOCOLS.items() if row.figure]
    files = {name: f"figures/{name}.png" for name in drawn}
    return {name: file for name, file in files.items() if (out / file).exists()}


def hardware(device: str) -> str:
    """Returns the name of the machine's processor or GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"
