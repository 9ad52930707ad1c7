"""Stacks of layers over text: a token embedding, learned positions, layers of one kind, a norm.

Causal where the kind's attention is causal (language models), bidirectional otherwise. The shell is
nanoGPT's (karpathy/nanoGPT 3adf61e), without dropout.

Shape legend: B sequences · N tokens of a sequence, in order · T tokens of all sequences ·
D features · V tokens of the vocabulary · L layers · h heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrail.backbones.layers import Kind, run_blocks, stack, undecayed
from vitrail.backbones.operators.attention import Attention, CausalMHSA, CausalMSSA
from vitrail.backbones.operators.tokenwise import ISTA, MLP, ODL
from vitrail.backbones.operators.tssa import CausalTSSA
from vitrail.backbones.stochastic_depth import Drop, Shapes

VOCABULARY = 50_304  # GPT-2's 50,257 tokens, padded to a multiple of 64
CONTEXT = 1024


class TextBackbone(nn.Module):
    """A backbone of text: features of every token of a sequence, after the final norm `norm`.

    Initial weights are nanoGPT's: N(0, 0.02) for embeddings, positions and linear maps, deviation
    0.02/√(2L) for the maps that end a branch, zero biases. Dictionaries (`ISTA`, `ODL`) keep their
    operators' initial weights: no code was published for CRATE's language models.

    Args:
        kind: kind of the layers; its attention is causal or not.
        width: features of a token, D.
        depth: number of layers, L.
        heads: heads of the attention, h.
        vocabulary: number of tokens, V.
        context: length of the longest sequence, in tokens.
    """

    def __init__(
        self, kind: Kind, *, width: int, depth: int, heads: int, vocabulary: int, context: int
    ):
        super().__init__()
        self.embed_dim = width
        self.vocabulary = vocabulary
        self.context = context
        self.checkpointing = False  # see `run_blocks`
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        # for causal TSSA, which learns a bias for every position; other operators ignore it
        kind = replace(kind, arguments=kind.arguments | {"context": context})
        self.blocks = stack(kind, width, heads, depth)
        self.norm = kind.build_norm(width)
        self._init_weights()

    def forward(self, ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Returns features of all tokens.

        Args:
            ids: token numbers in [0, V), 1 <= N <= context. On CUDA, the check of their range
                synchronises.

        Raises:
            ValueError: a token outside the vocabulary, or a sequence longer than the context.
        """
        self._check_length(ids.shape[1])
        self._check_range(ids)
        tokens_TD = self._run(ids.flatten(), [(ids.shape[0], ids.shape[1])])
        return tokens_TD.unflatten(0, ids.shape)

    def last(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "B D"]:
        """Returns features of the last token of each sequence.

        Nothing is padded: features of a sequence do not depend on the others. Sequences of one
        length are one resolution to the attention, and all tokens are one matrix to other maps.

        Args:
            sequences: token numbers of each sequence, of any lengths from 1 to the context.

        Raises:
            ValueError: as `forward`. The check runs on the CPU, and does not synchronise.
        """
        lengths = torch.tensor([len(ids) for ids in sequences])
        order = lengths.argsort(stable=True)
        values, counts = lengths.unique(return_counts=True)
        shapes = list(zip(counts.tolist(), values.tolist(), strict=True))
        for _, length in shapes:
            self._check_length(length)
        ids_T = torch.tensor([token for row in order.tolist() for token in sequences[row]])
        self._check_range(ids_T)
        ends = lengths[order].cumsum(0) - 1
        device = self.wte.weight.device
        tokens_TD = self._run(ids_T.to(device), shapes)
        return tokens_TD[ends[order.argsort()].to(device)]

    def _run(self, ids_T: Int[Tensor, " T"], shapes: Shapes) -> Float[Tensor, "T D"]:
        """Runs the layers over packed sequences: B sequences of N tokens for every shape."""
        steps = torch.arange(max(length for _, length in shapes), device=ids_T.device)
        positions_T = torch.cat([steps[:length].repeat(count) for count, length in shapes])
        tokens_TD = self.wte(ids_T) + self.wpe(positions_T)
        drops: list[tuple[Drop, Drop]] = [(None, None)] * len(self.blocks)
        return self.norm(run_blocks(self.blocks, tokens_TD, shapes, drops, self.checkpointing))

    def logits(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Returns scores of the vocabulary for `forward`'s features, by the tied embedding."""
        return F.linear(features, self.wte.weight)

    def no_weight_decay(self) -> set[str]:
        """Returns names of parameters without weight decay, besides biases and other 1-D ones."""
        return undecayed(self.blocks)

    def _check_length(self, length: int) -> None:
        if not 1 <= length <= self.context:
            raise ValueError(
                f"a sequence of {length} tokens does not fit the context of {self.context}; give "
                f"1 to {self.context} tokens, or build the model with a larger context"
            )

    def _check_range(self, ids: Tensor) -> None:
        if ids.numel() == 0:
            return
        for wrong in (int(ids.min()), int(ids.max())):
            if not 0 <= wrong < self.vocabulary:
                raise ValueError(
                    f"token {wrong} is outside the vocabulary of {self.vocabulary}; use the "
                    f"tokenizer that the model was built for"
                )

    def _init_weights(self) -> None:
        ends = 0.02 * (2 * len(self.blocks)) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                is_end = name.endswith(("attn.proj", "mlp.fc2"))
                nn.init.normal_(module.weight, std=ends if is_end else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _bias_free(
    attention: type[Attention],
    tokenwise: type[nn.Module] | None,
    residual: bool = True,
    layer_scale: float | None = None,
) -> Kind:
    return Kind(
        attention,
        tokenwise,
        residual=residual,
        norm_eps=1e-5,
        norm_bias=False,
        layer_scale=layer_scale,
        arguments={"bias": False},
    )


GPT = _bias_free(CausalMHSA, MLP)
CRATE = _bias_free(CausalMSSA, ISTA, residual=False)
CRATE_ALPHA = _bias_free(CausalMSSA, ODL)
TOST = _bias_free(CausalTSSA, MLP, layer_scale=1e-5)
AOT_MSSA = _bias_free(CausalMSSA, None)
AOT_MHSA = _bias_free(CausalMHSA, None)


@dataclass(frozen=True)
class TextModel:
    """A row of LANGUAGE.

    Attributes:
        kind: kind of the layers.
        width: features of a token, D.
        depth: number of layers, L.
        heads: heads of the attention, h.
    """

    kind: Kind
    width: int
    depth: int
    heads: int

    def build(self, vocabulary: int = VOCABULARY, context: int = CONTEXT) -> TextBackbone:
        """Builds the model with weights drawn from torch's generator."""
        return TextBackbone(
            self.kind,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            vocabulary=vocabulary,
            context=context,
        )


# The book's language models: kind, width, depth, heads. For CRATE, CRATE-α and AoT no code is
# published: their layers are chosen to reproduce the book's counts, if any choice does. Heads that
# the book does not state have 64 features, as GPT-2's.
LANGUAGE: dict[str, TextModel] = {
    "gpt2_small": TextModel(GPT, 512, 12, 8),
    "causal_crate_base": TextModel(CRATE, 768, 12, 12),
    "crate_alpha_gpt_small": TextModel(CRATE_ALPHA, 512, 12, 8),
    "crate_alpha_gpt_base": TextModel(CRATE_ALPHA, 768, 12, 12),
    "tost_gpt_base": TextModel(TOST, 768, 12, 12),
    "tost_gpt_medium": TextModel(TOST, 1024, 24, 16),
    "tost_gpt_large": TextModel(TOST, 1280, 36, 20),
    "aot_mssa_base": TextModel(AOT_MSSA, 1024, 24, 16),
    "aot_mssa_medium": TextModel(AOT_MSSA, 1280, 36, 20),
    "aot_mhsa_base": TextModel(AOT_MHSA, 768, 36, 12),
}


def create_text_backbone(
    name: str, *, vocabulary: int = VOCABULARY, context: int = CONTEXT, seed: int = 0
) -> TextBackbone:
    """Creates a freshly initialised language model on the CPU; equal arguments give equal weights.

    torch's global random state is left unchanged.

    Args:
        name: a key of LANGUAGE.
        vocabulary: number of tokens.
        context: length of the longest sequence, in tokens.
        seed: of the weights.

    Raises:
        ValueError: an unknown name, or a size below 1.
    """
    if name not in LANGUAGE:
        raise ValueError(f"unknown language model {name!r}; known: {', '.join(LANGUAGE)}")
    for key, value in (("vocabulary", vocabulary), ("context", context)):
        if value < 1:
            raise ValueError(f"language model {name}: {key} is {value}; it must be at least 1")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: that would also reseed the GPUs.
        torch.default_generator.manual_seed(seed)
        return LANGUAGE[name].build(vocabulary, context)


def count_text_parameters(name: str, positions: bool = True) -> int:
    """Counts the parameters of a row of LANGUAGE, without memory for them.

    Args:
        name: a key of LANGUAGE.
        positions: count the learned positions (`wpe`). nanoGPT's printed numbers leave them out.
    """
    with torch.device("meta"):
        model = LANGUAGE[name].build()
    total = sum(p.numel() for p in model.parameters())
    return total if positions else total - model.wpe.weight.numel()
