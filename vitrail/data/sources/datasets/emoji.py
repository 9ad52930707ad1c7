"""Emoji as a picture drawn by a font, with their Unicode names as captions. No download.

The pictures are of Noto Color Emoji, the names of Unicode's emoji-test.txt; Debian packages both.
"""

import logging
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

from vitrail.data.contract import Source
from vitrail.data.sources.emoji_list import (
    Emoji,
    family_key,
    find_families,
    parse_emoji,
    split_families,
)
from vitrail.data.subset import MemorySource

logger = logging.getLogger(__name__)

DEBIAN_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
DEBIAN_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
FONT_SIZE = 109  # pixels per em; the font has bitmaps (136 × 128) of this size alone
SIDE = 64  # pixels, of an image

_REMEDY = (
    "install Debian's packages fonts-noto-color-emoji and unicode-data, or give a folder that "
    f"holds {DEBIAN_FONT.name} and {DEBIAN_LIST.name} as emoji:DIR"
)


def open_emoji(rest: str, split: Literal["train", "test"], channels: int | None) -> Source:
    """`emoji[:subgroups][:DIR]`: a 64 × 64 picture on white of each emoji, captioned by its name.

    Each fully-qualified emoji that the font has a picture for, but for variants of skin tone.
    Classes: Unicode's nine groups ("Food & Drink"); with `subgroups` its hundred subgroups
    ("food fruit"), of which some are in one split alone. Both have the same splits: a fifth of
    each group is for testing, and families by name (`emoji_list.family_key`), and equal
    pictures, are never parted. An id is the name. Drawing takes seconds; it is done once for
    both splits, and the result (23 MB) kept.

    Raises:
        ValueError: a file that is missing, damaged or of another kind, a Pillow without Raqm, or
            channels other than 1 (luma) and 3.
    """
    spec = f"emoji:{rest}" if rest else "emoji"
    if channels not in (None, 1, 3):
        raise ValueError(f"{spec}: channels is {channels}; emoji have 1 (grey) or 3 (RGB)")
    word, _, after = rest.partition(":")
    by_subgroup = word == "subgroups"
    drawn = _draw_list(*_find_files(after if by_subgroup else rest))
    train, test = _split(drawn)
    chosen = train if split == "train" else test
    if not chosen:
        raise ValueError(f"{spec}: {len(drawn.emoji)} emoji are too few for a {split} split")
    labels = [e.subgroup.replace("-", " ") if by_subgroup else e.group for e in drawn.emoji]
    classes = list(dict.fromkeys(labels))
    names = [drawn.emoji[i].name for i in chosen]
    images = drawn.images[torch.tensor(chosen)]
    source = MemorySource(
        spec,
        _luma(images) if channels == 1 else images,
        torch.tensor([classes.index(labels[i]) for i in chosen]),
        classes,
        channels,
        texts=names,
        ids=names,
    )
    # Of the hundred, one (the flags of countries) holds an eighth of all emoji.
    source.metric = "mean_per_class" if by_subgroup else "accuracy"
    return source


class _Drawn(NamedTuple):
    emoji: list[Emoji]
    images: UInt8[Tensor, "N 3 64 64"]


def _find_files(folder: str) -> tuple[Path, Path]:
    """The font and the list. ValueError where one is missing."""
    paths = (DEBIAN_FONT, DEBIAN_LIST)
    if folder:
        directory = Path(folder).expanduser()
        paths = (directory / DEBIAN_FONT.name, directory / DEBIAN_LIST.name)
    for path in paths:
        if not path.is_file():
            raise ValueError(f"emoji: there is no file {path}; {_REMEDY}")
    return paths


@lru_cache(maxsize=1)
def _draw_list(font_path: Path, list_path: Path) -> _Drawn:
    """All emoji of the list that the font has a picture for."""
    try:
        listed = parse_emoji(list_path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise ValueError(f"emoji: {list_path} cannot be read ({error}); {_REMEDY}") from error
    font = _load_font(font_path)
    one_glyph = font.getlength("\N{GRINNING FACE}")  # every glyph of the font is as wide
    # What the font draws for what it does not know: nothing, a box, or a flag with a question mark.
    unknown = {_draw(font, text).tobytes() for text in (" ", "\U0010ffff", "\U0001f1fd" * 2)}
    emoji, images = [], []
    for entry in listed:
        if font.getlength(entry.text) != one_glyph:  # an unknown sequence: its parts side by side
            continue
        image = _draw(font, entry.text)
        if image.tobytes() not in unknown:
            emoji.append(entry)
            images.append(np.asarray(image))
    if not emoji:
        raise ValueError(
            f"emoji: {font_path} has a picture for none of the {len(listed)} emoji of {list_path}; "
            f"Noto Color Emoji of bitmaps (CBDT) is needed; {_REMEDY}"
        )
    logger.debug("%s has pictures for %d of %d emoji", font_path, len(emoji), len(listed))
    return _Drawn(emoji, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous())


def _load_font(path: Path) -> ImageFont.FreeTypeFont:
    if not features.check("raqm"):  # without it a family is drawn as its members, a flag as letters
        raise ValueError(
            "emoji: this Pillow cannot join codepoints into one picture, for which it needs Raqm; "
            "install FriBidi (Debian's libfribidi0), which Pillow's own wheels lack"
        )
    try:
        # By its bytes: in place of a damaged file Pillow would look for an installed one so named.
        file = BytesIO(path.read_bytes())
        return ImageFont.truetype(file, FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise ValueError(
            f"emoji: {path} is no font with bitmaps of {FONT_SIZE} pixels ({error}); {_REMEDY}"
        ) from error


def _draw(font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    """Centred on a white square, then made smaller (bicubic, antialiased) with its aspect kept."""
    width, height = 136, 128  # of the font's bitmaps; asking for each would decode it once more
    canvas = Image.new("RGB", (width, width), "white")
    ImageDraw.Draw(canvas).text((0, (width - height) // 2), text, font=font, embedded_color=True)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _split(drawn: _Drawn) -> tuple[list[int], list[int]]:
    keys = [family_key(emoji.name) for emoji in drawn.emoji]
    pictures = [image.numpy().tobytes() for image in drawn.images]
    groups = [emoji.group for emoji in drawn.emoji]
    return split_families(groups, keys, find_families(keys, pictures))


def _luma(images: UInt8[Tensor, "N 3 64 64"]) -> UInt8[Tensor, "N 1 64 64"]:
    """Grey as of image files (`decode.from_pil`)."""
    grey = [Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in grey]))[:, None]
