"""The objective's hook before epochs: when it is called, what it gets, and that runs resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train import runs
from vitrail import api
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.order import SampleOrder
from vitrail.data.loading.quarantine import Quarantine
from vitrail.distributed.ranks import Ranks
from vitrail.encoder import Encoder
from vitrail.evals.features import features
from vitrail.objectives.deepcluster import DeepCluster
from vitrail.recipes.recipe import preprocess_of
from vitrail.train import checkpoint, epochs
from vitrail.train.build import assemble

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs for which `before_epoch` is called."""
    seen: list[int] = []
    original = DeepCluster.before_epoch

    def noted(self: DeepCluster, epoch: int, *rest: Any) -> Any:
        seen.append(epoch)
        return original(self, epoch, *rest)

    monkeypatch.setattr(DeepCluster, "before_epoch", noted)
    return seen


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def loader_of(parts: Any, recipe: Any, **ranks: int) -> Loader:
    return Loader(
        parts.feed.source,
        parts.feed.plan,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        device="cpu",
        quarantine=Quarantine(None, len(parts.feed.source)),
        **ranks,
    )


@pytest.mark.parametrize(("every", "again"), [(3, []), (6, [1]), (4, [])])
def test_resumed_within_an_epoch_and_between_two_it_ends_with_the_same_bits(
    tmp_path: Path, turns: list[int], every: int, again: list[int]
) -> None:
    """Checkpoints at 9, 6 and 8 of 12 steps; the second epoch begins before step 6."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs.pretrain("deepcluster", str(whole), {"checkpoint_every": every})
    assert turns == [0, 1]
    turns.clear()
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000012")
    assert checkpoint.list_checkpoints(cut / "checkpoints")
    (cut / "encoder.safetensors").unlink()
    runs.resume(str(cut))
    assert turns == again, "what an epoch begins with is not done again within it"
    runs.assert_equal_bits(runs.final_state(whole), runs.final_state(cut))
    kept = ("step", "loss", "accuracy", "nmi", "grad_norm")
    assert [[row[k] for k in kept] for row in rows_of(whole)] == [
        [row[k] for k in kept] for row in rows_of(cut)
    ]


def test_the_nmi_of_successive_epochs_is_logged(tmp_path: Path) -> None:
    runs.pretrain("deepcluster", str(tmp_path / "run"), {})
    nmi = [row["nmi"] for row in rows_of(tmp_path / "run")]
    assert nmi[:6] == [0] * 6
    assert 0.05 < nmi[6] < 1
    assert nmi[6:] == [nmi[6]] * 6


def test_what_the_optimizer_remembers_of_the_head_is_dropped(tmp_path: Path) -> None:
    """AdamW counts steps for every parameter."""
    run = tmp_path / "run"
    runs.pretrain("deepcluster", str(run), {})
    state = runs.final_state(run)
    parts = assemble(runs.tiny_recipe("deepcluster"), ALONE)
    names = {id(p): name for name, p in parts.objective.named_parameters()}
    ordered = [names[id(p)] for group in parts.optimizer.param_groups for p in group["params"]]
    for position, found in state["optimizer"]["state"].items():
        of_head = ordered[position].startswith("network.head")
        assert int(found["step"]) == (6 if of_head else 12), ordered[position]


def test_the_run_draws_every_cluster_equally_often(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = runs.tiny_recipe("deepcluster", objective={"reassign": 1.0})
    parts = assemble(recipe, ALONE)
    # One cluster has four fifths of the samples, and is not clustered away.
    labels = parts.objective.pseudo_labels
    labels.zero_()
    labels[:280] = torch.arange(280) % 7 + 1
    monkeypatch.setattr(parts.objective, "before_epoch", lambda *_: [])
    parts.feed.begin(tmp_path, 0)
    drawn = [
        parts.objective.groups[batch.index]
        for batches in epochs.batches(parts, recipe.seed, start=0)
        for batch in batches
    ]
    sizes = torch.bincount(parts.objective.groups, minlength=8)
    counts = torch.bincount(torch.cat(drawn), minlength=8)  # 192 of about 1297 samples
    expected = len(drawn) * 16 / 8
    bound = 4 * expected**0.5
    assert (counts - expected).abs().max() < bound
    unbalanced = sizes / sizes.sum() * counts.sum()
    assert (unbalanced - expected).abs().max() > 4 * bound


def test_other_objectives_have_the_loader_s_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = runs.tiny_recipe("dino")
    parts = assemble(recipe, ALONE)
    monkeypatch.setattr(type(parts.objective), "before_epoch", None)  # not even called
    asked = []
    monkeypatch.setattr(parts.feed, "batches", lambda *args: asked.append(args) or iter(()))
    assert list(epochs.batches(parts, recipe.seed, start=2)) == []
    assert asked == [(2, 12)], "one stream: nothing ends with an epoch"


def test_an_objective_without_groups_may_ask_for_the_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its epochs are those of `epoch_at`, and the order of samples stays the ordinary one."""
    recipe = runs.tiny_recipe("dino", steps=9)
    parts = assemble(recipe, ALONE)
    parts.feed.begin(tmp_path, 0)
    expected = [b.index for [b] in epochs.batches(parts, recipe.seed, start=0)]
    before: list[tuple[int, int]] = []
    drawn: list[torch.Tensor] = []

    def hook(epoch: int, seed: int, embed: Any) -> list[torch.nn.Parameter]:
        before.append((epoch, len(drawn)))
        return []

    monkeypatch.setattr(type(parts.objective), "epoch_hook", True)
    monkeypatch.setattr(type(parts.objective), "epoch_length", 50 / 1297)
    monkeypatch.setattr(parts.objective, "before_epoch", hook)
    for [batch] in epochs.batches(parts, recipe.seed, start=0):
        drawn.append(batch.index)
    assert before == [(0, 0), (1, 4), (2, 7)]  # steps of 16 samples, epochs of 50
    assert torch.equal(torch.stack(drawn), torch.stack(expected))
    before.clear()
    drawn.clear()
    drawn.extend(batch.index for [batch] in epochs.batches(parts, recipe.seed, start=5))
    assert [epoch for epoch, _ in before] == [2], "within an epoch the hook is not called again"
    assert torch.equal(torch.stack(drawn), torch.stack(expected[5:]))


def test_the_order_of_samples_is_what_it_always_was() -> None:
    order = SampleOrder(100, 8, 7)
    assert order.indices(0).tolist() == FIRST
    assert order.indices(12).tolist() == STRADDLING


# Of commit 8921f84, before there were groups.
FIRST = [3, 83, 65, 69, 43, 6, 93, 91]
STRADDLING = [16, 22, 86, 30, 94, 72, 85, 20]


def test_features_are_those_of_the_exported_encoder(tmp_path: Path) -> None:
    recipe = runs.tiny_recipe("deepcluster")
    parts = assemble(recipe, ALONE)
    parts.objective.train()
    parts.feed.begin(tmp_path, 0)
    found = parts.feed.embed_all()
    encoder = Encoder(parts.objective.encoder, preprocess_of(recipe, parts.feed.plan), {})
    expected, _, _ = features(encoder, parts.feed.source)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-6, rtol=1e-6)
    assert parts.objective.encoder.training, "the mode that it was in comes back"
    assert not found.requires_grad


def test_ranks_share_the_images_in_turn() -> None:
    recipe = runs.tiny_recipe("deepcluster")
    parts = assemble(recipe, ALONE)
    shares = [
        [index for index, _ in loader_of(parts, recipe, rank=r, world=2).every_image(256)]
        for r in range(2)
    ]
    assert [len(share) for share in shares] == [3, 3]
    assert sorted(i for share in shares for index in share for i in index) == list(range(1297))
    assert shares[1][0] == list(range(256, 512))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(40):
        image = random.integers(0, 256, (18, 20), dtype=np.uint8)
        Image.fromarray(image).save(root / f"{i:02}.png")
    for i in (3, 22):
        (root / f"{i:02}.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_cannot_be_read_have_no_pseudo_label_and_are_never_drawn(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    changes = {"n_clusters": 5, "reassign": 1.0}
    recipe = runs.tiny_recipe(
        "deepcluster", data=f"folder:{folder}", workers=workers, objective=changes
    )
    run = api.start(recipe, tmp_path / "run")
    labels = runs.final_state(run)["objective"]["pseudo_labels"]
    assert (labels == -1).nonzero().flatten().tolist() == [3, 22]
    named = [json.loads(line)["id"] for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(named) == ["03.png", "22.png"]
    assert all(np.isfinite(row["loss"]) for row in rows_of(run))


def test_shares_of_files_are_whole_blocks(folder: Path) -> None:
    recipe = runs.tiny_recipe("deepcluster", data=f"folder:{folder}", objective={"n_clusters": 5})
    parts = assemble(recipe, ALONE)
    shares = [
        [i for index, _ in loader_of(parts, recipe, rank=r, world=2).every_image(16) for i in index]
        for r in range(2)
    ]
    assert shares[1] == [i for i in range(16, 32) if i != 22]
    assert shares[0] == [i for i in range(40) if i != 3 and not 16 <= i < 32]


def test_an_epoch_shorter_than_a_step_clusters_before_every_step(
    tmp_path: Path, turns: list[int]
) -> None:
    changes = {"steps": 3, "objective": {"reassign": 0.005}}  # 6 samples
    runs.pretrain("deepcluster", str(tmp_path / "run"), changes)
    assert turns == [0, 2, 5]
