"""Random weights in other people's layouts, written out key by key from the facts, §5."""

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

WIDTH, DEPTH, PATCH, GRID = 32, 3, 4, 4


def drawn(shapes: Shapes, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def norm(name: str, width: int = WIDTH) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def embeddings(width: int = WIDTH, patch: int = PATCH, grid: int = GRID) -> Shapes:
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }


def vit_block(name: str, width: int = WIDTH, scale: bool = False, swiglu: bool = False) -> Shapes:
    shapes = norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
    shapes |= linear(f"{name}.attn.qkv", 3 * width, width)
    shapes |= linear(f"{name}.attn.proj", width, width)
    if swiglu:
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        shapes |= linear(f"{name}.mlp.w12", 2 * hidden, width)
        shapes |= linear(f"{name}.mlp.w3", width, hidden)
    else:
        shapes |= linear(f"{name}.mlp.fc1", 4 * width, width)
        shapes |= linear(f"{name}.mlp.fc2", width, 4 * width)
    if scale:
        shapes |= {f"{name}.ls1.gamma": (width,), f"{name}.ls2.gamma": (width,)}
    return shapes


def dino_backbone(seed: int = 0) -> Weights:
    """DINO's `*_pretrain.pth`: a ViT without a head."""
    shapes = embeddings() | norm("norm")
    for i in range(DEPTH):
        shapes |= vit_block(f"blocks.{i}")
    return drawn(shapes, seed)


def dino_head(last: bool) -> Weights:
    shapes = linear("mlp.0", 16, WIDTH) | linear("mlp.2", 16, 16) | linear("mlp.4", 8, 16)
    if last:
        shapes |= {"last_layer.weight_g": (40, 1), "last_layer.weight_v": (40, 8)}
    return drawn(shapes, 99)


def dinov2(registers: int = 0, swiglu: bool = False) -> Weights:
    """The hub's flat layout."""
    shapes = embeddings() | norm("norm") | {"mask_token": (1, WIDTH)}
    if registers:
        shapes |= {"register_tokens": (1, registers, WIDTH)}
    for i in range(DEPTH):
        shapes |= vit_block(f"blocks.{i}", scale=True, swiglu=swiglu)
    return drawn(shapes)


def simdinov2() -> Weights:
    """The teacher: chunks of layers, absolute indices, four registers, a head."""
    return chunked(dinov2(registers=4)) | prefixed(dino_head(last=False), "dino_head.")


def dinov2_teacher(registers: int = 0) -> Weights:
    """The teacher of DINOv2's training code, whose head ends in prototypes."""
    return chunked(dinov2(registers)) | prefixed(dino_head(last=True), "dino_head.")


def chunked(flat: Weights) -> Weights:
    found = {}
    for key, value in flat.items():
        parts = key.split(".")
        chunk = ["blocks", str(int(parts[1]) // 2), *parts[1:]] if parts[0] == "blocks" else parts
        found[".".join(["backbone", *chunk])] = value
    return found


def mae() -> Weights:
    """Pretraining: the encoder, and a decoder of another width."""
    narrow = 16
    shapes = embeddings() | norm("norm")
    for i in range(DEPTH):
        shapes |= vit_block(f"blocks.{i}")
    shapes |= {"mask_token": (1, 1, narrow), "decoder_pos_embed": (1, 1 + GRID**2, narrow)}
    shapes |= linear("decoder_embed", narrow, WIDTH) | linear("decoder_pred", 3 * PATCH**2, narrow)
    return drawn(shapes | norm("decoder_norm", narrow) | vit_block("decoder_blocks.0", narrow))


def mssa_block(attention: str, dictionary: str) -> Shapes:
    shapes = norm(f"{attention}.norm") | norm(f"{dictionary}.norm")
    shapes |= {f"{attention}.fn.qkv.weight": (WIDTH, WIDTH)}
    return shapes | linear(f"{attention}.fn.to_out.0", WIDTH, WIDTH)


def crate(depth: int = DEPTH) -> Weights:
    pixels = 3 * PATCH**2
    shapes: Shapes = {"pos_embedding": (1, 1 + GRID**2, WIDTH), "cls_token": (1, 1, WIDTH)}
    shapes |= norm("to_patch_embedding.1", pixels) | linear("to_patch_embedding.2", WIDTH, pixels)
    shapes |= norm("to_patch_embedding.3") | norm("mlp_head.0") | linear("mlp_head.1", 10, WIDTH)
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        shapes |= mssa_block(f"{layer}.0", f"{layer}.1")
        shapes |= {f"{layer}.1.fn.weight": (WIDTH, WIDTH)}
    return drawn(shapes)


def crate_alpha() -> Weights:
    shapes: Shapes = {"pos_embedding": (1, 1 + GRID**2, WIDTH), "cls_token": (1, 1, WIDTH)}
    shapes |= {"conv1.weight": (WIDTH, 3, PATCH, PATCH), "conv1.bias": (WIDTH,)}
    shapes |= norm("mlp_head.0") | linear("mlp_head.1", 10, WIDTH)
    for i in range(DEPTH):
        layer = f"transformer.layers.{i}"
        shapes |= norm(f"{layer}.0.norm") | norm(f"{layer}.1.norm")
        shapes |= {f"{layer}.0.fn.{name}.weight": (WIDTH, WIDTH) for name in ("qkv", "to_out.0")}
        shapes |= {f"{layer}.1.fn.{name}": (WIDTH, 4 * WIDTH) for name in ("D", "D1")}
    return drawn(shapes)


def crate_alpha_jax(heads: int = 4) -> Weights:
    per_head = WIDTH // heads
    shapes: Shapes = {
        "params/embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "params/embedding/bias": (WIDTH,),
        "params/cls": (1, 1, WIDTH),
        "params/pos_embedding": (1, 1 + GRID**2, WIDTH),
        "params/encoder_norm/scale": (WIDTH,),
        "params/encoder_norm/bias": (WIDTH,),
        "params/head/kernel": (WIDTH, 10),
        "params/head/bias": (10,),
    }
    for i in range(DEPTH):
        block = f"params/Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        for which in (0, 1):
            shapes[f"{block}/LayerNorm_{which}/scale"] = (WIDTH,)
            shapes[f"{block}/LayerNorm_{which}/bias"] = (WIDTH,)
        shapes[f"{attention}/proj/kernel"] = (WIDTH, heads, per_head)
        shapes[f"{attention}/out/kernel"] = (heads, per_head, WIDTH)
        shapes[f"{block}/OvercompleteISTABlock_0/D"] = (WIDTH, 4 * WIDTH)
        shapes[f"{block}/OvercompleteISTABlock_0/D1"] = (WIDTH, 4 * WIDTH)
    return drawn(shapes)


def crate_mae() -> Weights:
    shapes = embeddings() | norm("norm") | {"mask_token": (1, 1, WIDTH)}
    shapes |= {"decoder_pos_embed": (1, 1 + GRID**2, WIDTH)} | norm("decoder_norm")
    shapes |= linear("decoder_embed", WIDTH, WIDTH) | linear("decoder_pred", 3 * PATCH**2, WIDTH)
    for i in range(DEPTH):
        encoder, decoder = f"blocks.{i}.layers.0", f"decoder_blocks.{i}.layers.0"
        shapes |= mssa_block(f"{encoder}.0", f"{encoder}.1")
        shapes |= {f"{encoder}.1.fn.weight": (WIDTH, WIDTH)}
        shapes |= mssa_block(f"{decoder}.1", f"{decoder}.0")
        shapes |= {f"{decoder}.0.fn.weight": (WIDTH, WIDTH)}
    return drawn(shapes)


def tost(heads: int = 2, patch: int = 16) -> Weights:
    """The published vision model, with the stem's batch norms and the head."""
    halvings = patch.bit_length() - 1
    widths = [3] + [WIDTH >> k for k in reversed(range(halvings))]
    shapes: Shapes = {"cls_token": (1, 1, WIDTH)}
    counters = {}
    for i in range(halvings):
        conv = f"patch_embed.proj.{2 * i}"
        shapes |= {f"{conv}.0.weight": (widths[i + 1], widths[i], 3, 3)}
        shapes |= norm(f"{conv}.1", widths[i + 1])
        shapes |= {f"{conv}.1.running_{x}": (widths[i + 1],) for x in ("mean", "var")}
        counters[f"{conv}.1.num_batches_tracked"] = torch.tensor(7)
    shapes |= {"pos_embeder.token_projection.weight": (WIDTH, 64, 1, 1)}
    shapes |= {"pos_embeder.token_projection.bias": (WIDTH,)}
    for i in range(DEPTH):
        block = f"blocks.{i}"
        shapes |= linear(f"{block}.attn.qkv", WIDTH, WIDTH) | {f"{block}.attn.temp": (heads, 1)}
        shapes |= linear(f"{block}.attn.to_out.0", WIDTH, WIDTH)
    for i in range(2):
        block = f"cls_attn_blocks.{i}"
        shapes |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= linear(f"{block}.attn.proj", WIDTH, WIDTH)
    for block in [f"blocks.{i}" for i in range(DEPTH)] + ["cls_attn_blocks.0", "cls_attn_blocks.1"]:
        shapes |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        shapes |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
        shapes |= {f"{block}.gamma1": (WIDTH,), f"{block}.gamma2": (WIDTH,)}
    weights = drawn(shapes | norm("norm") | linear("head", 10, WIDTH))
    variances = {key: value.abs() for key, value in weights.items() if "running_var" in key}
    return weights | variances | counters
