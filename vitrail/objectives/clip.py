"""CLIP: images and their captions, each found among all others of the batch by the other.

Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.3 and Figure 3; van den Oord et al.
2018 (InfoNCE). Reference: mlfoundations/open_clip at 89fb801 (loss.py: ClipLoss).

    x_i, t_i    unit vectors of image i and of its caption, i = 1..G      (backbones/joint.py)
    S_ij    =   x_i · t_j / τ
    loss    =   (mean_i CE(i, softmax_j S_ij) + mean_j CE(j, softmax_i S_ij)) / 2

1/τ = exp(log_scale) is learned, and held in [1, 100]: sharper, and training becomes unstable
(section 2.5). The negatives are those of the global batch: every rank compares its own images with
all captions and its own captions with all images, so that S is never held whole.

Departures: the tokenizer is learned from the run's captions; a caption is cut to `context` tokens
from its end; captions are not padded. Equal captions of different images stay negatives, as
published.

Shape legend: B samples of this slice · G of the global batch · D features · Z of the joint space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.backbones.joint import JointSpace, TextKind
from vitrail.data.contract import Batch
from vitrail.data.tokenizer import Tokenizer
from vitrail.data.views.plan import RandomResizedCrop, ViewPlan
from vitrail.nn.contrastive import info_nce
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import MakeBackbone, Objective, TextSide
from vitrail.optim import ParamGroup, decay_groups

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_SCALE = 100.0  # of 1/τ
LEARNED_FROM = 1_000_000  # captions, at most, of the tokenizer: a minute; all ranks learn it


def _views() -> RandomResizedCrop:
    """open_clip's: a crop is all that a caption always survives."""
    return RandomResizedCrop(scale=(0.9, 1.0), flip=0.0, mean=MEAN, std=STD)


@dataclass(frozen=True)
class Config:
    """CLIP's ViT-B/16 where it does not depend on the batch.

    embed_dim: Z. text: whether a token sees the tokens after it. vocabulary: at most so many tokens
    are learned from the captions. context: tokens of a caption, both ends included.
    temperature: τ at first, in [1/100, 1].
    """

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


class CLIP(Objective):
    batch_coupled: ClassVar[bool] = True
    min_batch_size: ClassVar[int] = 2  # one pair has nothing to be told from

    def __init__(
        self,
        config: Config,
        make_backbone: MakeBackbone,
        horizon: Horizon,
        captions: Sequence[str],
    ):
        super().__init__()
        self.config = config
        self.plan = config.views.plan()
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

    def views(self) -> ViewPlan:
        return self.plan

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        assert batch.text is not None
        (features,) = self.backbone.forward_packed(batch.views, batch.draws)
        image_BZ = self.space.images(features.pooled)
        text_BZ = self.space.captions(self.tokenizer.encode(batch.text, self.config.context))
        scale = self.log_scale.exp()
        loss, found = info_nce(image_BZ, text_BZ, scale, batch.index)
        return {
            "loss": loss,
            "features": features.pooled.detach(),
            "embedding": image_BZ.detach(),
            "accuracy": found,  # of images that are nearest to their own caption
            "temperature": 1 / scale.detach(),
        }

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        self.log_scale.data.clamp_(0.0, log(MAX_SCALE))

    def param_groups(self) -> list[ParamGroup]:
        return decay_groups(self)

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @property
    def text_side(self) -> TextSide:
        return TextSide(self.space, self.tokenizer)

    # A checkpoint holds the tokenizer too: another release of its library may learn another one.

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
