"""Our backbones of tokens as timm's models, with a classifier and the methods of timm's models.

Shape legend: B images · C channels · S, s height, width in pixels · H×W patches · N tokens of an
image, prefix tokens before the patches · D features · K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from vitrail.backbones.contract import TokenBackbone
from vitrail.backbones.create import create_backbone
from vitrail.backbones.skeleton import SkeletonBackbone, change_size
from vitrail.backbones.tost import ToST
from vitrail.nn.random import Draws

POOLS = ("token", "avg", "avgmax", "max", "")
WITHOUT_DECAY = {"cls_token", "pos_embed", "register_tokens"}  # as in timm's ViTs


class TimmModel(nn.Module):
    """A named backbone and a linear classifier, with timm's conventions.

    Keys of the weights are the backbone's and `head.weight`, `head.bias`. Initial weights and
    stochastic depth draw from torch's generator, as in timm. Images of any size that
    the patch divides are accepted.

    Args:
        name: of a backbone of tokens in our table.
        num_classes: number of classes, K; 0 for no classifier.
        global_pool: input of the classifier: the class token ("token"), the patches' mean ("avg"),
            maximum ("max") or the half sum of both ("avgmax"), or every token ("").
        img_size: side in pixels of the images for which positions are learned; a pair must be a
            square.
        in_chans: channels of the images, C.
        drop_rate: rate of dropout before the classifier.
        drop_path_rate: rate of stochastic depth in the last layer.
        overrides: options of `create_backbone`: depth, width, patch_size, registers, ...

    Raises:
        ValueError: what `create_backbone` raises, an unknown pooling, or a size that is no square.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = 1000,
        global_pool: str = "token",
        img_size: int | tuple[int, int] | list[int] | None = None,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **overrides: Any,
    ):
        super().__init__()
        backbone = create_backbone(
            name,
            img_size=None if img_size is None else _side(img_size),
            in_chans=in_chans,
            drop_path=drop_path_rate,
            seed=int(torch.randint(2**31 - 1, (), device="cpu")),
            **overrides,
        )
        assert isinstance(backbone, TokenBackbone)
        # shared dictionaries, not copies: keys have no prefix, and a replaced module or parameter
        # (a shorter stack of layers, another device) is replaced in both
        self._parameters = backbone._parameters
        self._buffers = backbone._buffers
        self._modules = backbone._modules
        object.__setattr__(self, "backbone", backbone)
        self.backbone: TokenBackbone
        self.embed_dim = self.num_features = self.head_hidden_size = backbone.embed_dim
        self.num_prefix_tokens = backbone.n_prefix
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.embed_dim, "reduction": backbone.patch_size}
            for i in range(len(backbone.blocks))
        ]
        self.drop_path_rate = drop_path_rate
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Float[Tensor, "B C S s"]) -> Float[Tensor, "B *out"]:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        """Returns all tokens, after the final norm."""
        draws = None
        if self.training and self.drop_path_rate > 0:
            seed = int(torch.randint(2**31 - 1, (), device="cpu"))
            draws = Draws(seed=seed, step=0, batch_size=len(x), start=0, count=len(x))
        return self.backbone.encode([self.backbone.embed(x)], draws)[0]

    def forward_head(
        self, x: Float[Tensor, "B N D"], pre_logits: bool = False
    ) -> Float[Tensor, "B *out"]:
        pooled = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens)
        dropped = self.head_drop(pooled)
        return dropped if pre_logits else self.head(dropped)

    def forward_intermediates(
        self,
        x: Float[Tensor, "B C S s"],
        indices: int | list[int] | tuple[int, ...] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Returns the patches after some layers, and the tokens after all of them.

        Args:
            x: normalised images.
            indices: indices of layers, or a number of last layers, or None for all.
            return_prefix_tokens: return pairs (patches, other tokens).
            norm: apply the final norm to each.
            stop_early: accepted, without effect; `prune_intermediate_layers` saves the work.
            output_fmt: "NCHW" for maps [B, D, H, W], "NLC" for tokens [B, H W, D].
            intermediates_only: return the list alone.

        Returns:
            (tokens [B, N, D], list), or the list.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}, but must be 'NCHW' or 'NLC'")
        chosen, _ = self._chosen(indices)
        with outputs_of(self.backbone.blocks) as outputs:
            final_BND = self.forward_features(x)
        height, width = (side // self.backbone.patch_size for side in x.shape[2:])
        intermediates: list[Any] = []
        for i in sorted(set(chosen)):
            tokens_BnD = outputs[i].unflatten(0, (len(x), -1))
            tokens_BnD = self.backbone.norm(tokens_BnD) if norm else tokens_BnD
            prefix, patches = tokens_BnD.tensor_split([-height * width], dim=1)
            if output_fmt == "NCHW":
                patches = patches.mT.unflatten(2, (height, width)).contiguous()
            intermediates.append((patches, prefix) if return_prefix_tokens else patches)
        return intermediates if intermediates_only else (final_BND, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | tuple[int, ...] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes the layers after the last index; returns the indices, counted from 0."""
        chosen, last = self._chosen(indices)
        self.backbone.blocks = self.backbone.blocks[: last + 1]
        if prune_norm:
            self.backbone.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier: truncated normal 0.02 with zero biases; none for 0 classes."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(
                    f"global_pool is {global_pool!r}; known: {', '.join(map(repr, POOLS))}"
                )
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            like = next(self.parameters())
            linear = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.head = linear.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Saves only the layers' inputs for the backward pass, or all activations again."""
        assert isinstance(self.backbone, SkeletonBackbone | ToST)
        self.backbone.checkpointing = enable

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | list[int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Resamples the learned positions for another size of images.

        Raises:
            ValueError: a size that does not fit, or another patch size.
        """
        current = self.backbone.patch_size
        if patch_size is not None and patch_size not in (current, (current, current)):
            raise ValueError(
                f"patch_size is {patch_size}, but the model was built for {current}; give "
                "create_model another patch_size"
            )
        if img_size is not None:
            change_size(self.backbone, _side(img_size))

    def no_weight_decay(self) -> set[str]:
        names = {name for name, _ in self.named_parameters()}
        return self.backbone.no_weight_decay() | (WITHOUT_DECAY & names)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns patterns of names for learning rates by layer."""
        stem = r"^cls_token|register_tokens|pos_embed|patch_embed"
        layers, norm = r"^blocks\.(\d+)", (r"^norm", (99999,))  # timm's: with the group before
        if isinstance(self.backbone, ToST):
            read = (r"^cls_attn_blocks\.(\d+)", None)
            return {"stem": stem, "blocks": layers, "cls_attn_blocks": [read, norm]}
        return {"stem": stem, "blocks": [(layers, None), norm]}

    def _chosen(self, indices: int | list[int] | tuple[int, ...] | None) -> tuple[list[int], int]:
        """Returns indices of layers counted from 0, and the last of them."""
        listed = list(indices) if isinstance(indices, tuple) else indices
        return feature_take_indices(len(self.backbone.blocks), listed)


@contextmanager
def outputs_of(layers: nn.ModuleList) -> Iterator[list[Float[Tensor, "T D"]]]:
    """Collects the outputs of layers that run within the context, in their order."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for layer in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _side(img_size: int | tuple[int, int] | list[int]) -> int:
    if isinstance(img_size, int):
        return img_size
    height, width = img_size
    if height != width:
        raise ValueError(
            f"img_size is {height} × {width}, but positions are learned on a square: give one "
            "number. Images of any size that the patch divides are accepted, squares or not"
        )
    return height
