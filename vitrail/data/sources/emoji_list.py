"""Unicode's list of emoji (emoji-test.txt, UTS #51), and which of them look alike."""

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TEST_SHARE = 1 / 5

# Codepoints ; status # the emoji itself, the version that brought it (since list 12.1), its name
_LINE = re.compile(
    r"(?P<points>[0-9A-F ]+?) *; *(?P<status>[a-z-]+) *# \S+ (E[\d.]+ )?(?P<name>.+)"
)
_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))


class Emoji(NamedTuple):
    """text: one or more codepoints, shown as one picture. The rest as Unicode names them."""

    text: str
    name: str
    group: str
    subgroup: str


def parse_emoji(lines: Iterable[str]) -> list[Emoji]:
    """The fully-qualified emoji of an emoji-test.txt, in order, but for variants of skin tone.

    Raises:
        ValueError: the line that is not of the format.
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


# What tells the members of a family apart. Wrong guesses only make families larger.
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
    """The name without what varies within a family of emoji that look nearly alike.

    Left out: sex, age, the members of a family or couple and a person's hair (what follows a
    colon), direction, colour, size, plural, open or closed, the phase of the moon, the hour of a
    clock, the digit of a keycap. "woman judge" and "judge" have one key, as have "blue heart" and
    "red heart". Flags of countries ("flag: Peru") are a family each. A name that holds nothing
    else stays as it is.
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
    """A number for each emoji; the same one where keys or pictures are equal, however indirectly.

    Fonts draw some emoji alike whose names do not tell: the flags of Norway and Bouvet Island.
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
    """(train, test): positions in order, whole families on one side, TEST_SHARE of each group.

    A family belongs to the group of its first member. Families enter the test side in the order
    of a hash of their first key, where they still fit, so that a newer list or font moves few.
    """
    members: dict[int, list[int]] = {}
    for position, family in enumerate(families):
        members.setdefault(family, []).append(position)
    by_group: dict[str, list[list[int]]] = {}
    for family_members in members.values():
        by_group.setdefault(groups[family_members[0]], []).append(family_members)
    test: set[int] = set()
    for group_families in by_group.values():
        room = round(sum(map(len, group_families)) * TEST_SHARE)
        for family_members in sorted(group_families, key=lambda m: _hash(keys[m[0]])):
            if len(family_members) <= room:
                room -= len(family_members)
                test.update(family_members)
    return [i for i in range(len(groups)) if i not in test], sorted(test)


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
