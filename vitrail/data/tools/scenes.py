"""Synthetic scenes with exact masks in COCO's format: textured objects on a textured ground.

For testing detection and segmentation without COCO. Every scene is a pure function of (seed,
index). Objects neither touch nor leave the picture, and each has a texture and two colours of its
own, so the objects are unambiguous; their edges are hard, so masks are exact. A folder of them:

    images/000001.png ...       RGB, square
    annotations.json            COCO's "instances": images, annotations, categories

Masks are COCO's uncompressed run lengths, which every COCO tool reads. A category is a shape.

Shape legend: S pixels a side · M objects · K = M + 1, the ground and the objects · G patches a
side · D features.
"""

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image
from scipy import ndimage

from vitrail.atomic import write_atomically
from vitrail.nn.random import philox

Random = np.random.Generator

SHAPES = ("ellipse", "polygon", "blob")
TEXTURES = ("stripes", "checks", "spots", "marble")
RADII = (0.11, 0.24)  # of an object, in sides of the picture
TRIES = 200  # places tried for objects


@dataclass(frozen=True)
class Layout:
    """The layout of scenes.

    Attributes:
        size: side of the picture, in pixels, at least 32.
        least: smallest number of objects of a scene, at least 1.
        most: largest number of objects of a scene.
        gap: pixels between any two objects, and between an object and the border; from 1 to an
            eighth of the size.
    """

    size: int = 240
    least: int = 1
    most: int = 3
    gap: int = 12

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"scenes: size is {self.size} pixels; it must be at least 32")
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"scenes: from {self.least} to {self.most} objects; it must be from 1 or more, "
                "and the least not above the most"
            )
        if not 1 <= self.gap <= self.size // 8:
            raise ValueError(
                f"scenes: gap is {self.gap} pixels; it must be from 1 to {self.size // 8}, an "
                "eighth of the size"
            )


@dataclass(frozen=True)
class Scene:
    """A picture and its objects.

    Attributes:
        image: uint8, RGB.
        masks: of each object, disjoint.
        shapes: category of each object, in SHAPES.
    """

    image: UInt8[np.ndarray, "3 S S"]
    masks: Bool[np.ndarray, "M S S"]
    shapes: list[str]


def make_scene(index: int, seed: int = 0, layout: Layout | None = None) -> Scene:
    """Returns scene `index` of a seed.

    It has at least one object, and fewer than `layout.least` only if there was no place for more.
    """
    layout = layout or Layout()
    random = philox(seed, "scenes", index)
    masks, shapes = _objects(random, layout)
    hues = (random.random() + np.arange(len(masks) + 1) / (len(masks) + 1)) % 1
    picture_SSc = _texture(random, layout.size, hues[0], quiet=True)
    for mask_SS, hue in zip(masks, hues[1:], strict=True):
        painted_SSc = _texture(random, layout.size, hue) * _shading(mask_SS)[..., None]
        picture_SSc = np.where(mask_SS[..., None], painted_SSc, picture_SSc)
    image = (255 * np.clip(picture_SSc, 0, 1)).round().astype(np.uint8)
    return Scene(np.ascontiguousarray(image.transpose(2, 0, 1)), np.stack(masks), shapes)


def ideal_features(
    scene: Scene, grid: int, noise: float = 1.0, seed: int = 0, dim: int = 384
) -> Float32[np.ndarray, "{grid} {grid} {dim}"]:
    """Returns the patch features of a perfect encoder, for tests of the code after the encoder.

    The ground and every object have a random direction of their own. A patch is their mean,
    weighted by the share of its pixels that each has, plus Gaussian noise.

    Args:
        scene: the picture and its objects.
        grid: G, which must divide the picture's size.
        noise: its standard deviation; that of the directions' entries is 1, so two patches of one
            object have a cosine of 1 / (1 + noise²).
        seed: of the directions and the noise.
        dim: D, number of features.

    Raises:
        ValueError: a grid that does not divide the size.
    """
    count, side, _ = scene.masks.shape
    if grid < 1 or side % grid:
        raise ValueError(f"scenes: a grid of {grid} patches does not divide {side} pixels")
    random = philox(seed, "ideal features", 0)
    ground_1SS = ~scene.masks.any(0, keepdims=True)
    parts = np.concatenate([ground_1SS, scene.masks]).astype(np.float64)
    shares_KGG = parts.reshape(count + 1, grid, side // grid, grid, side // grid).mean((2, 4))
    directions_KD = random.standard_normal((count + 1, dim))
    clean_GGD = np.einsum("kyx,kd->yxd", shares_KGG, directions_KD)
    return (clean_GGD + noise * random.standard_normal(clean_GGD.shape)).astype(np.float32)


def write_scenes(
    folder: str | Path, count: int, seed: int = 0, layout: Layout | None = None
) -> Path:
    """Writes `count` scenes as a COCO-format folder and returns the path of annotations.json.

    A scene of 240 pixels takes about 0.1 s and 90 KB.

    Args:
        folder: empty, or one that does not exist.
        count: number of scenes, at least 1.
        seed: of the scenes.
        layout: of every scene.

    Raises:
        ValueError: no scenes, or a folder that holds something already.
    """
    folder = Path(folder)
    if count < 1:
        raise ValueError(f"scenes: count is {count}; it must be at least 1")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"scenes: {folder} is not empty; name a folder that is new")
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = make_scene(index, seed, layout)
        name = f"{index + 1:06d}.png"
        Image.fromarray(scene.image.transpose(1, 2, 0)).save(folder / "images" / name)
        height, width = scene.image.shape[1:]
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for mask, shape in zip(scene.masks, scene.shapes, strict=True):
            row = {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append(row | {"category_id": SHAPES.index(shape) + 1} | _described(mask))
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES, start=1)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    write_atomically(folder / "annotations.json", json.dumps(whole) + "\n")
    return folder / "annotations.json"


def _described(mask: Bool[np.ndarray, "S S"]) -> dict[str, Any]:
    """Returns COCO's fields of an object: mask, box [x, y, width, height] and area in pixels."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1]
    return {
        "segmentation": run_lengths(mask),
        "bbox": [int(x) for x in box],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, list[int]]:
    """Returns COCO's uncompressed code: lengths of runs down the columns, absent ones first."""
    column = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(column, prepend=False)) if column.size else np.zeros(0, int)
    counts = np.diff(np.concatenate([[0], edges, [column.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _objects(random: Random, layout: Layout) -> tuple[list[np.ndarray], list[str]]:
    """Returns masks that are the gap apart, and their shapes."""
    side, wanted = layout.size, int(random.integers(layout.least, layout.most + 1))
    # How far each pixel is from the border or from the nearest object so far.
    free_SS = ndimage.distance_transform_edt(np.pad(np.ones((side, side)), 1))[1:-1, 1:-1]
    masks: list[np.ndarray] = []
    shapes: list[str] = []
    for attempt in range(TRIES):
        # Later attempts look for places of smaller objects.
        radius = side * random.uniform(RADII[0], RADII[1] - 0.13 * attempt / TRIES)
        shape = SHAPES[random.integers(len(SHAPES))]
        centre = random.uniform(0, side, 2)
        if free_SS[tuple(centre.astype(int))] < layout.gap + radius / 2:  # it cannot fit
            continue
        mask_SS = _inside(random, shape, side, centre, radius)
        if not mask_SS.any() or free_SS[mask_SS].min() <= layout.gap:
            continue
        masks.append(mask_SS)
        shapes.append(shape)
        free_SS = np.minimum(free_SS, ndimage.distance_transform_edt(~mask_SS))
        if len(masks) == wanted:
            break
    if not masks:  # no place was found; the middle always is one
        middle = np.full(2, side / 2)
        masks, shapes = [_inside(random, "ellipse", side, middle, 0.2 * side)], ["ellipse"]
    return masks, shapes


def _inside(
    random: Random, shape: str, side: int, centre: Float[np.ndarray, "2"], radius: float
) -> Bool[np.ndarray, "S S"]:
    """Returns the pixels of a shape: within a radius that depends on the direction."""
    y_SS, x_SS = np.indices((side, side)) + 0.5 - centre[:, None, None]
    angle_SS = np.arctan2(y_SS, x_SS) + random.uniform(0, 2 * np.pi)
    if shape == "ellipse":
        ratio = random.uniform(0.6, 1)
        reach_SS = ratio / np.hypot(ratio * np.cos(angle_SS), np.sin(angle_SS))
    elif shape == "polygon":  # a regular one: the distance of its nearest side
        sector = 2 * np.pi / random.integers(3, 7)
        reach_SS = np.cos(sector / 2) / np.cos(angle_SS % sector - sector / 2)
    else:
        waves_k = np.arange(2, 6)
        phases_k = random.uniform(0, 2 * np.pi, len(waves_k))
        sizes_k = random.uniform(0.05, 0.3, len(waves_k)) / np.sqrt(waves_k)
        waves_SSk = np.cos(angle_SS[..., None] * waves_k + phases_k)
        reach_SS = (1 + waves_SSk @ sizes_k) / (1 + sizes_k.sum())
    return np.hypot(y_SS, x_SS) < radius * reach_SS


def _texture(
    random: Random, side: int, hue: float, quiet: bool = False
) -> Float[np.ndarray, "S S 3"]:
    """Returns two colours of about one hue, mixed by a pattern; quiet: pale, low in contrast."""
    kind = TEXTURES[random.integers(len(TEXTURES))]
    angle, period = random.uniform(0, np.pi), side * random.uniform(0.045, 0.08)
    y_SS, x_SS = np.indices((side, side)) + random.uniform(0, side, (2, 1, 1))
    turned_SS = np.cos(angle) * x_SS + np.sin(angle) * y_SS
    across_SS = np.cos(angle) * y_SS - np.sin(angle) * x_SS
    first_SS, second_SS = (np.sin(2 * np.pi * u / period) for u in (turned_SS, across_SS))
    noise_SS = ndimage.gaussian_filter(
        random.standard_normal((side, side)), period / 3, mode="wrap"
    )
    noise_SS /= noise_SS.std() + 1e-12
    field_SS = {
        "stripes": 3 * first_SS,
        "checks": 6 * first_SS * second_SS,
        "spots": 4 * (first_SS + second_SS - 0.9),
        "marble": 2 * noise_SS,
    }[kind]
    mix_SS1 = 1 / (1 + np.exp(-field_SS - 0.4 * noise_SS))[..., None]
    saturation, values = (0.22, (0.62, 0.8)) if quiet else (0.75, (0.55, 0.98))
    one, other = (
        np.array(colorsys.hsv_to_rgb(float(hue + shift) % 1, saturation, value))
        for shift, value in zip((0, 0.06), values, strict=True)
    )
    grain_SS1 = 0.012 * random.standard_normal((side, side, 1))
    return one + (other - one) * mix_SS1 + grain_SS1


def _shading(mask: Bool[np.ndarray, "S S"]) -> Float[np.ndarray, "S S"]:
    """Returns factors that darken an object towards its edge, as if it were round."""
    depth_SS = ndimage.distance_transform_edt(mask)
    return 0.6 + 0.45 * np.sqrt(depth_SS / max(float(depth_SS.max()), 1e-12))
