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

from vitrail.backbones.joint import JointSpace
from vitrail.data.tokens import Tokenizer
from vitrail.durable import write_atomically

WEIGHTS, DESCRIPTION = "text.safetensors", "text.json"

Array = np.ndarray


class TextEncoder:
    """A joint space and the tokenizer of its captions.

    >>> text = TextEncoder.load(run)
    >>> text.transform(["a red fox"]) @ text.place(encoder.transform(images)).T  # cosines
    """

    def __init__(self, space: JointSpace, tokenizer: Tokenizer):
        self.space = space
        self.tokenizer = tokenizer

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
                f"{folder} knows no captions: it holds no {WEIGHTS} and {DESCRIPTION}, which runs "
                "of the objective 'clip' write"
            )
        try:
            info = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            tokenizer = Tokenizer(json.dumps(info["tokenizer"]))
            with torch.device("meta"):  # nothing is drawn: the weights come from the file
                space = JointSpace(**info["space"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / DESCRIPTION} does not describe a text encoder ({error}); restore it, "
                f"or write it again with `vitrail resume {folder}`"
            ) from error
        space.load_state_dict(_read(folder / WEIGHTS, space), assign=True)
        return cls(space.to(device).eval(), tokenizer)

    def save(self, folder: str | Path) -> Path:
        """Writes text.safetensors and text.json, each whole or not at all.

        Returns:
            the path of text.safetensors.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        info = {"space": self.space.config, "tokenizer": json.loads(self.tokenizer.to_json())}
        state = {k: v.detach().cpu().contiguous() for k, v in self.space.state_dict().items()}
        write_atomically(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
        write_atomically(folder / DESCRIPTION, json.dumps(info) + "\n")
        return folder / WEIGHTS

    @property
    def dim(self) -> int:
        """Z."""
        return self.space.dim

    def transform(self, texts: Sequence[str], batch_size: int = 256) -> Float32[Array, "N Z"]:
        """Unit vectors of captions."""
        parts = [np.zeros((0, self.dim), dtype=np.float32)]
        for start in range(0, len(texts), batch_size):
            sequences = self.tokenizer.encode(
                texts[start : start + batch_size], self.space.config["context"]
            )
            with torch.inference_mode():
                parts.append(self.space.captions(sequences).cpu().numpy())
        return np.concatenate(parts)

    def place(self, features: Float32[Array, "N D"]) -> Float32[Array, "N Z"]:
        """Unit vectors of images, from the encoder's features of them."""
        weight = self.space.image_projection.weight
        with torch.inference_mode():
            return self.space.images(torch.from_numpy(features).to(weight)).cpu().numpy()


def has_text(folder: Path) -> bool:
    """Whether a run's folder holds a text encoder beside its encoder."""
    return (folder / WEIGHTS).is_file() and (folder / DESCRIPTION).is_file()


def _read(path: Path, space: JointSpace) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); restore it"
        ) from error
    expected: dict[str, Any] = {k: v.shape for k, v in space.state_dict().items()}
    wrong = sorted(k for k in expected.keys() ^ weights.keys()) + sorted(
        k for k in expected.keys() & weights.keys() if expected[k] != weights[k].shape
    )
    if wrong:
        raise ValueError(
            f"{path} is not what {DESCRIPTION} beside it describes (see {', '.join(wrong[:6])}); "
            "put back the two files of one run"
        )
    return weights
