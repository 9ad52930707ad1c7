"""Changes to the weights of a layout besides new names.

Shape legend: D features · R registers · n tokens with positions · h heads of p features.
"""

import re

import torch

from vitrail.interop.read.weights_file import Weights


def adapt_timm(weights: Weights) -> Weights:
    """Adapts timm's positions and gated MLPs.

    If registers have positions, these are added to them. If the class token has none, it gets a
    zero. An `fc1` with two rows for each column of `fc2` is SwiGLU's W12.
    """
    adapted = dict(weights)
    positions, registers = weights.get("pos_embed"), weights.get("register_tokens")
    if positions is not None and positions.ndim == 3:
        n, n_registers = positions.shape[1], 0 if registers is None else registers.shape[1]
        if _is_square(n):
            adapted["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        elif registers is not None and _is_square(n - 1 - n_registers):
            of_class, of_registers, of_patches = positions.split(
                [1, n_registers, n - 1 - n_registers], dim=1
            )
            adapted["register_tokens"] = registers + of_registers
            adapted["pos_embed"] = torch.cat([of_class, of_patches], dim=1)
    first, second = weights.get("blocks.0.mlp.fc1.weight"), weights.get("blocks.0.mlp.fc2.weight")
    if first is not None and second is not None and first.shape[0] == 2 * second.shape[-1]:
        gated = {"fc1": "w12", "fc2": "w3"}
        pattern = re.compile(r"(blocks\.\d+\.mlp)\.(fc1|fc2)\.(\w+)")
        return {
            pattern.sub(lambda m: f"{m[1]}.{gated[m[2]]}.{m[3]}", key): value
            for key, value in adapted.items()
        }
    return adapted


def adapt_jax(weights: Weights) -> Weights:
    """Adapts JAX's kernels (inputs × outputs, an axis for heads) and convolutions (HWIO)."""
    adapted = dict(weights)
    for key, value in weights.items():
        if key.endswith("attn.qkv.weight") and value.ndim == 3:  # [D, h, p]
            adapted[key] = value.flatten(1).t()
        elif key.endswith("attn.proj.weight") and value.ndim == 3:  # [h, p, D]
            adapted[key] = value.flatten(0, 1).t()
        elif key == "patch_embed.proj.weight" and value.ndim == 4:
            adapted[key] = value.permute(3, 2, 0, 1)
    return adapted


def adapt_swin(weights: Weights) -> Weights:
    """Moves the downsampling from the end of a stage to the start of the next, as in timm."""
    if not any(key.startswith("layers.0.downsample.") for key in weights):
        return weights
    pattern = re.compile(r"layers\.(\d+)\.(downsample\..+)")
    return {
        pattern.sub(lambda m: f"layers.{int(m[1]) + 1}.{m[2]}", key): value
        for key, value in weights.items()
    }


def settle_biases(weights: Weights) -> Weights:
    """Gives a ViT's linear maps either all of their biases or none.

    Layers without biases of `qkv`, or of all other maps, get zeros there, if they have other biases
    that are not zero. Otherwise biases of zeros are removed. Biases that only some layers lack are
    left unchanged.
    """
    linear = re.compile(r"blocks\.\d+\.(?:attn\.(qkv|proj)|mlp\.(?:fc1|fc2|w12|w3))\.weight")
    matches = [match for key in weights if (match := linear.fullmatch(key))]
    of_qkv = [m[0].removesuffix("weight") + "bias" for m in matches if m[1] == "qkv"]
    of_others = [m[0].removesuffix("weight") + "bias" for m in matches if m[1] != "qkv"]
    lacking = [keys for keys in (of_qkv, of_others) if not any(key in weights for key in keys)]
    if not lacking:
        return weights
    present = [key for key in (*of_qkv, *of_others) if key in weights]
    if not any(weights[key].any() for key in present):
        return {key: value for key, value in weights.items() if key not in present}
    filled = {
        key: weights[key.removesuffix("bias") + "weight"]
        .flatten(1)
        .new_zeros(len(weights[key.removesuffix("bias") + "weight"]))
        for keys in lacking
        for key in keys
    }
    return {**weights, **filled}


def _is_square(n: int) -> bool:
    return n > 0 and round(n**0.5) ** 2 == n
