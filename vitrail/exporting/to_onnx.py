"""Exports a backbone as an ONNX graph for images of one size, in batches of any number.

Shape legend: B images · C channels · S height and width in pixels · H×W patches · D features.
"""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone

# Protobuf's limit is 2 GB for a file: above this, weights are in FILE.data beside it.
LIMIT = 1_900_000_000

# Features differ by rounding only: more than this, relative to the largest, is an error.
TOLERANCE = 1e-3


class Graph(nn.Module):
    """The exported map: images to (features [B, D], patches [B, H, W, D]), or features only."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        out = self.backbone(images)
        return (out.pooled,) if out.patches is None else (out.pooled, out.patches)


def write_onnx(backbone: Backbone, path: Path, about: dict[str, str]) -> float:
    """Writes a graph for images [B, C, S, S] of the backbone's `img_size`, and runs it.

    Input "images": float32, prepared as in the encoder's description. Outputs: "features" [B, D]
    and, if the backbone has them, "patches" [B, H, W, D].

    Args:
        backbone: in evaluation mode, on the CPU.
        path: the file; a model above 2 GB has its weights beside it in PATH.data.
        about: metadata to store in the file.

    Returns:
        The largest absolute difference between onnxruntime's outputs and the backbone's.

    Raises:
        ValueError: the packages of the extra "onnx" are missing, or the outputs differ.
    """
    _require_packages()
    graph = Graph(backbone).eval()
    with torch.no_grad():
        program = _export(graph, _images(backbone, 2))
        program.model.metadata_props.update(about)
        size = sum(p.numel() * p.element_size() for p in backbone.parameters())
        program.save(path, external_data=size > LIMIT)
        images = _images(backbone, 3)  # another number than the graph was made with
        ours, theirs = graph(images), run_onnx(path, images)
    worst = 0.0
    for name, mine, other in zip(_names(ours), ours, theirs, strict=True):
        off = float((mine - other).abs().max())
        worst = max(worst, off)
        if not off <= TOLERANCE * max(1.0, float(mine.abs().max())):
            raise ValueError(
                f"ONNX: {name} of onnxruntime differ from vitrail's by up to {off:.1e}; nothing "
                "was written. Try other versions of onnxscript and onnxruntime"
            )
    return worst


def run_onnx(path: Path, images: Float[Tensor, "B C S S"]) -> list[Tensor]:
    """Returns the outputs of a graph in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]


def _export(graph: Graph, images: Tensor) -> Any:
    with quiet():
        # strict: otherwise tracing makes a constant of len(images)
        traced = torch.export.export(
            graph, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=["images"],
            output_names=_names(graph(images)),
            verbose=False,
        )
    assert program is not None
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the exporter's warnings about its own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _names(outputs: tuple[Tensor, ...]) -> list[str]:
    return ["features", "patches"][: len(outputs)]


def _images(backbone: Backbone, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    size = backbone.img_size
    return torch.randn(count, backbone.in_chans, size, size, generator=generator)


def _require_packages() -> None:
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"--format onnx needs a package that is missing ({error}): pip install 'vitrail[onnx]'"
        ) from error
