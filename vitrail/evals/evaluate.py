"""How good is the representation? Raw pixels, untrained and trained encoder, side by side."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vitrail.atomic import write_atomically
from vitrail.backbones.contract import TokenBackbone
from vitrail.data.contract import Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import DESCRIPTION, WEIGHTS, Encoder
from vitrail.evals.contract import KINDS, Material, Settings, Split
from vitrail.evals.features import Embed, collect, raw_pixels, raw_side
from vitrail.evals.rank import rank_numbers
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.reuse import earlier, identity, kept, plain
from vitrail.evals.splits import allowed, counts, open_splits, sentence
from vitrail.evals.tables import accuracy_names, rank_line, results_table, transfer_table
from vitrail.text_encoder import TextEncoder, has_text

OF_WORDS = {"zeroshot", "retrieval"}  # protocols of encoders with a text side
OF_TOKENS = {"saliency", "pca", "parts", "jaccard"}


@dataclass(frozen=True)
class _Bench:
    """What all sources of one call are measured with. named: the protocols asked for."""

    encoder: Encoder
    text: TextEncoder | None
    named: Sequence[str] | None
    settings: Settings
    figures: Path
    device: str
    workers: int
    max_bad_fraction: float
    console: Console

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def evaluate(
    path: str | Path,
    data: str | Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    device: str = "cpu",
    workers: int = 0,
    max_bad_fraction: float | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates a run, writes evaluation.json and figures/ into it, and prints a table.

    Accuracies are fractions in [0, 1] on the test split, for "raw" (the preprocessed pixels),
    "untrained" (the same architecture, the run's initial weights) and "trained"; what `xray` gives
    is described there. Results of other protocols on the same data, weights and settings are kept.

    Args:
        path: a run folder, or an encoder.safetensors with its encoder.json.
        data: a source SPEC; the run's own where not given. Without a test split, a fifth is held
            out. Or several: the first is measured as one alone is, and the accuracies of the others
            go to "transfer" in evaluation.json, by SPEC.
        protocols: keys of PROTOCOLS; where not given, all that the data and the backbone allow, but
            for the optional ones.
        out: the folder to write to; the run's where not given, or PATH.evaluation for other
            people's weights.
        max_bad_fraction: of each split's files; more that cannot be read are an error. As the run
            has it, where not given. Fewer are left out, and counted under "bad".

    Returns:
        what evaluation.json holds.

    Raises:
        ValueError: a path, SPEC or protocol that does not fit, labels where there are none, and too
            many bad files.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    require_known(protocols)
    encoder = Encoder.load(path, device)
    out = Path(out) if out is not None else _home(Path(path))
    console = Console(quiet=quiet, stderr=False)
    text = _text_side(Path(path), encoder, protocols, device)
    bad = allowed(Path(path), max_bad_fraction)
    figures = out / "figures"
    bench = _Bench(encoder, text, protocols, settings, figures, device, workers, bad, console)
    first, *others = _specs(path, data, encoder)
    splits = {spec: open_splits(spec, encoder.channels) for spec in (first, *others)}
    for spec in others:
        require_labels(splits[spec][0], ["--data with several sources"])
    before = earlier(out / "evaluation.json", encoder, settings)
    fresh, facts = _measure(bench, *splits[first], transfer=False)
    results = kept(before, first) | fresh
    results["figures"] = _figures(out)
    results |= facts | {"data": first}
    transfer = before.get("transfer", {})
    for spec in others:
        numbers, facts = _measure(bench, *splits[spec], transfer=True)
        transfer[spec] = transfer.get(spec, {}) | numbers | facts
    results |= {
        "weights": identity(encoder)[0],
        "step": identity(encoder)[1],
        "settings": plain(settings),
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
        bench.say(rank_line(results["features"]))
    for name, numbers in fresh.items():
        if table := PROTOCOLS[name].table:
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
    """(results of protocols, facts about data and features) of one source."""
    encoder = bench.encoder
    names, notes = _choose(bench, train)
    if transfer:
        names = [name for name in names if PROTOCOLS[name].labels and PROTOCOLS[name].numbers]
    for note in [] if transfer else notes:
        bench.say(note)
    numeric = any(PROTOCOLS[name].labels or PROTOCOLS[name].compares for name in names)
    whole = any(PROTOCOLS[name].features for name in names)
    kinds = KINDS if numeric else KINDS[-1:]
    embeds = _embeds(encoder, kinds, len(train) + len(test)) if whole else {}
    material = Material(
        encoder=encoder,
        train=_split(train, encoder.preprocess, embeds, bench),
        test=_split(test, encoder.preprocess, embeds, bench),
        settings=bench.settings,
        figures=bench.figures,
        device=bench.device,
        workers=bench.workers,
        text=bench.text,
    )
    facts: dict[str, Any] = {}
    if whole:
        facts["features"] = rank_numbers(material.test.features, bench.settings.seed)
    facts |= {
        "metric": material.metric,
        "n_train": len(material.train.index),
        "n_test": len(material.test.index),
        "held_out": isinstance(test, Subset),  # the data have no test split of their own
    }
    results = _run(names, material, explicit=bench.named is not None, bench=bench)
    return results, facts | _left_out(bench, material)


def _left_out(bench: _Bench, material: Material) -> dict[str, Any]:
    """What could not be read by the end, said and counted."""
    bad = {"train": material.train.quarantine, "test": material.test.quarantine}
    for name in counts(bad):
        bench.say(sentence(name, bad[name]))
    return {"bad": counts(bad)} if counts(bad) else {}


def _home(path: Path) -> Path:
    """A run's own folder; for other people's weights one beside them, which may be in a cache."""
    folder = path if path.is_dir() else path.parent
    ours = path.is_dir() or path.name in (WEIGHTS, DESCRIPTION)
    if ours and (folder / DESCRIPTION).exists():
        return folder
    return path.with_name(f"{path.name}.evaluation")


def _text_side(
    path: Path, encoder: Encoder, protocols: Sequence[str] | None, device: str
) -> TextEncoder | None:
    """What is beside the encoder, where a protocol may want it."""
    folder = path if path.is_dir() else path.parent
    wanted = protocols is None or not OF_WORDS.isdisjoint(protocols)
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


def _choose(bench: _Bench, train: Source) -> tuple[list[str], list[str]]:
    """The protocols to run, and why the others are left out."""
    if bench.named is not None:
        require_labels(train, [name for name in bench.named if PROTOCOLS[name].labels])
        return list(dict.fromkeys(bench.named)), []
    names, notes = [name for name, protocol in PROTOCOLS.items() if not protocol.optional], []
    if train.classes is None:
        names = [name for name in names if not PROTOCOLS[name].labels]
        notes.append(f"{train.spec} has no labels: no accuracies")
    if bench.text is None:  # as with most runs: nothing worth a note
        names = [name for name in names if name not in OF_WORDS]
    elif not train.captioned:
        names.remove("retrieval")
    if not train.masked:
        names.remove("jaccard")
    if not isinstance(bench.encoder.backbone, TokenBackbone):
        names = [name for name in names if name not in OF_TOKENS]
        notes.append("the backbone has no tokens: no saliency and no PCA pictures")
    return names, notes


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
    names: Sequence[str], material: Material, *, explicit: bool, bench: _Bench
) -> dict[str, Any]:
    results = {}
    for name in names:
        try:
            result = PROTOCOLS[name].run(material)
        except ValueError as error:
            # Asked for by name, it is an error; otherwise the rest is still worth having.
            if explicit:
                raise
            bench.say(f"{name} is left out: {error}")
            continue
        if result is not None:
            results[name] = result
    return results


def _figures(out: Path) -> dict[str, str]:
    return {n: f"figures/{n}.png" for n in PROTOCOLS if (out / "figures" / f"{n}.png").exists()}


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


def require_labels(train: Source, wanted_by: Sequence[str]) -> None:
    """ValueError, naming those that want them, where the source has none."""
    if wanted_by and train.classes is None:
        others = ", ".join(name for name, protocol in PROTOCOLS.items() if not protocol.labels)
        raise ValueError(
            f"{', '.join(wanted_by)}: {train.spec} has no labels, so there is no accuracy to "
            f"measure; ask for others ({others}), or name labelled data with --data"
        )


def require_known(protocols: Sequence[str] | None) -> None:
    """Raises ValueError for a name that is not in the table, with the nearest one that is."""
    for name in protocols or ():
        if name not in PROTOCOLS:
            near = get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown protocol {name!r}; {hint}There are: {', '.join(PROTOCOLS)}")
