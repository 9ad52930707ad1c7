"""Shards under the loader: the same batches with any workers, and after any resume."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import MultiCrop

PLAN = MultiCrop(global_size=12, local_size=8, n_local=1).plan()  # one small view an image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_wds(root: Path) -> str:
    for shard in range(10):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for i in range(5):
                data = encoded(5 * shard + i) if (shard, i) != (3, 2) else b"broken"
                for suffix, content in (("png", data), ("cls", b"%d" % (i % 2))):
                    info = tarfile.TarInfo(f"{i}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"wds:{root}"


def as_parquet(root: Path) -> str:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the parquet extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    data = [encoded(i) if i != 17 else b"broken" for i in range(50)]
    table = pyarrow.table({"image": data, "label": [i % 2 for i in range(50)]})
    parquet.write_table(table, root / "a.parquet", row_group_size=5)
    return f"parquet:{root}"


def stream(spec: str, start: int, stop: int, world: int = 1, workers: int = 0):
    """Returns the indices and the views of the global batch of every step."""
    source = open_source(spec)
    ranks = [
        Loader(
            source,
            PLAN,
            batch_size=12,
            seed=5,
            device="cpu",
            rank=rank,
            world=world,
            workers=workers,
            quarantine=Quarantine(None, len(source)),
        )
        for rank in range(world)
    ]
    steps = zip(*(list(loader.steps(start, stop)) for loader in ranks), strict=True)
    batches = [[batch for slices in step for batch in slices] for step in steps]
    return [
        (
            torch.cat([batch.index for batch in step]).tolist(),
            torch.cat([batch.label for batch in step]).tolist(),
            torch.cat([batch.views[1] for batch in step]),
        )
        for step in batches
    ]


def alike(some, others) -> bool:
    return all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("write", [as_wds, as_parquet])
def test_batches_do_not_depend_on_who_reads(tmp_path, write):
    spec = write(tmp_path)
    whole = stream(spec, 0, 9)
    assert alike(stream(spec, 4, 9), whole[4:]), "resumed"
    assert alike(stream(spec, 3, 6, world=3), whole[3:6]), "on another number of ranks"
    assert alike(stream(spec, 0, 4, workers=2), whole[:4]), "read by other processes"
    seen = [index for indices, _, _ in whole for index in indices]
    assert 17 not in seen
    assert set(range(50)) - {17} == set(seen[:50]) - {17}
    labels = [label for _, labels, _ in whole for label in labels]
    assert labels == [(index % 5 if write is as_wds else index) % 2 for index in seen]
