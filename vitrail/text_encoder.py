"""The text side of a trained encoder: captions in, vectors of the space they share with images out.

Shape legend: N captions or images · D features of an image · Z dimensions of the joint space.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vitrail.atomic import write_atomically
from vitrail.backbones.joint import JointSpace
from vitrail.data.tokenizer import Tokenizer

WEIGHTS, DESCRIPTION = "text.safetensors", "text.json"

Array = np.ndarray


class TextEncoder:
    """A joint space and the tokenizer of its captions.

    >>> text = TextEncoder.load(run)
    >>> text.transform(["a red fox"]) @ text.place(encoder.transform(images)).T  # cosines
    """

    def __init__(self, space: JointSpace, tokenizer: Tokenizer, step: int | None = None):
        """Args: step: of the run, as the encoder beside it has it in its `info`."""
        self.space = space
        self.tokenizer = tokenizer
        self.step = step

    @classmethod
    def load(cls, run: str | Path, device: str = "cpu") -> "TextEncoder":
        """The text side of a run's folder, or of the folder that an encoder.safetensors is in.

        Raises:
            ValueError: the folder has none, or its files are damaged or do not belong together.
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
            info = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            tokenizer = Tokenizer(json.dumps(info["tokenizer"]))
            _require_fitting(info["space"], weights, tokenizer)
            with torch.device("meta"):  # nothing is drawn: the weights come from the file
                space = JointSpace(**info["space"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{folder / DESCRIPTION} does not describe a text encoder ({error}); restore it, "
                f"or remove it and write it again with `vitrail resume {folder}`"
            ) from error
        _require_matching(space, weights, folder / WEIGHTS)
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
        """Z."""
        return self.space.dim

    def transform(self, texts: Sequence[str], batch_size: int = 256) -> Float32[Array, "N Z"]:
        """Unit vectors of captions. ValueError for one string in the place of several."""
        if isinstance(texts, str):
            raise ValueError(f"transform takes a list of captions; write [{texts!r}]")
        parts = [np.zeros((0, self.dim), dtype=np.float32)]
        for start in range(0, len(texts), batch_size):
            sequences = self.tokenizer.encode(
                texts[start : start + batch_size], self.space.config["context"]
            )
            with torch.inference_mode():
                parts.append(self.space.captions(sequences).cpu().numpy())
        return np.concatenate(parts)

    def place(self, features: Float32[Array, "N D"]) -> Float32[Array, "N Z"]:
        """Unit vectors of images, from the encoder's features of them.

        Raises:
            ValueError: features of another width, which are another encoder's.
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
    """Whether a run's folder holds a text encoder beside its encoder."""
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
    """Raises ValueError for sizes that no space can be built with, before it is tried."""
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
    expected = {name: value.shape for name, value in space.state_dict().items()}
    wrong = sorted(expected.keys() ^ weights.keys()) + sorted(
        name for name in expected.keys() & weights.keys() if expected[name] != weights[name].shape
    )
    if wrong:
        raise ValueError(
            f"{path} is not what {DESCRIPTION} beside it describes (see {', '.join(wrong[:6])}); "
            "put back the two files of one run"
        )
