"""Tests of emoji: Unicode's list, families that are not divided, and the font's pictures."""

import re
from collections import Counter

import pytest
import torch
from PIL import features

from vitrail.data.sources.datasets import emoji as module
from vitrail.data.sources.datasets.emoji import (
    DEBIAN_FONT,
    DEBIAN_LIST,
    TEST_SHARE,
    family_key,
    find_families,
    parse_emoji,
    split_families,
)
from vitrail.data.sources.registry import open_source

LIST = """\
# emoji-test.txt
# group: Smileys & Emotion

# subgroup: face-hand
1F917                        ; fully-qualified     # 🤗 E1.0 smiling face with open hands
263A FE0F                    ; fully-qualified     # ☺️ smiling face
263A                         ; unqualified         # ☺ E0.6 smiling face
# Smileys & Emotion subtotal:  2

# group: People & Body
# subgroup: person-role
1F9D1 200D 2695 FE0F         ; fully-qualified     # 🧑‍⚕️ E12.1 health worker
1F9D1 1F3FB 200D 2695 FE0F   ; fully-qualified     # 🧑🏻‍⚕️ E12.1 health worker: light skin tone
1F468 200D 2695 FE0F         ; fully-qualified     # 👨‍⚕️ E4.0 man health worker
# group: Component
# subgroup: skin-tone
1F3FB                        ; component           # 🏻 E1.0 light skin tone
# group: Flags
# subgroup: country-flag
1F1E8 1F1EE                  ; fully-qualified     # 🇨🇮 E2.0 flag: Côte d’Ivoire
#EOF
"""


def test_the_list_is_parsed():
    found = parse_emoji(LIST.splitlines())
    assert [tuple(emoji)[1:] for emoji in found] == [
        ("smiling face with open hands", "Smileys & Emotion", "face-hand"),
        ("smiling face", "Smileys & Emotion", "face-hand"),  # older lists give no version
        ("health worker", "People & Body", "person-role"),
        ("man health worker", "People & Body", "person-role"),
        ("flag: Côte d’Ivoire", "Flags", "country-flag"),
    ]
    assert found[2].text == "\U0001f9d1\u200d\u2695\ufe0f"


@pytest.mark.parametrize("line", ["1F917 fully-qualified", "path,caption", "1F917 ; component #"])
def test_a_line_that_is_none_is_named(line):
    with pytest.raises(ValueError, match=f"line 2, {re.escape(repr(line))}, is not as in Unicode"):
        parse_emoji(["# group: Flags", line])
    with pytest.raises(ValueError, match="line 1"):  # no group above it
        parse_emoji(LIST.splitlines()[4:5])


FAMILIES = [
    ["judge", "man judge", "woman judge"],
    ["person: blond hair", "man: bald", "woman", "man", "person", "boy", "girl", "child"],
    ["men with bunny ears", "people with bunny ears"],
    ["old man", "old woman", "older person"],
    ["merman", "mermaid", "merperson"],
    ["prince", "princess"],
    ["kiss", "kiss: woman, man"],
    ["family", "family: man, woman, girl"],
    ["women holding hands", "woman and man holding hands"],
    ["backhand index pointing left", "backhand index pointing up"],
    ["left-facing fist", "right-facing fist"],
    ["leftwards hand", "rightwards hand"],
    ["up-right arrow", "down arrow"],
    ["magnifying glass tilted left", "magnifying glass tilted right"],
    ["red heart", "light blue heart"],
    ["black large square", "white medium-small square", "brown square"],
    ["waxing gibbous moon", "new moon", "crescent moon", "last quarter moon"],
    ["new moon face", "full moon face"],
    ["one o’clock", "twelve-thirty"],
    ["keycap: #", "keycap: 10"],
    ["musical note", "musical notes"],
    ["closed mailbox with raised flag", "open mailbox with lowered flag"],
    ["hourglass done", "hourglass not done"],
    ["globe showing Americas", "globe showing Europe-Africa"],
    ["locked", "unlocked"],
    ["speaker low volume", "speaker high volume"],
    ["flag: Peru"],
    ["flag: Chad"],
    ["grinning face"],
    ["grinning cat"],
    ["monkey face"],
    ["monkey"],
    ["man teacher"],
    ["glasses"],
    ["wine glass"],
]


def test_families_have_a_key_each():
    for family in FAMILIES:
        assert len({family_key(name) for name in family}) == 1, family
    keys = [family_key(family[0]) for family in FAMILIES]
    assert all(keys)
    assert len(set(keys)) == len(keys)


def test_families_join_by_key_or_picture():
    families = find_families(list("abcbde"), [b"1", b"2", b"1", b"3", b"4", b"5"])
    assert families[0] == families[2], "one picture"
    assert families[1] == families[3], "one key"
    assert len(set(families)) == 4
    chain = find_families(list("aabb"), [b"1", b"2", b"2", b"3"])
    assert set(chain) == {chain[0]}, "however indirectly"


def test_families_are_not_parted():
    groups = ["g"] * 40 + ["h"] * 20 + ["i"] * 2
    keys = [str(i // 2) if i < 40 else str(i) for i in range(62)]
    families = find_families(keys, list(range(62)))
    train, test = split_families(groups, keys, families)
    assert sorted(train + test) == list(range(62))
    assert {keys[i] for i in train}.isdisjoint(keys[i] for i in test)
    assert Counter(groups[i] for i in test) == {"g": 8, "h": 4}
    assert train == sorted(train)
    # most stay on their side when others join
    more = split_families(groups + ["h"] * 5, keys + list("abcde"), [*families, 62, 63, 64, 65, 66])
    assert len(set(test) - set(more[1])) <= 1


# ---- what needs the font


@pytest.fixture(scope="module")
def debian() -> None:
    if not DEBIAN_FONT.is_file() or not DEBIAN_LIST.is_file():
        pytest.skip("fonts-noto-color-emoji or unicode-data is not installed")
    if not features.check("raqm"):
        pytest.skip("Pillow has no Raqm (libfribidi0 is not installed)")


def names(source) -> list[str]:
    return [source.text(i) for i in range(len(source))]


@pytest.mark.usefixtures("debian")
def test_emoji_of_debian():
    train, test = open_source("emoji"), open_source("emoji", "test")
    assert train.pixels().shape[1:] == (3, 64, 64)
    listed = parse_emoji(DEBIAN_LIST.read_text(encoding="utf-8").splitlines())
    everything = names(train) + names(test)
    assert len(set(everything)) == len(everything)
    assert set(everything) <= {emoji.name for emoji in listed}
    assert len(everything) > 0.9 * len(listed)
    assert train.captioned
    assert train.classes == test.classes
    assert train.classes[:2] == ("Smileys & Emotion", "People & Body")
    assert len(train.classes) == 9
    sample = train.read(7)
    assert sample.text == sample.id == train.id(7)
    of = {emoji.name: emoji.group for emoji in listed}
    assert all(train.classes[train.label(i)] == of[train.text(i)] for i in range(len(train)))


@pytest.mark.usefixtures("debian")
def test_the_split_of_debians_emoji():
    train, test = open_source("emoji"), open_source("emoji", "test")
    sides = [Counter(s.label(i) for i in range(len(s))) for s in (train, test)]
    for label in range(9):
        n = sides[0][label] + sides[1][label]
        assert abs(sides[1][label] - n * TEST_SHARE) <= 3
    keys = [{family_key(name) for name in names(source)} for source in (train, test)]
    assert keys[0].isdisjoint(keys[1])
    images = [{image.numpy().tobytes() for image in source.pixels()} for source in (train, test)]
    assert images[0].isdisjoint(images[1])
    assert open_source("emoji").fingerprint() == train.fingerprint() != test.fingerprint()


@pytest.mark.usefixtures("debian")
def test_emoji_look_like_what_they_are_called():
    images = {}
    for split in ("train", "test"):
        source = open_source("emoji", split)
        images |= dict(zip(names(source), source.pixels(), strict=True))
    stack = torch.stack(list(images.values()))
    assert (stack[:, :, 0, 0] == 255).double().mean() > 0.95, "on white"
    assert (stack != 255).any(1).sum((1, 2)).min() > 100, "none is empty"
    for name, channel in (("red circle", 0), ("green circle", 1), ("blue circle", 2)):
        colour = images[name][:, 32, 32].tolist()
        assert colour[channel] == max(colour)
        assert colour[channel] > min(colour) + 50
        dark = (images[name].double().mean(0) < 250).nonzero().double()
        assert (dark.mean(0) - 31.5).abs().max() < 1, "centred"
        height, width = dark.amax(0) - dark.amin(0)
        assert abs(height - width) <= 2, "its aspect is kept"
        assert height > 48
    flag = images["flag: France"][:, 32]  # a sequence drawn as one: blue, white, red from the left
    assert flag[2, 10] > flag[0, 10] + 50
    assert flag[0, 54] > flag[2, 54] + 50
    assert flag[:, 32].min() > 200


@pytest.mark.usefixtures("debian")
def test_subgroups_and_grey():
    plain, fine = open_source("emoji"), open_source("emoji:subgroups")
    assert names(plain) == names(fine)
    assert torch.equal(plain.pixels(), fine.pixels())
    assert "animal mammal" in fine.classes
    assert fine.classes[fine.label(names(fine).index("tiger"))] == "animal mammal"
    assert 90 < len(fine.classes) < 130
    assert fine.spec == "emoji:subgroups"
    assert (plain.metric, fine.metric) == ("accuracy", "mean_per_class")
    grey = open_source("emoji", channels=1)
    assert grey.pixels().shape[1:] == (1, 64, 64)
    weights = torch.tensor([299, 587, 114]).view(3, 1, 1)  # ITU-R 601-2 luma
    luma = (plain.pixels()[:50] * weights).sum(1, keepdim=True) / 1000
    assert (grey.pixels()[:50] - luma).abs().max() <= 1
    with pytest.raises(ValueError, match="emoji: channels is 2"):
        open_source("emoji", channels=2)


@pytest.fixture
def folder(tmp_path, debian):
    (tmp_path / DEBIAN_FONT.name).symlink_to(DEBIAN_FONT)
    groups = DEBIAN_LIST.read_text(encoding="utf-8").split("# group: Food & Drink")[1]
    (tmp_path / DEBIAN_LIST.name).write_text("# group: Food & Drink" + groups, encoding="utf-8")
    return tmp_path


def add(folder, *lines: str) -> None:
    with open(folder / DEBIAN_LIST.name, "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_a_folder_of_ones_own(folder):
    unknown = {
        "nothing": "10FFFF",
        "a letter": "0416",
        "two": "1F600 1F600",
        "a family of two letters": "1F468 200D 1F600",
        "nowhere's flag": "1F1FD 1F1FD",
        "blank": "20",
    }
    add(folder, *(f"{p} ; fully-qualified # x E1.0 {name}" for name, p in unknown.items()))
    add(folder, "1F600 ; fully-qualified # x E1.0 known")
    train, test = (open_source(f"emoji:{folder}", split) for split in ("train", "test"))
    found = names(train) + names(test)
    assert train.classes[0] == "Food & Drink"
    assert {"pizza", "known"} <= set(found)
    assert set(found).isdisjoint(unknown), "the font has no picture of it"
    fine = open_source(f"emoji:subgroups:{folder}")
    assert fine.classes[0] == "food fruit"
    assert fine.spec == f"emoji:subgroups:{folder}"


def test_files_that_are_missing_or_wrong(tmp_path, folder, monkeypatch):
    spec = f"emoji:{folder}"
    with pytest.raises(ValueError, match=r"there is no file .*nowhere.*fonts-noto-color-emoji and"):
        open_source("emoji:nowhere")
    text = "1F355 ; fully-qualified # x E1.0 pizza\n"
    for content, message in (
        ("no list", "line 1, 'no list', is not as in Unicode"),
        ("", "a picture for none of the 0 emoji"),
        ("# group: g\n10FFFF ; fully-qualified # x none\n", "a picture for none of the 1 emoji"),
        ("# group: g\n" + text, "1 emoji are too few for a test split"),
    ):
        module._draw_list.cache_clear()
        (folder / DEBIAN_LIST.name).write_text(content)
        with pytest.raises(ValueError, match=message):
            open_source(spec, "test")
    (folder / DEBIAN_LIST.name).write_bytes(b"\xff\xfe")
    module._draw_list.cache_clear()
    with pytest.raises(ValueError, match=r"emoji-test\.txt cannot be read"):
        open_source(spec)
    (folder / DEBIAN_LIST.name).write_text("# group: g\n" + text)
    (folder / DEBIAN_FONT.name).unlink()
    (folder / DEBIAN_FONT.name).write_bytes(b"no font")
    with pytest.raises(ValueError, match="is no font with bitmaps of 109 pixels"):
        open_source(spec)
    monkeypatch.setattr(features, "check", lambda name: name != "raqm")
    with pytest.raises(ValueError, match=r"needs Raqm; install FriBidi \(Debian's libfribidi0\)"):
        open_source(spec)
    (folder / DEBIAN_FONT.name).unlink()
    with pytest.raises(ValueError, match=r"there is no file .*NotoColorEmoji\.ttf"):
        open_source(spec)


def test_without_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEBIAN_FONT", tmp_path / "NotoColorEmoji.ttf")
    with pytest.raises(ValueError, match=r"unicode-data, or give a folder .* as emoji:DIR"):
        open_source("emoji")
