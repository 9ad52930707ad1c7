"""Batches are a pure function of the step, whichever workers and ranks make them."""

import errno
import gc
import multiprocessing
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.contract import Batch
from vitrail.data.decode import image as decode
from vitrail.data.loading import loader as loader_module
from vitrail.data.loading.loader import Loader, read_images
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import MultiCrop, RandomResizedCrop

PLAN = MultiCrop(global_size=12, local_size=8, n_local=1).plan()
GREY_PLAN = MultiCrop(
    global_size=12,
    local_size=8,
    n_local=2,
    jitter=0,
    grey=0,
    mean=(0.5,),
    std=(0.5,),
).plan()


@pytest.fixture
def folder(tmp_path):
    """Twenty images of mixed sizes in two classes."""
    root = tmp_path / "images"
    for i in range(20):
        generator = np.random.default_rng(i)
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (10 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def spoil(folder) -> set[str]:
    (folder / "a" / "04.png").write_bytes(b"")
    (folder / "b" / "07.png").write_text("no image")
    whole = (folder / "a" / "18.png").read_bytes()
    (folder / "a" / "18.png").write_bytes(whole[: len(whole) // 2])
    return {"a/04.png", "b/07.png", "a/18.png"}


def loader_of(source, plan=PLAN, path=None, fraction=0.5, **kwargs) -> Loader:
    quarantine = Quarantine(path, len(source), fraction)
    defaults = {"batch_size": 8, "seed": 5, "device": "cpu", "quarantine": quarantine}
    return Loader(source, plan, **(defaults | kwargs))


def of_folder(folder, **kwargs) -> Loader:
    return loader_of(open_source(f"folder:{folder}"), **kwargs)


def run(loader: Loader, start: int, stop: int) -> list[Batch]:
    return [batch for batches in loader.steps(start, stop) for batch in batches]


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.index, y.index)
        assert torch.equal(x.label, y.label)
        assert x.draws == y.draws
        for view, other in zip(x.views, y.views, strict=True):
            assert torch.equal(view, other)


def joined(batches: list[Batch], resolution: int) -> torch.Tensor:
    """Returns the views of slices of one global batch, as [V, G, ...]."""
    views = [b.views[resolution].unflatten(0, (-1, b.size)) for b in batches]
    return torch.cat(views, dim=1)


def test_batches_of_a_source_in_memory():
    source = open_source("digits")
    [[batch]] = loader_of(source, GREY_PLAN).steps(3, 4)
    assert [tuple(v.shape) for v in batch.views] == [(16, 1, 12, 12), (16, 1, 8, 8)]
    assert batch.views[0].dtype == torch.float32
    assert batch.label.tolist() == [source.label(i) for i in batch.index.tolist()]
    assert (batch.draws.step, batch.draws.start, batch.draws.count) == (3, 0, 8)


def test_batches_of_a_folder(folder):
    source = open_source(f"folder:{folder}")
    batches = run(loader_of(source), 0, 5)
    assert [b.size for b in batches] == [8] * 5
    index = torch.cat([b.index for b in batches])
    assert index[:20].sort().values.tolist() == list(range(20)), "an epoch is the whole folder"
    assert all(
        source.label(i) == label
        for b in batches
        for i, label in zip(b.index.tolist(), b.label.tolist(), strict=True)
    )


def test_unlabelled_is_minus_one(folder):
    source = open_source(f"folder:{folder}/a")
    assert run(loader_of(source), 0, 1)[0].label.tolist() == [-1] * 8


def test_view_pixels_are_the_indexed_images(folder):
    """A box of the whole image at its own size is the image: rows are not mixed up."""
    for i in range(20):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        Image.new("RGB", (16, 16), (i * 12, 255 - i * 12, i)).save(path)
    plan = RandomResizedCrop(8, (0.5, 1.0), mean=(0.0,) * 3, std=(1.0,) * 3).plan()
    source = open_source(f"folder:{folder}")
    for batch in run(loader_of(source, plan), 0, 3):
        for view, index in zip(batch.views[0], batch.index.tolist(), strict=True):
            i = int(source.id(index)[2:4])
            expected = torch.tensor([i * 12, 255 - i * 12, i]) / 255
            torch.testing.assert_close(view.mean((1, 2)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_batches_are_the_uninterrupted_ones(folder, workers):
    spoil(folder)
    whole = run(of_folder(folder, workers=workers), 0, 6)
    assert_same(run(of_folder(folder, workers=workers), 4, 6), whole[4:])


def test_workers_change_nothing(folder):
    spoil(folder)
    assert_same(run(of_folder(folder, workers=2), 0, 6), run(of_folder(folder), 0, 6))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_chunk_size_changes_nothing(folder, monkeypatch, chunk, workers):
    """Up to the last bits of float32 sums, at small sizes: 2.5e-6 of normalised pixels."""
    spoil(folder)
    whole = run(of_folder(folder, accumulate=2, batch_size=14), 0, 4)  # a chunk holds a slice
    monkeypatch.setattr(loader_module, "CHUNK", chunk)
    chunked = run(of_folder(folder, accumulate=2, batch_size=14, workers=workers), 0, 4)
    for a, b in zip(chunked, whole, strict=True):
        assert torch.equal(a.index, b.index)
        assert a.draws == b.draws
        for view, other in zip(a.views, b.views, strict=True):
            torch.testing.assert_close(view, other, atol=5e-6, rtol=0)


@pytest.mark.parametrize("chunk", [None, 3])
def test_few_decoded_images_are_held_at_once(folder, monkeypatch, chunk):
    if chunk:
        monkeypatch.setattr(loader_module, "CHUNK", chunk)
    chunk = loader_module.CHUNK
    held, original = [], loader_module.ViewsOfBatch.add
    living = weakref.WeakSet()
    monkeypatch.setattr(
        loader_module.ViewsOfBatch,
        "add",
        lambda self, images, *args: (held.append(len(images)), original(self, images, *args))[1],
    )
    source = open_source(f"folder:{folder}")
    read = type(source).read
    most = 0

    def counted(*args):
        nonlocal most
        sample = read(source, *args)
        living.add(sample)
        most = max(most, len(living))
        return sample

    source.read = counted
    [batch] = run(loader_of(source, batch_size=40), 0, 1)
    assert batch.size == sum(held) == 40
    assert max(held) == chunk
    assert most <= chunk


@pytest.mark.parametrize("in_memory", [True, False])
def test_ranks_and_slices_are_the_whole(folder, in_memory):
    spoil(folder)
    source = open_source("digits" if in_memory else f"folder:{folder}")
    plan = GREY_PLAN if in_memory else PLAN
    whole = run(loader_of(source, plan), 0, 3)
    for world, accumulate in ((2, 1), (1, 4), (2, 2)):
        loaders = [
            loader_of(source, plan, rank=rank, world=world, accumulate=accumulate)
            for rank in range(world)
        ]
        for step, *of_ranks in zip(
            range(3), *(loader.steps(0, 3) for loader in loaders), strict=True
        ):
            parts = [batch for batches in of_ranks for batch in batches]
            assert [p.draws.start for p in parts] == list(range(0, 8, 8 // (world * accumulate)))
            assert torch.equal(torch.cat([p.index for p in parts]), whole[step].index)
            for resolution in range(2):
                torch.testing.assert_close(
                    joined(parts, resolution), joined([whole[step]], resolution), atol=1e-5, rtol=0
                )


def test_bad_samples_are_quarantined_and_replaced(folder, tmp_path):
    bad = spoil(folder)
    path = tmp_path / "quarantine.jsonl"
    source = open_source(f"folder:{folder}")
    loader = loader_of(source, path=path)
    batches = run(loader, 0, 5)
    assert all(b.size == 8 for b in batches), "batches stay full"
    assert set(Quarantine(path, 20).entries) == bad
    seen = {source.id(i) for b in batches for i in b.index.tolist()}
    assert not seen & bad
    assert len(seen) == 17
    # A resumed run knows them, does not decode them again, and gives the same batches.
    reads = []
    original = type(source).read
    source.read = lambda i, *detail: reads.append(source.id(i)) or original(source, i, *detail)
    assert_same(run(loader_of(source, path=path), 2, 5), batches[2:])
    assert not set(reads) & bad


def test_quarantine_of_workers_reaches_the_file(folder, tmp_path):
    bad = spoil(folder)
    path = tmp_path / "quarantine.jsonl"
    run(of_folder(folder, path=path, workers=2), 0, 5)
    assert set(Quarantine(path, 20).entries) == bad
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_folder_stops_with_a_clear_error(folder, workers):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"of 20 samples cannot be used"):
        run(of_folder(folder, workers=workers), 0, 5)
    with pytest.raises(ValueError, match=r"64 samples in a row could not be read at step 0; 20 of"):
        run(of_folder(folder, workers=workers, fraction=1.0), 0, 5)
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.timeout(60)
def test_closing_early_leaves_no_workers(folder):
    steps = of_folder(folder, workers=2).steps(0, 1000)
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    steps.close()
    assert not multiprocessing.active_children()


def test_workers_live_through_all_epochs(folder):
    steps = of_folder(folder, workers=2).steps(0, 12)
    seen = set()
    for _ in steps:  # five epochs of twenty images
        seen |= {child.pid for child in multiprocessing.active_children()}
    assert len(seen) == 2


def test_other_errors_of_workers_stay_what_they_are(folder):
    source = open_source(f"folder:{folder}")

    def failing(*_):
        raise RuntimeError("of the source")

    source.read = failing
    with pytest.raises(RuntimeError, match="of the source"):
        run(loader_of(source, workers=1), 0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_disk_stops_and_quarantines_nothing(folder, tmp_path, monkeypatch, workers):
    def failing(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(decode, "open", failing, raising=False)
    path = tmp_path / "quarantine.jsonl"
    with pytest.raises(OSError, match=r"Input/output error.*\.png"):
        run(of_folder(folder, path=path, workers=workers), 0, 1)
    assert not path.exists()


def test_torchs_random_state_is_left_alone(folder):
    before = torch.get_rng_state()
    run(of_folder(folder, workers=1), 0, 1)
    run(loader_of(open_source("digits"), GREY_PLAN), 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_source_smaller_than_the_batch(tmp_path):
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "one.png")
    [batch] = run(of_folder(tmp_path), 7, 8)
    assert batch.index.tolist() == [0] * 8
    assert batch.views[0].isfinite().all()


def test_refuses_what_does_not_fit(folder):
    source = open_source(f"folder:{folder}")
    with pytest.raises(ValueError, match=r"batch_size is 8.*multiple of 3 ranks x 1"):
        loader_of(source, world=3)
    with pytest.raises(ValueError, match=r"batch_size is 8.*2 ranks x 3 accumulation"):
        loader_of(source, world=2, accumulate=3)
    with pytest.raises(ValueError, match="batch_size is 0"):
        loader_of(source, batch_size=0)
    with pytest.raises(
        ValueError,
        match=r"mean has 1 values, but images of folder:.* 3 channels.*`vitrail stats folder:",
    ):
        loader_of(source, GREY_PLAN)
    with pytest.raises(ValueError, match="workers is -1"):
        loader_of(source, workers=-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_read_images_of_a_folder(folder, tmp_path, workers):
    bad = spoil(folder)
    source = open_source(f"folder:{folder}")
    path = tmp_path / "quarantine.jsonl"
    for _ in range(2):  # the second time with a list that knows the bad ones
        indices, images = [], []
        for some, their_images in read_images(source, Quarantine(path, 20), workers):
            indices += some
            images += their_images
        assert [source.id(i) for i in indices] == sorted({source.id(i) for i in range(20)} - bad)
        for index, image in zip(indices, images, strict=True):
            assert torch.equal(image, source.read(index).image)
    assert len(path.read_text().splitlines()) == 3


def test_read_images_in_memory():
    source = open_source("digits", "test")
    chunks = list(read_images(source, Quarantine(None, 500), 0))
    assert [index for indices, _ in chunks for index in indices] == list(range(500))
    assert torch.equal(torch.stack([i for _, some in chunks for i in some]), source.pixels())


def test_read_images_of_nothing_readable(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="of 20 samples cannot be used"):
        list(read_images(open_source(f"folder:{folder}"), Quarantine(None, 20), 0))
