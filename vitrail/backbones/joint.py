"""The joint space of images and captions: a text tower, and a linear map from either side.

Radford et al. 2021 (CLIP), section 2.4 and Figure 3:

    x = W_i f_image / |W_i f_image|        t = W_t f_text / |W_t f_text|        similarity = x · t

f_text are the features of a caption's last token, which attends to all others.

Shape legend: B images or captions · D features of an image · Z dimensions of the space.
"""

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.layers import Kind
from vitrail.backbones.operators.attention import MHSA, CausalMHSA
from vitrail.backbones.operators.tokenwise import MLP
from vitrail.backbones.text import TextBackbone
from vitrail.nn.heads import unit_norm

TextKind = Literal["causal", "bidirectional"]

# CLIP's text transformer: pre-norm, with biases. Bidirectional, it is a ViT's.
KINDS: dict[str, Kind] = {
    "causal": Kind(CausalMHSA, MLP, norm_eps=1e-5),
    "bidirectional": Kind(MHSA, MLP, norm_eps=1e-5),
}


class JointSpace(nn.Module):
    """The text tower `text`, and the maps `image_projection` and `text_projection`.

    Args:
        image_dim: features of an image, D.
        dim: dimensions of the space, Z.
        kind: kind of the text's layers, a key of KINDS.
        width: features of a text token.
        depth: number of the text's layers.
        heads: heads of the text's attention.
        vocabulary: number of tokens.
        context: length of the longest caption, in tokens.
    """

    def __init__(
        self,
        image_dim: int,
        dim: int,
        *,
        kind: TextKind,
        width: int,
        depth: int,
        heads: int,
        vocabulary: int,
        context: int,
    ):
        super().__init__()
        self.dim = dim
        self.config: dict[str, Any] = {
            "image_dim": image_dim,
            "dim": dim,
            "kind": kind,
            "width": width,
            "depth": depth,
            "heads": heads,
            "vocabulary": vocabulary,
            "context": context,
        }
        self.text = TextBackbone(
            KINDS[kind],
            width=width,
            depth=depth,
            heads=heads,
            vocabulary=vocabulary,
            context=context,
        )
        self.text_projection = _projection(width, dim)
        self.image_projection = _projection(image_dim, dim)

    def images(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B Z"]:
        """Returns unit vectors of images, float32, from their pooled features."""
        return unit_norm(self.image_projection(features))

    def captions(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "B Z"]:
        """Returns unit vectors of captions, float32, from their token numbers.

        Raises:
            ValueError: as `TextBackbone.last`.
        """
        return unit_norm(self.text_projection(self.text.last(sequences)))


def _projection(in_dim: int, dim: int) -> nn.Linear:
    linear = nn.Linear(in_dim, dim, bias=False)
    nn.init.normal_(linear.weight, std=in_dim**-0.5)
    return linear
