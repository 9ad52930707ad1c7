"""The text encoder of a run: maps captions to vectors of the space shared with images.

Shape legend: N captions or images · D features of an image · Z dimensions of the joint space.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vitrail.atomic import parse_json, write_atomically
from vitrail.backbones.joint import JointSpace
from vitrail.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

WEIGHTS, DESCRIPTION = "text.safetensors", "text.json"


class TextEncoder:
    """A joint space of images and captions, and the tokenizer of the captions.

    Args:
        space: trained text tower and projections.
        tokenizer: tokenizer of the captions.
        step: training step of the weights, as in the `info` of the encoder beside it.

    >>> text = TextEncoder.load(run)
    >>> text.transform(["a red fox"]) @ text.place(encoder.transform(images)).T  # cosines
    """

    def __init__(self, space: JointSpace, tokenizer: Tokenizer, step: int | None = None):
        self.space = space
        self.tokenizer = tokenizer
        self.step = step

    @classmethod
    def load(cls, run: str | Path, device: str = "cpu") -> "TextEncoder":
        """Loads the text encoder of a run.

        Args:
            run: a run's folder, or an encoder.safetensors in it.
            device: torch device of the text tower.

        Raises:
            ValueError: the folder has no text encoder, or its files are damaged or do not match.
        """
        path = Path(run)
        folder = path if path.is_dir() else path.parent
        if not has_text(folder):
            raise ValueError(
                f"{path} knows no captions: it holds no {WEIGHTS} and {DESCRIPTION}, which runs of "
                "the objective 'clip' write"
            )
        weights = _read_weights(folder / WEIGHTS)
        try:
            info = parse_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
            tokenizer = Tokenizer(json.dumps(info["tokenizer"]))
            _require_fitting(info["space"], weights, tokenizer)
            with torch.device("meta"):  # no initial weights: they are read from the file
                space = JointSpace(**info["space"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / DESCRIPTION} does not describe a text encoder ({error}); restore it, "
                f"or remove it and write it again with `vitrail resume {folder}`"
            ) from error
        _require_matching(space, weights, folder / WEIGHTS)
        wrong = [n for n, w in weights.items() if w.is_floating_point() and not w.isfinite().all()]
        if wrong:
            raise ValueError(
                f"{folder / WEIGHTS} holds weights that are NaN or infinite ({wrong[0]} and "
                f"{len(wrong) - 1} more); use those of an earlier step"
            )
        space.load_state_dict(weights, assign=True)
        return cls(space.to(device).eval(), tokenizer, info.get("step"))

    def save(self, folder: str | Path) -> Path:
        """Writes text.safetensors and text.json, each whole or not at all.

        Returns:
            the path of text.safetensors.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        info: dict[str, Any] = {"space": self.space.config, "step": self.step}
        info["tokenizer"] = json.loads(self.tokenizer.to_json())
        state = {k: v.detach().cpu().contiguous() for k, v in self.space.state_dict().items()}
        write_atomically(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
        write_atomically(folder / DESCRIPTION, json.dumps(info) + "\n")
        return folder / WEIGHTS

    @property
    def dim(self) -> int:
        """The number of dimensions Z of the joint space."""
        return self.space.dim

    def transform(self, texts: Sequence[str], batch_size: int = 256) -> Float32[np.ndarray, "N Z"]:
        """Computes unit vectors of captions.

        Args:
            texts: captions; long ones are cut to the context of the text tower.
            batch_size: captions of a batch.

        Raises:
            ValueError: a single string instead of a list.
        """
        if isinstance(texts, str):
            raise ValueError(f"transform takes a list of captions; write [{texts!r}]")
        context = int(self.space.config["context"])
        if longer := self.tokenizer.count_longer(texts, context):
            logger.warning(
                "note: %d of %d texts are longer than the context of %d tokens and lose their last "
                "words",
                longer,
                len(texts),
                context,
            )
        parts = [np.zeros((0, self.dim), dtype=np.float32)]
        for start in range(0, len(texts), batch_size):
            sequences = self.tokenizer.encode(texts[start : start + batch_size], context)
            with torch.inference_mode():
                parts.append(self.space.captions(sequences).cpu().numpy())
        return np.concatenate(parts)

    def place(self, features: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N Z"]:
        """Projects features of images to unit vectors of the joint space.

        Args:
            features: features from the encoder beside this text encoder, float32 [N, D].

        Raises:
            ValueError: features of another width, which come from another encoder.
        """
        if features.shape[1] != self.space.config["image_dim"]:
            raise ValueError(
                f"features have {features.shape[1]} dimensions and the text side was trained with "
                f"{self.space.config['image_dim']}: they are of another encoder"
            )
        weight = self.space.image_projection.weight
        with torch.inference_mode():
            return self.space.images(torch.from_numpy(features).to(weight)).cpu().numpy()


def has_text(folder: Path) -> bool:
    """Returns true if a run's folder holds a text encoder."""
    return (folder / WEIGHTS).is_file() and (folder / DESCRIPTION).is_file()


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); restore it"
        ) from error


def _require_fitting(
    config: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Checks the sizes of a joint space before it is built.

    Raises:
        ValueError: sizes that are invalid, or do not match the weights or the tokenizer.
    """
    sizes = {name: value for name, value in config.items() if name != "kind"}
    wrong = [name for name, value in sizes.items() if type(value) is not int or value < 1]
    if wrong:
        raise ValueError(f"{wrong[0]} is {sizes[wrong[0]]!r}; it must be a number of at least 1")
    if config["width"] % config["heads"]:
        raise ValueError(f"width {config['width']} is not a multiple of heads {config['heads']}")
    layers = {name.split(".")[2] for name in weights if name.startswith("text.blocks.")}
    if config["depth"] != len(layers):
        raise ValueError(f"depth is {config['depth']}, and its weights have {len(layers)} layers")
    if tokenizer.vocabulary > config["vocabulary"]:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocabulary} tokens and the text tower knows "
            f"{config['vocabulary']}"
        )


def _require_matching(space: JointSpace, weights: dict[str, Tensor], path: Path) -> None:
    """Checks that weights have the names and shapes of the space, before they are loaded."""
    expected = {name: value.shape for name, value in space.state_dict().items()}
    wrong = sorted(expected.keys() ^ weights.keys()) + sorted(
        name for name in expected.keys() & weights.keys() if expected[name] != weights[name].shape
    )
    if wrong:
        raise ValueError(
            f"{path} is not what {DESCRIPTION} beside it describes (see {', '.join(wrong[:6])}); "
            "put back the two files of one run"
        )
