"""Every protocol on sources with little in them: an error that names it, or a sensible number."""

import math
import re
import traceback
import warnings
from pathlib import Path

import pytest
import torch

import vitrail
from tests.evals.synthetic_runs import tiny_encoder
from vitrail.data.sources.memory import MemorySource
from vitrail.evals import evaluate as evaluation
from vitrail.evals.registry import PROTOCOLS

QUICK = {
    "pictures": 1,
    "linear": {"draws": 1},
    "linear_sweep": {"last_blocks": 2},
    "finetune": {"epochs": 0, "min_steps": 1, "batch_size": 4},
    "maskcut": {"size": 32},
}


class Unlabelled(MemorySource):
    """A source without labels."""

    def label(self, index):
        return None


class Partly(MemorySource):
    """Labelled, but for its first image."""

    def label(self, index):
        return None if index == 0 else super().label(index)


def source(count, n_classes=3, channels=1, kind=MemorySource):
    pixels = torch.randint(
        256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(count)
    )
    labels = torch.arange(count) % n_classes
    made = kind("few", pixels.to(torch.uint8), labels, list("abc"[:n_classes]), None)
    if kind is Unlabelled:
        made.classes = None
    return made


# the train and test splits, and words of which one is in every error
CASES = {
    "empty": (source(0), source(0), ["none of its 0 images", "none of the images", "empty"]),
    "no test images": (
        source(12),
        source(0),
        ["none of its 0 images", "none of the images", "empty"],
    ),
    "a single class": (source(12, 1), source(6, 1), ["two classes"]),
    "a single image": (source(1), source(1), ["two classes", "fewer than the 10"]),
    "unlabelled": (source(12, kind=Unlabelled), source(6, kind=Unlabelled), ["no label"]),
    "a label missing": (source(12, kind=Partly), source(6), ["have no label"]),
    "a test label missing": (source(40), source(6, kind=Partly), ["have no label"]),
    "labels in test only": (source(12, kind=Unlabelled), source(6), ["no label"]),
    "other channels": (source(12, channels=3), source(6, channels=3), ["channel"]),
}
# and what an error may say besides: what the protocol needs, and these data have not,
LACKED = {"masks": "no masks", "text": "text", "captions": "caption"}
# or how many images it needs
TOO_FEW = re.compile(r"at least \d|fewer than the \d")


def numbers_in(value):
    """All numbers in nested results."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers_in(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers_in(v)]
    return [value] if isinstance(value, int | float) else []


def says_what_is_wrong(error, row, expected):
    """Returns whether an error says what the data lack, or names an option that gives it."""
    words = [*expected, *(LACKED[need] for need in row.needs & LACKED.keys())]
    words += [f"--{group}." for group in row.configs]
    return any(word in str(error) for word in words) or TOO_FEW.search(str(error))


def is_ours(error):
    """Returns whether vitrail itself raised an error, and not a library that it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(vitrail.__file__).parent in Path(frame.f_code.co_filename).parents


def attempt(name, run, out, splits, monkeypatch):
    """(results, None), or (None, the error that a user is told)."""
    monkeypatch.setattr(evaluation, "open_splits", lambda spec, channels: splits)
    try:
        return evaluation.evaluate(run, "few", [name], settings=QUICK, out=out, quiet=True), None
    except ValueError as error:
        return None, error


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "run"
    tiny_encoder("digits", size=8).save(folder)
    return folder


@pytest.mark.filterwarnings("ignore:k = ")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_error_that_names_it_or_a_sensible_number(name, case, run, tmp_path, monkeypatch):
    row, (*splits, expected) = PROTOCOLS[name], CASES[case]
    results, error = attempt(name, run, tmp_path / "few", splits, monkeypatch)
    if error is not None:
        assert says_what_is_wrong(error, row, expected), error
        assert is_ours(error), error
        return
    assert case not in ("empty", "no test images", "other channels")
    if "labels" in row.needs:
        if "label" in case:  # only a training label that it does not ask for may be missing
            assert case == "a label missing"
            whole, _ = attempt(name, run, tmp_path / "whole", (source(12), splits[1]), monkeypatch)
            assert results.get(name) == whole.get(name)
        found = numbers_in({k: v for k, v in results.get(name, {}).items() if k != "chosen"})
        assert not row.accuracies or all(0 <= number <= 1 for number in found)
        assert found or results["figures"] == {name: f"figures/{name}.png"}
    assert all(math.isfinite(number) for number in numbers_in(results))


def test_a_single_class_is_known_to_knn(run, tmp_path, monkeypatch):
    train, test, _ = CASES["a single class"]
    monkeypatch.setattr(evaluation, "open_splits", lambda spec, channels: (train, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = evaluation.evaluate(run, "few", ["knn"], out=tmp_path, quiet=True)
    assert results["knn"] == {"raw": 1.0, "untrained": 1.0, "trained": 1.0}
