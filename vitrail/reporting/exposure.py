"""Sentences of a page on test images that took part in training, and on what was left out."""

from typing import Any

from vitrail.evals.seen.training import stages
from vitrail.evals.seen.words import exposure_lines, is_no_test
from vitrail.reporting.facts import visible
from vitrail.reporting.rows import as_dict, transfer
from vitrail.reporting.run_files import RunFiles


def exposure(files: RunFiles) -> list[str]:
    """Returns sentences on every source that a run was measured on; none if all is a test."""
    evaluation = known_exposure(files)
    by_source = transfer(evaluation) or {str(evaluation.get("data", "its data")): evaluation}
    lines = [line for spec, facts in by_source.items() for line in exposure_lines(facts, spec)]
    for spec, facts in by_source.items():
        for name, reason in as_dict(facts.get("left_out")).items():
            lines.append(f"{name} could not be measured on {spec}: {reason}")
    return [visible(line, 600) for line in lines]


def known_exposure(files: RunFiles) -> dict[str, Any]:
    """Returns the evaluation, with what an older one does not say of the images held out."""
    evaluation = files.evaluation
    if "seen_in_training" in evaluation or not evaluation.get("held_out"):
        return evaluation
    data = evaluation.get("data")
    used = [stage.used for stage in stages(files.description) if stage.data == data]
    if not used:
        return evaluation
    most = next(name for name in ("labels", "captions", "images") if name in used)
    seen = {"with": most, "data": data, "images": evaluation.get("n_test")}
    return evaluation | {"seen_in_training": seen}


def test_words(files: RunFiles) -> str:
    """Returns what the images are that accuracies are measured on."""
    evaluation = known_exposure(files)
    if is_no_test(evaluation):
        return "images that were trained on with their labels, which is not a test"
    if evaluation.get("held_out"):
        return "test images, a fifth of the data (they may have been seen in training, unlabelled)"
    return "test images that took no part in training"
