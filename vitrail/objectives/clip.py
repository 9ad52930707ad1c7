"""CLIP: images and captions, each found by the other among all pairs of the batch.

Paper: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.3 and Figure 3; van den Oord
et al. 2018 (InfoNCE).

Code: mlfoundations/open_clip at 89fb801 (loss.py: ClipLoss).

    x_i, t_i    unit vectors of image i and of its caption, i = 1..G      (backbones/joint.py)
    S_ij    =   x_i · t_j / τ
    loss    =   (mean_i CE(i, softmax_j S_ij) + mean_j CE(j, softmax_i S_ij)) / 2

1/τ = exp(log_scale) is learned, and clamped to [1, 100]: a sharper softmax makes training unstable
(section 2.5). The negatives are those of the global batch: every rank compares its own images with
all captions and its own captions with all images, so S is never held whole.

Departures: the tokenizer is learned from the run's captions; a caption is cut to `context` tokens
from its end; captions are not padded. Captions of one image, which are samples of their own, are
not each other's negatives (`same_image`). Equal captions of different images are, as published.

Shapes: B samples of this slice · G of the global batch · D features · Z of the joint space.
"""

from dataclasses import dataclass, field
from math import log
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.backbones.joint import JointSpace, TextKind
from vitrail.data.contract import Batch
from vitrail.data.tokenizer import Tokenizer
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.nn.contrastive import info_nce
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone, TextSide

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_SCALE = 100.0  # largest value of 1/τ
LEARNED_FROM = 1_000_000  # captions of the tokenizer, at most: a minute, and every rank learns it


def _views() -> RandomResizedCrop:
    """Returns open_clip's views: only a crop, since other changes may contradict a caption."""
    return RandomResizedCrop(scale=(0.9, 1.0), flip=0.0, mean=MEAN, std=STD)


@dataclass(frozen=True)
class Config:
    """CLIP's ViT-B/16, apart from what depends on the batch.

    Attributes:
        views: the views of an image: one random crop.
        embed_dim: dimensions Z of the joint space of images and captions.
        text: "causal": a token sees only the tokens before it; "bidirectional": it sees all.
        text_width: features of a token in the text transformer.
        text_depth: layers of the text transformer.
        text_heads: attention heads of the text transformer; they divide text_width.
        vocabulary: tokens that are learned from the captions, at most.
        context: longest caption in tokens, start and end included, at least 3.
        temperature: first value of the learned temperature τ, in [0.01, 1].
        drop_path: rate of stochastic depth in the image backbone, in [0, 1).
        same_image: where images have several captions, whether pairs of one image that meet in a
            batch are left out of the softmax of each other ("left_out"), or are "negatives".
    """

    BEFORE: ClassVar[dict[str, str]] = {"same_image": "negatives"}  # in runs without the field

    views: RandomResizedCrop = field(default_factory=_views)
    embed_dim: int = 512
    text: TextKind = "causal"
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    vocabulary: int = 49_152
    context: int = 77
    temperature: float = 0.07
    drop_path: float = 0.0
    same_image: Literal["left_out", "negatives"] = "left_out"

    def __post_init__(self) -> None:
        for name in ("embed_dim", "text_width", "text_depth", "text_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"clip: {name} is {getattr(self, name)}; it must be at least 1")
        if self.text_width % self.text_heads:
            raise ValueError(
                f"clip: text_width is {self.text_width}; it must be a multiple of text_heads "
                f"({self.text_heads})"
            )
        if self.context < 3:
            raise ValueError(
                f"clip: context is {self.context}; it must be at least 3: start, a word, end"
            )
        if not 1 / MAX_SCALE <= self.temperature <= 1:
            raise ValueError(
                f"clip: temperature is {self.temperature}; it must be in [{1 / MAX_SCALE}, 1]"
            )


class CLIP(ImageObjective):
    """Trains a backbone and a text tower to find each image's caption in the batch, and back."""

    config: Config
    batch_coupled: ClassVar[bool] = True
    min_batch_size: ClassVar[int] = 2  # a single pair has no negatives

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        captions = facts.captions
        assert captions is not None  # the registry refuses a source without captions
        every = -(-len(captions) // LEARNED_FROM)
        self.tokenizer = Tokenizer.train(captions[::every], config.vocabulary)
        self.backbone = make_backbone(config.drop_path)
        self.space = JointSpace(
            self.backbone.embed_dim,
            config.embed_dim,
            kind=config.text,
            width=config.text_width,
            depth=config.text_depth,
            heads=config.text_heads,
            vocabulary=self.tokenizer.vocabulary,
            context=config.context,
        )
        self.log_scale = nn.Parameter(torch.tensor(log(1 / config.temperature)))
        self._pictures = None if config.same_image == "negatives" else facts.pictures

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        assert batch.text is not None
        (features,) = self.backbone.forward_packed(batch.views, batch.draws)
        image_BZ = self.space.images(features.pooled)
        text_BZ = self.space.captions(self.tokenizer.encode(batch.text, self.config.context))
        scale = self.log_scale.exp()
        loss, found = info_nce(image_BZ, text_BZ, scale, self._images_of(batch.index))
        return {
            "loss": loss,
            "features": features.pooled.detach(),
            "embedding": image_BZ.detach(),
            "accuracy": found,  # share of images whose own caption is nearest
            "temperature": 1 / scale.detach(),
        }

    def _images_of(self, index: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Returns a number of the image of each sample; pairs of one number are no negatives."""
        if self._pictures is None:
            return index
        return self._pictures[index.cpu()].to(index.device)

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        self.log_scale.data.clamp_(0.0, log(MAX_SCALE))

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @property
    def text_side(self) -> TextSide:
        return TextSide(self.space, self.tokenizer)

    # the tokenizer is in the checkpoint, since another release of its library may learn another

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(self.tokenizer.to_json().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        tokenizer = Tokenizer(bytes(state.cpu().tolist()).decode())
        if tokenizer.vocabulary != self.tokenizer.vocabulary:
            raise ValueError(
                f"clip: the checkpoint's tokenizer has {tokenizer.vocabulary} tokens and this "
                f"release of `tokenizers` learns {self.tokenizer.vocabulary} from the same "
                "captions; go on with the release that the run began with"
            )
        self.tokenizer = tokenizer
