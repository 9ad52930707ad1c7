"""Saliency video: an animation of each frame beside the last layer's map of it.

Source: the videos of Caron et al. 2021 (DINO) and `video_generation.py` of facebookresearch/dino at
7c446df. Departures: frames are resized to whole patches, not cropped; the mask of 60 % of the mass
is drawn too; the brightness of maps is scaled by a decaying maximum over frames, to avoid flicker.

Shape legend: h heads · H×W patches · S, s height, width in pixels · C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vitrail.data.decode.frames import Frame, Frames
from vitrail.data.views.preparation import Preparation
from vitrail.encoder import Encoder
from vitrail.evals.patches.saliency import (
    mark,
    mass_mask,
    pixel_maps,
    token_backbone,
    whole_patches,
)

FORMATS = (".gif", ".webp")
MAX_PIXELS = 2**28  # of the whole animation, which Pillow keeps in memory: 0.8 GB as RGB
MAX_PATCHES = 16384  # of a frame: 1024 × 1024 pixels at a patch of 8
FPS = 12.5
LEAST_SIDE = 240  # pixels; smaller frames are enlarged
GAP = 8  # pixels between the three pictures
MAP_COLOURS = 96  # of a GIF's 256
BRIGHTNESS_DECAY = 0.9  # per frame, of the value that is drawn brightest


@dataclass(frozen=True)
class Written:
    """The result of `saliency_video`.

    Attributes:
        path: path of the animation.
        frames: number of frames drawn.
        skipped: (name, reason) of each frame that was not drawn.
        cut: true if the animation reached MAX_PIXELS, and later frames were not read.
    """

    path: Path
    frames: int
    skipped: list[tuple[str, str]]
    cut: bool


def saliency_video(
    path: str | Path,
    frames: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    head: int | None = None,
    fps: float | None = None,
    device: str = "cpu",
    preparation: Preparation | None = None,
) -> Written:
    """Writes an animation: each frame, its map, and the patches that hold 60 % of the map's mass.

    Frames are not cropped. A frame that cannot be used, or whose shape differs from the first, is
    skipped and listed.

    Args:
        path: a run folder, or a file of weights.
        frames: a folder of images or an animated file (`Frames`).
        out: FILE.gif or FILE.webp.
        size: pixels of a frame's short side, rounded down to whole patches; None for the
            encoder's own.
        head: number of the head, from 1; None for the average over heads.
        fps: frames per second, above 0 and at most 100; None for the rate of the file, or 12.5 if
            it has none.
        device: torch device of the encoder.
        preparation: changes to how images are prepared, for weights that do not say it.

    Raises:
        ValueError: another suffix, a backbone without tokens, a head that does not exist, frames
            with too many patches, or no frame that can be read.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out}: the suffix must be {' or '.join(FORMATS)}")
    if fps is not None and not 0 < fps <= 100:
        raise ValueError(f"fps is {fps}; it must be above 0 and at most 100")
    encoder = Encoder.load(path, device, preparation)
    side = whole_patches(encoder, size or encoder.preprocess.size, "saliency")
    source = Frames(frames, encoder.channels)
    drawing = _Drawing(encoder, side, head)
    source = Frames(frames, encoder.channels)
    pictures = drawing.sheets(source)
    first = next(pictures, None)
    if first is None:
        bad = source.bad + drawing.skipped
        why = f" (the first: {bad[0][0]}: {bad[0][1]})" if bad else ""
        raise ValueError(f"frames: none of {source.path} can be drawn{why}")
    rate = 1000 / fps if fps else drawing.duration or 1000 / FPS
    out.parent.mkdir(parents=True, exist_ok=True)
    _save(chain([first], pictures), round(rate), out)
    return Written(out, drawing.drawn, source.bad + drawing.skipped, drawing.cut)


@dataclass
class _Drawing:
    """Draws frames one at a time, with the state that later frames depend on.

    Attributes:
        encoder: encoder with a token backbone.
        side: pixels of a frame's short side, whole patches.
        head: number of the head to draw, from 1; None for the average.
        drawn: number of frames drawn.
        cut: true once MAX_PIXELS is reached.
        duration: duration of the first frame in ms, if known.
        skipped: (name, reason) of each frame that was not drawn.
        shape: height and width of the first frame in pixels.
        brightest: decaying maximum of the maps.
    """

    encoder: Encoder
    side: int
    head: int | None
    drawn: int = 0
    cut: bool = False
    duration: float | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    brightest: float = 0.0

    def sheets(self, frames: Frames) -> Iterator[Image.Image]:
        """Yields a picture of each usable frame, up to MAX_PIXELS in all."""
        pixels = 0
        for frame in frames:
            if pixels > MAX_PIXELS:
                self.cut = True
                return
            if self._fits(frame):
                picture = self._picture(frame.image)
                pixels += picture.width * picture.height
                self.drawn += 1
                yield picture

    def _fits(self, frame: Frame) -> bool:
        """Returns true if the frame has the first frame's shape and not too many patches."""
        shape = tuple(frame.image.shape[1:])
        height, width = self._size(shape)
        patch = token_backbone(self.encoder, "saliency").patch_size
        if height * width > MAX_PATCHES * patch**2:
            reason = f"at {height} x {width} pixels it has more than {MAX_PATCHES:,} patches"
            self.skipped.append((frame.id, f"{reason}; choose a smaller size"))
            return False
        if not self.shape:
            self.shape, self.duration = shape, frame.duration
        if shape != self.shape:
            here, first = (f"{y} x {x}" for y, x in (shape, self.shape))
            self.skipped.append((frame.id, f"it is of {here} pixels, and the first of {first}"))
        return shape == self.shape

    def _size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns (height, width) of a frame as resized: whole patches, the short side `side`."""
        patch = token_backbone(self.encoder, "saliency").patch_size
        scale = self.side / min(shape)
        height, width = (max(1, round(length * scale / patch)) * patch for length in shape)
        return height, width

    def _picture(self, image: UInt8[Tensor, "C y x"]) -> Image.Image:
        """Returns the frame, its map and the masked frame side by side."""
        own, size = self.encoder.preprocess, self._size(tuple(image.shape[1:]))
        pixels_CSs = own.stretched(image, size)
        map_HW = self._map(pixels_CSs)
        mean, std = (torch.tensor(v)[:, None, None] for v in (own.mean, own.std))
        colours_CSs = (pixels_CSs * std + mean).clamp(0, 1)
        frame_SsC = np.broadcast_to(colours_CSs.permute(1, 2, 0).numpy(), (*size, 3))
        self.brightest = max(float(map_HW.max()), BRIGHTNESS_DECAY * self.brightest, 1e-12)
        seen_SsC = mark(frame_SsC, mass_mask(map_HW))
        larger = -(-LEAST_SIDE // min(size))  # a whole factor, to stay sharp
        height, width = (larger * length for length in size)
        sheet = Image.new("RGB", (3 * width + 2 * GAP, height))
        heat_HWC = matplotlib.colormaps["magma"](map_HW / self.brightest)[..., :3]
        smooth, blocks = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
        parts = ((frame_SsC, blocks), (heat_HWC, smooth), (seen_SsC, blocks))
        for i, (part, way) in enumerate(parts):
            drawn = Image.fromarray((255 * part).round().astype(np.uint8))
            sheet.paste(drawn.resize((width, height), way), (i * (width + GAP), 0))
        return sheet

    def _map(self, pixels: Float[Tensor, "C S s"]) -> Float[np.ndarray, "H W"]:
        """Returns the map of the chosen head, or the average over heads."""
        maps_hHW = pixel_maps(self.encoder, pixels[None])[0]
        if self.head is None:
            return maps_hHW.mean(0)
        if not 1 <= self.head <= len(maps_hHW):
            raise ValueError(f"head is {self.head}; the last layer has heads 1 to {len(maps_hHW)}")
        return maps_hHW[self.head - 1]


def _save(pictures: Iterator[Image.Image], duration: int, path: Path) -> None:
    """Writes an endless animation, whole or not at all.

    Args:
        pictures: frames in order.
        duration: duration of each frame in ms.
        path: .gif or .webp.
    """
    temporary = path.with_name(f".{path.name}.writing")
    if path.suffix.lower() == ".gif":
        pictures = map(_in_few_colours, pictures)
    try:
        next(pictures).save(
            temporary,
            format=path.suffix[1:].upper(),
            save_all=True,
            append_images=pictures,
            duration=duration,
            loop=0,
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _in_few_colours(sheet: Image.Image) -> Image.Image:
    """Reduces a picture to a GIF's 256 colours, MAP_COLOURS of them for the map's smooth shades."""
    own = sheet.quantize(256 - MAP_COLOURS).getpalette() or []
    scale = matplotlib.colormaps["magma"](np.linspace(0, 1, MAP_COLOURS))[:, :3]
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        own[: 3 * (256 - MAP_COLOURS)] + (255 * scale).round().astype(int).ravel().tolist()
    )
    return sheet.quantize(palette=palette)
