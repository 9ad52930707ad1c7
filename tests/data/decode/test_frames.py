import struct

import numpy as np
import pytest
from PIL import Image

from vitrail.data.decode.frames import Frames


def picture(value, size=(6, 4)):
    return Image.fromarray(np.full((*size[::-1], 3), value, dtype=np.uint8))


def values(frames):
    """Returns (id, red of the first pixel) of each frame."""
    return [(frame.id, int(frame.image[0, 0, 0])) for frame in frames]


def test_a_folder_is_ordered_by_number_and_bad_files_are_named(tmp_path):
    for number in (1, 2, 10):
        picture(number).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame3.png").write_bytes(b"not a picture")
    (tmp_path / ".frame4.png").write_bytes(b"hidden")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "sub").mkdir()
    picture(9).save(tmp_path / "sub" / "frame9.png")
    picture(11).save(tmp_path / "\u00b25.png")  # a digit to str.isdigit, none to int
    frames = Frames(tmp_path, 3)
    expected = [("frame1.png", 1), ("frame2.png", 2), ("frame10.png", 10), ("\u00b25.png", 11)]
    assert values(frames) == expected
    assert [id for id, _ in frames.bad] == ["frame3.png"]
    assert values(frames) == expected
    assert len(frames.bad) == 1  # of the latest pass alone


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {"default_image": False})],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_animated_file_has_its_frames_and_their_duration(tmp_path, name, options, channels):
    pictures = [picture(value) for value in (10, 200, 90)]
    path = tmp_path / name
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=70, **options)
    frames = list(Frames(path, channels))
    assert [(f.id, int(f.image[0, 0, 0])) for f in frames] == [
        (f"{name}#1", 10),
        (f"{name}#2", 200),
        (f"{name}#3", 90),
    ]
    assert {f.image.shape for f in frames} == {(channels, 4, 6)}
    assert frames[0].duration == 70


def test_a_still_image_is_one_frame(tmp_path):
    picture(7).save(tmp_path / "a.bmp")
    assert values(Frames(tmp_path / "a.bmp", 3)) == [("a.bmp#1", 7)]


def test_what_is_left_of_a_cut_off_animation_is_read(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)) for _ in range(4)
    ]
    whole = tmp_path / "whole.gif"
    pictures[0].save(whole, save_all=True, append_images=pictures[1:])
    content = whole.read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) * 5 // 8])
    frames = Frames(tmp_path / "cut.gif", 3)
    read = list(frames)
    assert 1 <= len(read) < 4
    assert [id for id, _ in frames.bad] == [f"cut.gif#{len(read) + 1}"]


def test_a_huge_canvas_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "bomb.gif")
    content = bytearray((tmp_path / "bomb.gif").read_bytes())
    content[6:10] = struct.pack("<HH", 12000, 9000)  # the logical screen
    (tmp_path / "bomb.gif").write_bytes(content)
    monkeypatch.setattr(Image.Image, "copy", lambda image: pytest.fail("decoded"))
    frames = Frames(tmp_path / "bomb.gif", 3)
    assert list(frames) == []
    ((id, reason),) = frames.bad
    assert id.startswith("bomb.gif")
    assert "more than the limit" in reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.mp4", "is a video.*ffmpeg -i clip.mp4"),
        ("nothing", "there is no file or folder"),
        ("empty", "no images in"),
    ],
)
def test_what_is_no_frames_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"\0")
    with pytest.raises(ValueError, match=f"frames: .*{message}"):
        Frames(tmp_path / name, 3)


def test_a_text_is_named(tmp_path):
    (tmp_path / "a.gif").write_text("hello")
    frames = Frames(tmp_path / "a.gif", 3)
    assert list(frames) == []
    assert frames.bad[0][0] == "a.gif"
    assert "not an image" in frames.bad[0][1]
