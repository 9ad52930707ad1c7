"""Oxford-IIIT Pets (Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/).

images/Abyssinian_100.jpg, ...
annotations/trainval.txt, test.txt      a line an image: NAME CLASS SPECIES BREED, classes from 1
annotations/trimaps/NAME.png            1 animal, 2 background, 3 border
"""

import re
from pathlib import Path

from vitrail.data.contract import Mask, Source, Split
from vitrail.data.decode.image import decode_numbers
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.spec import find_place, read_lines

INSIDE = ("", "oxford-iiit-pet")  # the second: torchvision's
LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
TRIMAPS = "annotations/trimaps"
ANIMAL, BORDER = 1, 3
REMEDY = (
    "download images.tar.gz and annotations.tar.gz from "
    "https://www.robots.ox.ac.uk/~vgg/data/pets/ and unpack them there"
)


class PetsSource(FileSource):
    """Images with the animal as their mask, if the trimaps are there."""

    def mask(self, index: int) -> Mask | None:
        if not self.masked:
            return None
        name = Path(self.id(index)).stem
        numbers_HW = decode_numbers(self._root / TRIMAPS / f"{name}.png", name)
        return Mask(numbers_HW == ANIMAL, numbers_HW == BORDER)


def open_pets(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `pets:DIR`: 37 breeds of cats and dogs. "train" is trainval (3,680 images).

    Results on it are the mean of the classes' accuracies.

    Raises:
        ValueError: a file is missing, a line of a list is damaged, or channels other than 1 and 3.
    """
    spec = f"pets:{rest}"
    root = find_place("pets", rest, INSIDE, LISTS["train"], REMEDY)
    rows = {name: _read_list(spec, root / path) for name, path in LISTS.items()}
    names = {label: _breed(image) for image, label in (*rows["test"], *rows["train"])}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{spec}: the classes of its lists are not 1 to {len(names)}; {REMEDY}")
    chosen = rows[split]
    source = PetsSource(
        spec,
        root,
        [f"images/{image}.jpg" for image, _ in chosen],
        [label for _, label in chosen],
        [names[label] for label in sorted(names)],
        channels,
        metric="mean_per_class",
    )
    source.masked = (root / TRIMAPS).is_dir()
    return source


def _breed(image: str) -> str:
    return image.rpartition("_")[0].replace("_", " ").title()


def _read_list(spec: str, path: Path) -> list[tuple[str, int]]:
    """Returns (image, class from 0) of each line; lines that begin with # are remarks."""
    rows = []
    for line in read_lines(spec, path, REMEDY):
        if line.startswith("#"):
            continue
        # no separators: an image is in its folder
        found = re.fullmatch(r"(\w[\w.-]*) ([1-9][0-9]{0,3})( [0-9]+)*", line)
        if not found:
            raise ValueError(f"{spec}: {path} has the line {line!r}, not NAME CLASS SPECIES BREED")
        rows.append((found[1], int(found[2]) - 1))
    if not rows:
        raise ValueError(f"{spec}: {path} names no images; {REMEDY}")
    return rows
