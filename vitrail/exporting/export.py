"""Writes a trained encoder in other people's formats: `vitrail export`.

An export is complete or absent: it is made in a hidden folder beside its place, checked, flushed to
the disk, and then renamed.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from vitrail.atomic import sync_path
from vitrail.backbones.skeleton import change_size
from vitrail.data.views.preparation import Preparation
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.exporting.to_hf import hf_form
from vitrail.exporting.to_onnx import write_onnx
from vitrail.exporting.to_timm import timm_form

Format = Literal["timm", "hf", "onnx", "safetensors"]


def export(
    path: str | Path,
    format: Format,
    out: str | Path | None = None,
    img_size: int | None = None,
    preparation: Preparation | None = None,
) -> str:
    """Writes an encoder in another format.

    timm and hf make folders, with the weights in model.safetensors; onnx a file; safetensors a
    folder that is vitrail's own. See docs/interop.md.

    Args:
        path: a run, an encoder or weights, as for `vitrail.load`.
        format: format to write.
        out: where to write; by default RUN/export/timm, .../hf, .../encoder.onnx, .../safetensors.
        img_size: side of the images in pixels, instead of that of the encoder's preprocessing.
            Learned positions are resampled.
        preparation: changes to how images are prepared, for weights that do not say it.

    Returns:
        One line: the path, and code that loads it.

    Raises:
        ValueError: an unknown format, something at `out`, an architecture that the format cannot
            hold, or a missing package.
    """
    if format not in WRITERS:
        raise ValueError(f"format is {format!r}; known: {', '.join(WRITERS)}")
    out = _default_out(Path(path), format) if out is None else Path(out)
    if out.exists():
        raise ValueError(f"{out} exists; move it away, or give another place with --out")
    encoder = Encoder.load(path, preparation=preparation)
    encoder.backbone.eval()
    if img_size is not None or format != "safetensors":
        encoder = at_size(encoder, encoder.preprocess.size if img_size is None else img_size)
    with torch.no_grad(), beside(out) as staged:
        how = WRITERS[format](encoder, staged, out)
    return f"{out}: {how}"


def at_size(encoder: Encoder, img_size: int) -> Encoder:
    """Returns the encoder for images of another size; its backbone is changed in place.

    Raises:
        ValueError: a size that the patch does not divide.
    """
    change_size(encoder.backbone, img_size)
    before = encoder.preprocess
    resize = round(before.resize * img_size / before.size)
    preprocess = replace(before, size=img_size, resize=resize)
    stale = ("backbone", "kwargs", "preprocess")
    info = {key: value for key, value in encoder.info.items() if key not in stale}
    return Encoder(encoder.backbone, preprocess, info)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Gives a hidden place beside `out` for a file or a folder, which then becomes `out`.

    Other files in the hidden folder (ONNX's .data) are moved along.
    """
    hidden = out.parent / f".{out.name}.writing"
    shutil.rmtree(hidden, ignore_errors=True)  # of an export that was killed
    is_new = not out.parent.exists()
    hidden.mkdir(parents=True)
    try:
        staged = hidden / out.name
        yield staged
        for written in hidden.rglob("*"):
            sync_path(written)
        others = [file for file in hidden.iterdir() if file != staged]
        for file in [*others, staged]:  # `out` last: it needs the others
            os.rename(file, out.parent / file.name)
        sync_path(out.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if is_new and not out.exists():
            with suppress(OSError):  # not empty
                out.parent.rmdir()


def _timm(encoder: Encoder, staged: Path, out: Path) -> str:
    form = timm_form(encoder.backbone)
    pretrained_cfg = _timm_preprocess(encoder.preprocess, encoder.channels) | form.about
    call = form.call(checkpoint_path=str(out / "model.safetensors"))
    config = {
        "architecture": form.name,
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "model_args": form.arguments,
        "pretrained_cfg": pretrained_cfg,
        "create_model": call,
        "vitrail": encoder.description(),
    }
    _write_folder(staged, form.weights, {"config.json": config})
    return f"import vitrail.interop.timm_zoo; {call}" if form.is_ours else call


def _hf(encoder: Encoder, staged: Path, out: Path) -> str:
    form = hf_form(encoder.backbone)
    config = form.config | {"dtype": "float32", "vitrail": encoder.description()}
    preprocess = _hf_preprocess(encoder.preprocess, encoder.channels)
    files = {"config.json": config, "preprocessor_config.json": preprocess}
    _write_folder(staged, form.weights, files)
    more = ", add_pooling_layer=False" if form.model == "ViTModel" else ""
    return f"transformers.{form.model}.from_pretrained({str(out)!r}{more})"


def _onnx(encoder: Encoder, staged: Path, out: Path) -> str:
    if out.suffix != ".onnx":
        raise ValueError(f"--out {out}: the name of an ONNX file ends in .onnx")
    off = write_onnx(encoder.backbone, staged, {"vitrail": json.dumps(encoder.description())})
    return f"onnxruntime.InferenceSession({str(out)!r}), within {off:.1e} of vitrail's outputs"


def _safetensors(encoder: Encoder, staged: Path, out: Path) -> str:
    encoder.save(staged)
    return f"vitrail.load({str(out)!r})"


WRITERS: dict[str, Callable[[Encoder, Path, Path], str]] = {
    "timm": _timm,
    "hf": _hf,
    "onnx": _onnx,
    "safetensors": _safetensors,
}


def _timm_preprocess(preprocess: Preprocess, channels: int) -> dict[str, Any]:
    return {
        "input_size": [channels, preprocess.size, preprocess.size],
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.size / preprocess.resize,
        "crop_mode": "center" if preprocess.keep_aspect else "squash",
        "mean": preprocess.mean,
        "std": preprocess.std,
        "num_classes": 0,
    }


def _hf_preprocess(preprocess: Preprocess, channels: int) -> dict[str, Any]:
    plain = asdict(preprocess)
    size, resize = plain["size"], plain["resize"]
    square = {"height": resize, "width": resize}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": resize} if preprocess.keep_aspect else square,
        "resample": {"bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": plain["mean"],
        "image_std": plain["std"],
    }


def _default_out(path: Path, format: str) -> Path:
    folder = path if path.is_dir() else path.parent
    return folder / "export" / ("encoder.onnx" if format == "onnx" else format)


def _write_folder(folder: Path, weights: dict[str, Tensor], files: dict[str, Any]) -> None:
    folder.mkdir()
    whole = {key: value.detach().contiguous() for key, value in weights.items()}
    # not save_file, which makes the file readable by its owner alone
    (folder / "model.safetensors").write_bytes(save(whole, metadata={"format": "pt"}))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
