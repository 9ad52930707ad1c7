"""The whole loop on a CUDA device: compiled, in bf16, stopped and resumed."""

import json

import pytest
import torch

from tests.train import runs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("objective", ["simdino", "dino"])
def test_trains_and_resumes_on_cuda(tmp_path, objective):
    from vitrail import api

    run = tmp_path / "run"
    recipe = runs.tiny_recipe(objective, device="cuda", precision="bf16", compile="on")
    api.start(recipe, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == runs.STEPS
    for checkpoint in sorted((run / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    api.resume(run)
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in rows], abs=1e-3)


def test_a_step_on_cuda_has_the_loss_of_the_cpu(tmp_path):
    from vitrail import api

    for device in ("cpu", "cuda"):
        api.start(runs.tiny_recipe("simdino", device=device, compile="off"), tmp_path / device)
    losses = [
        json.loads((tmp_path / device / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for device in ("cpu", "cuda")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_features_on_cuda_are_those_of_the_cpu(tmp_path):
    from vitrail import api
    from vitrail.data.sources.registry import open_source

    run = tmp_path / "run"
    api.start(runs.tiny_recipe("dino", device="cuda"), run)
    images = open_source("digits:scattered").pixels()[:32]
    on_cpu, on_cuda = (api.load(run, device).transform(images) for device in ("cpu", "cuda"))
    assert torch.allclose(torch.tensor(on_cpu), torch.tensor(on_cuda), atol=1e-4)
