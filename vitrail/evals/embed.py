"""The command `vitrail embed`: writes the features of a source to a file for other tools."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from vitrail.atomic import replacing
from vitrail.config import printable
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.registry import open_source
from vitrail.data.views.preparation import Preparation
from vitrail.encoder import Encoder
from vitrail.evals.features import features
from vitrail.evals.splits import bad_file_limit, bad_file_summary


def embed(
    path: str | Path,
    out: str | Path,
    data: str | None = None,
    split: Literal["train", "test"] = "train",
    device: str = "cpu",
    workers: int = 0,
    max_bad_fraction: float | None = None,
    preparation: Preparation | None = None,
) -> Path:
    """Writes the features of all readable images of a source, and prints the unreadable ones.

    Args:
        path: a run's folder or an encoder.safetensors.
        out: FILE.npz with arrays `features` float32 [N, D], `labels` int64 [N] (-1 for none) and
            `ids` str [N]; or FILE.parquet with these as columns.
        data: a source SPEC; None for the run's own.
        split: split of the source.
        device: torch device of the encoder.
        workers: processes that decode images; 0 decodes in this one.
        max_bad_fraction: share of the files, in [0, 1], above which unreadable files are an error;
            None for the run's own.
        preparation: changes to how images are prepared, for weights that do not say it.

    Raises:
        ValueError: another suffix, a missing extra, nothing to embed, or too many bad files.
    """
    out = Path(out)
    if out.suffix not in (".npz", ".parquet"):
        raise ValueError(f"--out {out}: the suffix must be .npz or .parquet")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:  # checked before hours of work
        raise ValueError(f"--out {out} needs pyarrow: pip install 'vitrail[parquet]'")
    encoder = Encoder.load(path, device, preparation)
    spec = data or encoder.info.get("data")
    if spec is None:
        raise ValueError(f"{path} does not say what it was trained on; name the data with --data")
    source = open_source(spec, split, channels=encoder.channels)
    quarantine = Quarantine(None, len(source), bad_file_limit(Path(path), max_bad_fraction))
    embedded, labels, ids = features(encoder, source, quarantine, workers=workers)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as written:
        if out.suffix == ".npz":
            with open(written, "wb") as file:
                np.savez(file, features=embedded, labels=labels, ids=np.array(ids))
        else:
            _write_parquet(written, embedded, labels, ids)
    if quarantine.entries:
        Console().print(
            printable(bad_file_summary(split, quarantine)),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return out


def _write_parquet(out: Path, embedded: np.ndarray, labels: np.ndarray, ids: list[str]) -> None:
    import pyarrow as pa  # lazy import: pyarrow is an optional dependency
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(embedded.ravel()), embedded.shape[1])
    pq.write_table(pa.table({"features": rows, "labels": labels, "ids": ids}), out)
