"""The frames of a moving picture: a folder of images, or an animated file (GIF, WebP, PNG)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vitrail.data.contract import BadSampleError
from vitrail.data.decode.formats import SUFFIXES
from vitrail.data.decode.image import check_pixels, decode_file, from_pil, open_image

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".wmv")


class Frame(NamedTuple):
    """One frame of a moving picture.

    Attributes:
        id: a file's name, or FILE#NUMBER, counted from 1.
        image: uint8.
        duration: in ms, as the file has it, or None.
    """

    id: str
    image: UInt8[Tensor, "C H W"]
    duration: float | None


class Frames:
    """Frames in order, decoded on demand; unusable ones are skipped and listed in `bad`.

    A folder's images are ordered by the numbers in their names (2 before 10); its subfolders are
    left out. After a damaged frame of an animated file the rest of it cannot be read.

    Args:
        path: a folder or a file.
        channels: of every frame, 1 or 3.

    Attributes:
        bad: (id, reason) of each unusable frame of the latest pass.

    Raises:
        ValueError: no such file or folder, no images in it, or a video, which needs a decoder.
    """

    def __init__(self, path: str | Path, channels: int):
        self.path = Path(path).expanduser()
        self.channels = channels
        self.bad: list[tuple[str, str]] = []
        if self.path.suffix.lower() in VIDEOS and not self.path.is_dir():
            raise ValueError(
                f"frames: {self.path} is a video, and there is no decoder for it here; write its "
                f"frames by `ffmpeg -i {self.path.name} FOLDER/%05d.png`, and name that folder"
            )
        if not self.path.exists():
            raise ValueError(f"frames: there is no file or folder {self.path}")
        self._files = _files(self.path) if self.path.is_dir() else []
        if self.path.is_dir() and not self._files:
            raise ValueError(
                f"frames: no images in {self.path}; files must end in {', '.join(SUFFIXES)}"
            )

    def __iter__(self) -> Iterator[Frame]:
        self.bad = []
        yield from self._of_folder() if self._files else self._of_file()

    def _of_folder(self) -> Iterator[Frame]:
        for file in self._files:
            try:
                image = decode_file(file, self.channels, file.name)
            except BadSampleError as error:
                self.bad.append((error.id, error.reason))
                continue
            yield Frame(file.name, image, None)

    def _of_file(self) -> Iterator[Frame]:
        number = 0
        try:
            with open_image(self.path, self.path.name) as file:
                while _seek(file, number):
                    number += 1
                    check_pixels(file)
                    # A copy: changing one frame must not change the next.
                    image = from_pil(file.copy(), self.channels)
                    yield Frame(f"{self.path.name}#{number}", image, file.info.get("duration"))
        except BadSampleError as error:
            id = f"{self.path.name}#{number}" if number else error.id
            self.bad.append((id, error.reason))


def _seek(file: Image.Image, number: int) -> bool:
    """Goes to a frame, from 0; returns False if there is none. A still image has one."""
    try:
        file.seek(number)
    except EOFError:
        return False
    return True


def _files(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise ValueError(f"frames: {folder} cannot be listed ({error.strerror})") from error
    return sorted((path for path in found if not path.name.startswith(".")), key=_by_number)


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Returns a sorting key in which digits compare as numbers: frame2 is before frame10."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], path.name
