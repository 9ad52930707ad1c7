"""How good is the representation? Raw pixels, untrained and trained encoder, side by side."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vitrail.backbones.contract import TokenBackbone
from vitrail.data.batch import NoTestSplitError, Source
from vitrail.data.memory import Subset, hold_out
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import open_source
from vitrail.durable import write_atomically
from vitrail.encoder import DESCRIPTION, WEIGHTS, Encoder
from vitrail.evals.features import Embed, collect, raw_pixels, raw_side
from vitrail.evals.protocols import KINDS, PROTOCOLS, Material, Settings, Split
from vitrail.nn.effective_rank import effective_rank
from vitrail.nn.random import philox

RANK_ROWS = 2048  # of the test features, for the effective rank


def evaluate(
    path: str | Path,
    data: str | None = None,
    protocols: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    device: str = "cpu",
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates a run, writes evaluation.json and figures/ into it, and prints a table.

    Accuracies are fractions in [0, 1] on the test split, for "raw" (the preprocessed pixels),
    "untrained" (the same architecture, the run's initial weights) and "trained"; what `xray` gives
    is described there. Results of other protocols on the same data, weights and settings are kept.

    Args:
        path: a run folder, or an encoder.safetensors with its encoder.json.
        data: a source SPEC; the run's own where not given. Without a test split, a fifth is held
            out.
        protocols: keys of PROTOCOLS; where not given, all that the data and the backbone allow.
        out: the folder to write to; the run's where not given, or PATH.evaluation for other
            people's weights.

    Returns:
        what evaluation.json holds.

    Raises:
        ValueError: a path, SPEC or protocol that does not fit, and labels where there are none.
    """
    started = time.perf_counter()
    console = Console(quiet=quiet, stderr=False)
    settings = settings or Settings()
    require_known(protocols)
    encoder = Encoder.load(path, device)
    out = Path(out) if out is not None else _home(Path(path))
    spec = data or encoder.info.get("data")
    if spec is None:
        raise ValueError(f"{path} does not say what it was trained on; name the data with --data")
    train, test = open_splits(spec, encoder.channels)
    names, notes = _choose(protocols, encoder, train)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    numeric = any(PROTOCOLS[name].labels for name in names)
    whole = any(PROTOCOLS[name].features for name in names)
    kinds = KINDS if numeric else KINDS[-1:]
    embeds = _embeds(encoder, kinds, len(train) + len(test)) if whole else {}
    material = Material(
        encoder=encoder,
        train=_split(train, encoder.preprocess, embeds, workers),
        test=_split(test, encoder.preprocess, embeds, workers),
        settings=settings,
        figures=out / "figures",
        device=device,
    )
    fresh = _run(names, material, explicit=protocols is not None, console=console)
    results = _kept(out / "evaluation.json", spec, encoder, settings) | fresh
    results["figures"] = _figures(out)
    results |= _features(material) | {
        "data": spec,
        "n_train": len(material.train.index),
        "n_test": len(material.test.index),
        "held_out": isinstance(test, Subset),  # the data have no test split of their own
        "weights": _identity(encoder)[0],
        "step": _identity(encoder)[1],
        "settings": asdict(settings),
        "hardware": hardware(device),
        "seconds": round(time.perf_counter() - started, 1),
        "vitrail": version("vitrail"),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "evaluation.json", json.dumps(results, indent=2) + "\n")
    if any(name in results for name, protocol in PROTOCOLS.items() if protocol.labels):
        console.print(results_table(results))
    for name, numbers in fresh.items():
        if table := PROTOCOLS[name].table:
            console.print(table(numbers))
    return results


def require_known(protocols: Sequence[str] | None) -> None:
    """Raises ValueError for a name that is not in the table, with the nearest one that is."""
    for name in protocols or ():
        if name not in PROTOCOLS:
            near = get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown protocol {name!r}; {hint}There are: {', '.join(PROTOCOLS)}")


def open_splits(spec: str, channels: int) -> tuple[Source, Source]:
    """The train and test splits of a SPEC; a fifth is held out where there is no test split."""
    train = open_source(spec, "train", channels=channels)
    try:
        return train, open_source(spec, "test", channels=channels)
    except NoTestSplitError:
        return hold_out(train)


def _home(path: Path) -> Path:
    """A run's own folder; for other people's weights one beside them, which may be in a cache."""
    folder = path if path.is_dir() else path.parent
    ours = path.is_dir() or path.name in (WEIGHTS, DESCRIPTION)
    if ours and (folder / DESCRIPTION).exists():
        return folder
    return path.with_name(f"{path.name}.evaluation")


def _choose(
    protocols: Sequence[str] | None, encoder: Encoder, train: Source
) -> tuple[list[str], list[str]]:
    """The protocols to run, and why the others are left out."""
    unlabelled = train.classes is None
    if protocols is not None:
        wrong = [name for name in protocols if PROTOCOLS[name].labels and unlabelled]
        if wrong:
            others = ", ".join(name for name, p in PROTOCOLS.items() if not p.labels)
            raise ValueError(
                f"{', '.join(wrong)}: {train.spec} has no labels, so there is no accuracy to "
                f"measure; ask for others ({others}), or name labelled data with --data"
            )
        return list(dict.fromkeys(protocols)), []
    names, notes = list(PROTOCOLS), []
    if unlabelled:
        names = [name for name in names if not PROTOCOLS[name].labels]
        notes.append(f"{train.spec} has no labels: no accuracies")
    if not isinstance(encoder.backbone, TokenBackbone):
        names = [name for name in names if name not in ("saliency", "pca")]
        notes.append("the backbone has no tokens: no saliency and no PCA pictures")
    return names, notes


def _embeds(encoder: Encoder, kinds: Sequence[str], n_samples: int) -> dict[str, Embed]:
    side = raw_side(encoder.preprocess, encoder.channels, n_samples)
    known: dict[str, Embed] = {"trained": encoder.embed}
    if "untrained" in kinds:
        known["untrained"] = encoder.untrained().embed
        known["raw"] = raw_pixels(side)
    return {kind: known[kind] for kind in kinds}


def _split(source: Source, preprocess: Preprocess, embeds: dict[str, Embed], workers: int) -> Split:
    if not embeds:
        index = np.arange(len(source))
        return Split(source, {}, np.full(len(source), -1), index)
    table, labels, index = collect(preprocess, embeds, source, workers=workers)
    return Split(source, table, labels, index)


def _run(
    names: Sequence[str], material: Material, *, explicit: bool, console: Console
) -> dict[str, Any]:
    results = {}
    for name in names:
        try:
            result = PROTOCOLS[name].run(material)
        except ValueError as error:
            # Asked for by name, it is an error; otherwise the rest is still worth having.
            if explicit:
                raise
            console.print(
                f"{name} is left out: {error}", markup=False, highlight=False, soft_wrap=True
            )
            continue
        if result is not None:
            results[name] = result
    return results


def _kept(path: Path, spec: str, encoder: Encoder, settings: Settings) -> dict[str, Any]:
    """Earlier results of the same data, weights and settings."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        before = (old["data"], old["weights"], old["step"], old["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if before != (spec, *_identity(encoder), asdict(settings)):
        return {}
    return {name: old[name] for name in (*PROTOCOLS, "features") if name in old}


def _identity(encoder: Encoder) -> tuple[str | None, int | None]:
    """The file of other people's weights, and the step of ours."""
    return encoder.info.get("weights"), encoder.info.get("step")


def _figures(out: Path) -> dict[str, str]:
    names = [name for name, protocol in PROTOCOLS.items() if not protocol.labels]
    return {n: f"figures/{n}.png" for n in names if (out / "figures" / f"{n}.png").exists()}


def _features(material: Material) -> dict[str, Any]:
    """RankMe of the test features, and the number of dimensions it is out of."""
    features = material.test.features
    if "trained" not in features:
        return {}
    rows = philox(material.settings.seed, "rank", 0).permutation(len(material.test.index))
    ranks = {
        kind: round(effective_rank(torch.from_numpy(features[kind][rows[:RANK_ROWS]])), 2)
        for kind in ("untrained", "trained")
        if kind in features
    }
    numbers = {"dimensions": material.encoder.embed_dim, "effective_rank": ranks["trained"]}
    if "untrained" in ranks:
        numbers["effective_rank_untrained"] = ranks["untrained"]
    return {"features": numbers}


def hardware(device: str) -> str:
    """The machine in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"


def results_table(results: dict[str, Any]) -> Table:
    """The numbers for a terminal, in percent."""
    table = Table(title=f"test accuracy on {results['data']}, %", title_justify="left")
    table.add_column("")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for name, protocol in PROTOCOLS.items():
        if name in results and protocol.labels:
            table.add_row(name, *(percent(results[name].get(kind)) for kind in KINDS))
    return table


def percent(value: Any) -> str:
    """0.914 -> "91.4"; with a standard deviation, "91.4 ± 0.6"."""
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"
    return "–" if value is None else f"{100 * value:.1f}"
