"""Evaluates an encoder by protocols, beside raw pixels and the untrained encoder."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vitrail.atomic import write_atomically
from vitrail.data.contract import BadSampleError, Source
from vitrail.data.views.preparation import Preparation
from vitrail.encoder import DESCRIPTION, WEIGHTS, Encoder
from vitrail.evals.choose import require_known, require_labels
from vitrail.evals.measure import UNMEASURED, Bench, measure
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.reuse import identity, preprocessing, read_previous, reusable
from vitrail.evals.settings import Shared, make_settings, to_json
from vitrail.evals.splits import bad_file_limit, open_splits
from vitrail.evals.tables import (
    Evaluation,
    accuracy_names,
    rank_line,
    results_table,
    transfer_table,
)
from vitrail.registry import resolve
from vitrail.text_encoder import TextEncoder, has_text


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

    The file is written after every protocol, so an evaluation that is cut off loses one at most.

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
            none, and too many bad files. A protocol that is asked for by name and cannot be
            measured is an error at the end: the results of the others are written by then.
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
    bench = Bench(encoder, text, protocols, checked, figures, device, workers, bad, console)
    first, *others = _specs(path, data, encoder)
    splits = {spec: open_splits(spec, encoder.channels) for spec in (first, *others)}
    for spec in others:
        require_labels(splits[spec][0], ["--data with several sources"])
    prepared = preprocessing(encoder, preparation)
    before = read_previous(out / "evaluation.json", encoder, checked, prepared)
    results = Evaluation(reusable(before, first))
    results |= {
        "data": first,
        "weights": identity(encoder)[0],
        "step": identity(encoder)[1],
        "settings": to_json(checked),
        **prepared,
        "hardware": hardware(device),
        "vitrail": version("vitrail"),
    }
    transfer = before.get("transfer", {})

    def write() -> None:
        results["figures"] = _figures(out)
        results["seconds"] = round(time.perf_counter() - started, 1)
        if transfer:
            results["transfer"] = transfer
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "evaluation.json", json.dumps(results, indent=2) + "\n")

    found = measure(bench, *splits[first], results, write, transfer=False)
    failed = found.failed | _transfer(bench, {s: splits[s] for s in others}, transfer, write)
    if found.done or not failed:
        write()
        _show(bench, results, found.fresh, bool(others) and "transfer" in results)
    _raise(failed, out if found.done else None, explicit=protocols is not None)
    return results


def _transfer(
    bench: Bench,
    splits: Mapping[str, tuple[Source, Source]],
    transfer: dict[str, Any],
    write: Callable[[], None],
) -> dict[str, Exception]:
    """Measures accuracies on further sources, and returns the errors of what cannot be measured."""
    failed: dict[str, Exception] = {}
    for spec, (train, test) in splits.items():
        numbers = transfer.setdefault(spec, {})
        try:
            other = measure(bench, train, test, numbers, write, transfer=True)
        except UNMEASURED as error:  # the sources before it stay measured
            failed[spec] = error
            if not numbers:
                del transfer[spec]
            continue
        failed |= {f"{name} on {spec}": error for name, error in other.failed.items()}
    return failed


def _raise(failed: Mapping[str, Exception], out: Path | None, *, explicit: bool) -> None:
    """Raises ValueError, at the end, for what could not be measured.

    Args:
        failed: errors by protocol, or by source.
        out: the folder with what was measured; None if nothing was.
        explicit: the caller has asked for these protocols by name. By default, those that do not
            fit the data are left out with a line, but a fault of the machine is still an error.
    """
    wrong = {
        name: error
        for name, error in failed.items()
        if explicit or name not in PROTOCOLS or not isinstance(error, (ValueError, BadSampleError))
    }
    if not wrong:
        return
    if len(failed) == 1 and out is None:
        raise next(iter(wrong.values()))
    reasons = "; ".join(f"{name}: {error or type(error).__name__}" for name, error in wrong.items())
    kept = f" (the others are measured, and in {out / 'evaluation.json'})" if out else ""
    raise ValueError(f"could not be measured{kept}: {reasons}")


def _show(bench: Bench, results: dict[str, Any], fresh: dict[str, Any], several: bool) -> None:
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
