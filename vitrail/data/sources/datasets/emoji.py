"""Emoji as pictures drawn from a font, with their Unicode names as captions. No download.

The pictures are Noto Color Emoji's, the names those of Unicode's emoji-test.txt; Debian packages
both.
"""

import hashlib
import logging
import re
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vitrail.data.contract import Source, Split
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.memory import MemorySource
from vitrail.data.sources.spec import read_regular

TEST_SHARE = 1 / 5

# Codepoints ; status # the emoji itself, the version that brought it (since list 12.1), its name
_LINE = re.compile(
    r"(?P<points>[0-9A-F ]+?) *; *(?P<status>[a-z-]+) *# \S+ (E[\d.]+ )?(?P<name>.+)"
)
_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))


class Emoji(NamedTuple):
    """One emoji of Unicode's list.

    Attributes:
        text: one or more codepoints, shown as one picture.
        name: Unicode's name of it.
        group: Unicode's group, such as "Food & Drink".
        subgroup: Unicode's subgroup, such as "food-fruit".
    """

    text: str
    name: str
    group: str
    subgroup: str


def parse_emoji(lines: Iterable[str]) -> list[Emoji]:
    """Returns the fully-qualified emoji of an emoji-test.txt, without variants of skin tone.

    Raises:
        ValueError: a line is not of the format.
    """
    found = []
    headings = {"group": "", "subgroup": ""}
    for number, line in enumerate(map(str.strip, lines), 1):
        comment, _, heading = line.removeprefix("#").strip().partition(": ")
        if line.startswith("#") and comment in headings:
            headings[comment] = heading
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or not headings["group"]:
            raise ValueError(
                f"line {number}, {line[:60]!r}, is not as in Unicode's emoji-test.txt "
                "('1F600 ; fully-qualified # 😀 E1.0 grinning face', below a '# group: ' line)"
            )
        text = "".join(chr(int(point, 16)) for point in match["points"].split())
        if match["status"] == "fully-qualified" and _SKIN_TONES.isdisjoint(text):
            found.append(Emoji(text, match["name"], headings["group"], headings["subgroup"]))
    return found


# Words by which members of a family differ. Wrong guesses only make families larger.
_PEOPLE = "man men woman women person people boy girl child mr mrs mx santa"
_AGES = "old older"
_DIRECTIONS = "left right up down leftward rightward upward downward clockwise counterclockwise"
_COLOURS = "black blue brown green grey light orange pink purple red white yellow"
_SIZES = "large medium small low high"
_STATES = "open closed raised lowered not done new next last 1st 2nd 3rd"
_MOONS = "full first quarter waxing waning crescent gibbous"
_VARYING = frozenset(
    f"{_PEOPLE} {_AGES} {_DIRECTIONS} {_COLOURS} {_SIZES} {_STATES} {_MOONS} and s".split()
)
_COUNTERPARTS = {
    "mermaid": "merperson",
    "merman": "merperson",
    "princess": "prince",
    "older": "old",
    "unlocked": "locked",
}
_CLOCK = re.compile(r"\w+(-thirty| o’clock)")


def family_key(name: str) -> str:
    """Returns the name without the words that vary within a family of emoji with similar pictures.

    Left out: sex, age, the members of a family or couple and a person's hair (the words after a
    colon), direction, colour, size, plural, open or closed, the phase of the moon, the hour of a
    clock, the digit of a keycap. "woman judge" and "judge" have one key, as have "blue heart" and
    "red heart". Flags of countries ("flag: Peru") are a family each. A name of such words alone
    stays as it is.
    """
    lowered = name.lower()
    if lowered.startswith("flag: "):
        return lowered
    if _CLOCK.fullmatch(lowered):
        return "clock"
    if lowered.startswith("globe showing"):
        return "globe showing"
    words = [_singular(word) for word in re.findall(r"\w+", lowered.partition(": ")[0])]
    nobody = [word for word in words if word not in _PEOPLE.split()]
    kept = [word for word in nobody if word not in _VARYING]
    return " ".join(kept or nobody) or "person"


def _singular(word: str) -> str:
    word = _COUNTERPARTS.get(word, word)
    plural = len(word) > 3 and word not in _VARYING and not word.endswith("ss")
    return word.removesuffix("s") if plural else word


def find_families(keys: Sequence[str], pictures: Sequence[Hashable]) -> list[int]:
    """Returns a number for each emoji, the same for equal keys or pictures, however indirectly.

    Fonts draw some emoji of different names alike: the flags of Norway and Bouvet Island.
    """
    pairs = []
    for traits in (keys, pictures):
        first: dict[Hashable, int] = {}
        pairs += [(i, first.setdefault(trait, i)) for i, trait in enumerate(traits)]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(keys), len(keys)))
    return connected_components(links, directed=False)[1].tolist()


def split_families(
    groups: Sequence[str], keys: Sequence[str], families: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Returns the positions for training and for testing, in order, TEST_SHARE of each group.

    Families are not divided; each belongs to the group of its first member. Families enter the test
    side in the order of a hash of their first key, while they fit, so a newer list or font moves
    few.
    """
    members: dict[int, list[int]] = {}
    for position, family in enumerate(families):
        members.setdefault(family, []).append(position)
    by_group: dict[str, list[list[int]]] = {}
    for family_members in members.values():
        by_group.setdefault(groups[family_members[0]], []).append(family_members)
    test: set[int] = set()
    for group_families in by_group.values():
        left = round(sum(map(len, group_families)) * TEST_SHARE)
        for family_members in sorted(group_families, key=lambda m: _hash(keys[m[0]])):
            if len(family_members) <= left:
                left -= len(family_members)
                test.update(family_members)
    return [i for i in range(len(groups)) if i not in test], sorted(test)


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


logger = logging.getLogger(__name__)

DEBIAN_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
DEBIAN_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
FONT_SIZE = 109  # pixels per em; the font has bitmaps (136 × 128) of this size alone
SIDE = 64  # pixels, of an image

_REMEDY = (
    "install Debian's packages fonts-noto-color-emoji and unicode-data, or give a folder that "
    f"holds {DEBIAN_FONT.name} and {DEBIAN_LIST.name} as emoji:DIR"
)


def open_emoji(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `emoji[:subgroups][:DIR]`: a 64 × 64 picture on white of each emoji, and its name.

    It has each fully-qualified emoji that the font has a picture for, without variants of skin
    tone. Classes: Unicode's nine groups ("Food & Drink"); with `subgroups` its hundred subgroups
    ("food fruit"), of which some are in one split alone. Both have the same splits: a fifth of each
    group is for testing, and neither families by name (`family_key`) nor equal pictures are
    divided. An id is the name. Drawing takes seconds; it is done once for both splits, and the
    result (23 MB) stays in memory.

    Raises:
        ValueError: a file that is missing, damaged or of another kind, a Pillow without Raqm, or
            channels other than 1 (luma) and 3.
    """
    spec = f"emoji:{rest}" if rest else "emoji"
    choose_channels(spec, channels)
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
    # one of the hundred, the flags of countries, has an eighth of all emoji
    source.metric = "mean_per_class" if by_subgroup else "accuracy"
    return source


class _Drawn(NamedTuple):
    emoji: list[Emoji]
    images: UInt8[Tensor, "N 3 64 64"]


def _find_files(folder: str) -> tuple[Path, Path]:
    """Returns the font and the list. ValueError if one is missing."""
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
    """Draws all emoji of the list that the font has a picture for."""
    try:
        listed = parse_emoji(read_regular(list_path).decode().splitlines())
    except (OSError, ValueError) as error:
        raise ValueError(f"emoji: {list_path} cannot be read ({error}); {_REMEDY}") from error
    font = _load_font(font_path)
    one_glyph = font.getlength("\N{GRINNING FACE}")  # every glyph of the font is as wide
    # pictures of unknown text: nothing, a box, or a flag with a question mark
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
        # by its bytes: for a damaged file Pillow would search the installed fonts for its name
        file = BytesIO(read_regular(path))
        return ImageFont.truetype(file, FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise ValueError(
            f"emoji: {path} is no font with bitmaps of {FONT_SIZE} pixels ({error}); {_REMEDY}"
        ) from error


def _draw(font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    """Draws an emoji centred on a white square, scaled down (bicubic, antialiased)."""
    width, height = 136, 128  # of the font's bitmaps; measuring each would decode it once more
    canvas = Image.new("RGB", (width, width), "white")
    ImageDraw.Draw(canvas).text((0, (width - height) // 2), text, font=font, embedded_color=True)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _split(drawn: _Drawn) -> tuple[list[int], list[int]]:
    keys = [family_key(emoji.name) for emoji in drawn.emoji]
    pictures = [image.numpy().tobytes() for image in drawn.images]
    groups = [emoji.group for emoji in drawn.emoji]
    return split_families(groups, keys, find_families(keys, pictures))


def _luma(images: UInt8[Tensor, "N 3 64 64"]) -> UInt8[Tensor, "N 1 64 64"]:
    """Returns grey images, as `decode.image.from_pil` makes them."""
    grey = [Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in grey]))[:, None]
