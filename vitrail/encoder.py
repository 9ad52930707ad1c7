"""The trained encoder that a run exports: maps images to features.

Shape legend: N images · C channels · H×W pixels · D features.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors.torch import save
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from vitrail.atomic import parse_json, read_text, write_atomically
from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone
from vitrail.data.decode.inputs import ImagesLike, batches
from vitrail.data.views.preparation import Preparation
from vitrail.data.views.preprocess import Preprocess
from vitrail.interop.read.load import read_official
from vitrail.interop.read.own_weights import read_weights, require_finite, require_matching
from vitrail.interop.read.weights_file import HUB_OTHERS, HUB_WEIGHTS, is_hub_folder

WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"


class Encoder(TransformerMixin, BaseEstimator):
    """A trained backbone with its preprocessing and its origin.

    Follows scikit-learn's conventions (it is fitted from the start, and works in a Pipeline).

    Args:
        backbone: any backbone of `vitrail list backbones`; it stays on its device.
        preprocess: transform of uint8 or uint16 images to the backbone's input.
        info: content of `encoder.json` ("seed", "objective", "data", "step", ...). "backbone" and
            "kwargs", the arguments of `create_backbone`, may be left out, as the backbone has them.
    """

    def __init__(self, backbone: Backbone, preprocess: Preprocess, info: dict[str, Any]):
        self.backbone = backbone
        self.preprocess = preprocess
        self.info = info

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        preparation: Preparation | None = None,
    ) -> "Encoder":
        """Loads the encoder of a run, or weights of another library.

        What the weights do not say of how images are prepared is assumed, and logged.

        Args:
            path: a run folder, or an encoder.safetensors beside its encoder.json; or weights of
                another library, as a file or a folder of the Hugging Face hub, in a format that
                `vitrail.interop.read.load.read_official` supports, with that format's
                preprocessing.
            device: torch device of the backbone.
            preparation: changes to how images are prepared.

        Raises:
            ValueError: a missing or damaged file, weights that do not match the described backbone,
                weights in an unknown format, or a preparation that does not fit.
        """
        path, preparation = Path(path), preparation or Preparation()
        if _is_official(path):
            return cls._from_official(path, device, preparation)
        folder = _folder(path)
        info = _read_description(folder / DESCRIPTION)
        weights = read_weights(folder / WEIGHTS)
        try:
            backbone = create_backbone(info["backbone"], **info["kwargs"], seed=info["seed"])
            preprocess = _preprocess(info["preprocess"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / DESCRIPTION} does not describe an encoder ({error!r}); "
                f"restore the file, or write it again with `vitrail resume {folder}`"
            ) from error
        require_matching(backbone.state_dict(), weights, folder / WEIGHTS, info["backbone"])
        require_finite(weights, folder / WEIGHTS)
        backbone.load_state_dict(weights)
        return cls(backbone.to(device), preparation.applied(preprocess), info)

    @classmethod
    def _from_official(cls, path: Path, device: str, preparation: Preparation) -> "Encoder":
        official = read_official(path)
        origin = {"format": official.format, "weights": path.name}
        info = {"seed": 0, "objective": None} | official.info | origin
        preprocess = preparation.applied(_preprocess(official.preprocess))
        official.say_assumed(path, preparation.changes, asdict(preprocess))
        return cls(official.build().to(device), preprocess, info)

    def save(self, folder: str | Path) -> Path:
        """Writes encoder.safetensors and encoder.json, each whole or not at all.

        Returns:
            the path of encoder.safetensors.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / WEIGHTS
        state = {k: v.detach().cpu().contiguous() for k, v in self.backbone.state_dict().items()}
        # not save_file, which makes the file readable by its owner alone
        write_atomically(path, save(state, metadata={"format": "pt"}))
        write_atomically(folder / DESCRIPTION, json.dumps(self.description(), indent=2) + "\n")
        return path

    def description(self) -> dict[str, Any]:
        """Returns the content of `encoder.json`, from which this encoder can be built again."""
        arguments = dict(getattr(self.backbone, "config", {}))
        return {
            "backbone": arguments.pop("name", None),
            "kwargs": arguments,
            "seed": 0,
            "preprocess": asdict(self.preprocess),
            "channels": self.backbone.in_chans,
            "vitrail": version("vitrail"),
            **self.info,
        }

    def untrained(self, device: str | None = None) -> "Encoder":
        """Returns the same architecture with the weights that the run began with.

        Args:
            device: torch device; None for this encoder's.
        """
        info = self.description()
        backbone = create_backbone(info["backbone"], **info["kwargs"], seed=info["seed"])
        backbone = backbone.to(device or self.device)
        return Encoder(backbone, self.preprocess, info | {"step": 0})

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        return next(self.backbone.parameters()).device

    @property
    def channels(self) -> int:
        """The number of channels C of the training images: 1 is grey, 3 is RGB."""
        return self.backbone.in_chans

    @property
    def embed_dim(self) -> int:
        """The number of features D."""
        return self.backbone.embed_dim

    def transform(self, images: ImagesLike, batch_size: int = 256) -> Float32[np.ndarray, "N D"]:
        """Computes the features of images.

        Args:
            images: array or tensor [N, H, W], [N, H, W, C] or [N, C, H, W], uint8 in 0..255 or
                uint16 in 0..65535, or a sequence of images: arrays or tensors [H, W], [H, W, C] or
                [C, H, W], PIL images, paths of files. Grey and RGB are converted to the channels
                that the encoder was trained on.
            batch_size: images of a batch.

        Returns:
            features float32 [N, D].

        Raises:
            ValueError: another type, shape or range; an image that cannot be read.
        """
        parts = [np.zeros((0, self.embed_dim), dtype=np.float32)]
        for batch in batches(images, self.channels, batch_size):
            parts.append(self.embed(self.preprocess(batch)))
        return np.concatenate(parts)

    def embed(self, pixels: Float[Tensor, "N C S S"]) -> Float32[np.ndarray, "N D"]:
        """Computes the features of a preprocessed batch.

        Raises:
            ValueError: features that are not finite.
        """
        with evaluating(self.backbone):
            pooled = self.backbone(pixels.to(self.device)).pooled
        features = pooled.float().cpu().numpy()
        wrong = int((~np.isfinite(features).all(axis=1)).sum())
        if wrong:
            raise ValueError(
                f"the features of {wrong} of {len(features)} images hold NaN or infinity; the "
                "encoder has diverged or its input is broken: take the weights of an earlier step"
            )
        return features

    def fit(self, X: Any = None, y: Any = None) -> "Encoder":
        """Returns the encoder as it is, since it is already trained."""
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Returns "encoder0", "encoder1", ..., as scikit-learn names projected columns."""
        return np.array([f"encoder{i}" for i in range(self.embed_dim)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        info = self.description()
        return (
            f"Encoder({info['backbone']}, {self.channels}x{self.preprocess.size}x"
            f"{self.preprocess.size} -> {self.embed_dim}, step {info.get('step', '?')})"
        )


def load_backbone(path: str | Path) -> Backbone:
    """Loads what `Encoder.load` does, but the backbone alone, whatever images it is given."""
    path = Path(path)
    return read_official(path).build() if _is_official(path) else Encoder.load(path).backbone


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Sets evaluation mode without gradients, and restores the backbone's mode at the end."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        backbone.train(was_training)


def _is_official(path: Path) -> bool:
    """Returns true for weights of another library: a file, or a hub folder that is no run."""
    if path.is_dir():
        return is_hub_folder(path) and not (path / WEIGHTS).exists()
    return path.is_file() and path.name not in (WEIGHTS, DESCRIPTION)


def _folder(path: Path) -> Path:
    """Returns the folder that holds the two files.

    Raises:
        ValueError: one of them is missing.
    """
    folder = path.parent if path.name in (WEIGHTS, DESCRIPTION) else path
    if not folder.is_dir():
        raise ValueError(
            f"{path} is not a run folder, nor a file of weights: there is no folder {folder}"
        )
    missing = [name for name in (WEIGHTS, DESCRIPTION) if not (folder / name).is_file()]
    others = [name for name in HUB_OTHERS if (folder / name).is_file()]
    if missing and others:
        raise ValueError(
            f"{folder} holds {' and '.join(others)}, which vitrail does not read; of a folder of "
            f"the Hugging Face hub it reads {', '.join(HUB_WEIGHTS)}"
        )
    if missing and (folder / "config.json").exists():
        raise ValueError(
            f"run {folder} has no {' and no '.join(missing)} yet: it has not finished; "
            f"go on with it by `vitrail resume {folder}`"
        )
    if missing:
        raise ValueError(
            f"{folder} holds no {' and no '.join(missing)}: both {WEIGHTS} and {DESCRIPTION} of a "
            "run are needed, side by side"
        )
    return folder


def _read_description(path: Path) -> dict[str, Any]:
    try:
        info = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore the file") from error
    if not isinstance(info, dict):
        raise ValueError(f"{path} is not the description of an encoder; restore the file")
    return {"seed": 0} | info


def _preprocess(plain: dict[str, Any]) -> Preprocess:
    """Builds a Preprocess from its JSON."""
    mean, std = tuple(plain["mean"]), tuple(plain["std"])
    more = ("interpolation", "keep_aspect", "rounding")  # which earlier versions did not write
    given: dict[str, Any] = {key: plain[key] for key in more if key in plain}
    return Preprocess(size=plain["size"], resize=plain["resize"], mean=mean, std=std, **given)
