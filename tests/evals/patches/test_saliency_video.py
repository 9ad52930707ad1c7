import numpy as np
import pytest
from PIL import Image

from tests.evals.synthetic_runs import tiny_encoder
from vitrail import cli
from vitrail.backbones.create import create_backbone
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.patches import saliency_video as video
from vitrail.evals.patches.saliency_video import GAP, LEAST_SIDE, saliency_video


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video") / "run"
    tiny_encoder("digits", size=16, channels=3).save(folder)
    return folder


def write_frames(folder, sizes):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, (width, height) in enumerate(sizes):
        pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_three_pictures_of_every_frame_seen_whole(run, tmp_path, suffix):
    frames = write_frames(tmp_path / "frames", [(60, 30)] * 3)
    out = tmp_path / "new" / f"out{suffix}"
    written = saliency_video(run, frames, out, fps=20)
    assert (written.frames, written.skipped, written.cut) == (3, [], False)
    drawn = Image.open(out)
    assert drawn.n_frames == 3
    # The short side is the encoder's 16 pixels, drawn 15 times as large; the long one is twice it.
    assert drawn.size == (3 * 2 * LEAST_SIDE + 2 * GAP, LEAST_SIDE)
    drawn.seek(1)
    assert len(drawn.convert("RGB").getcolors(2**20)) > 50
    assert drawn.info["duration"] == 50
    assert not list(out.parent.glob(".*"))


def test_frames_that_do_not_fit_are_skipped_and_named(run, tmp_path):
    frames = write_frames(tmp_path / "frames", [(40, 30), (30, 40), (40, 30), (40, 30)])
    (frames / "2.png").write_bytes(b"no picture")
    written = saliency_video(run, frames, tmp_path / "out.gif")
    assert written.frames == 2
    named = dict(written.skipped)
    assert set(named) == {"1.png", "2.png"}
    assert named["1.png"] == "it is of 40 x 30 pixels, and the first of 30 x 40"


def test_a_frame_of_too_many_patches_is_skipped_before_it_is_resized(run, tmp_path):
    frames = write_frames(tmp_path / "frames", [(30000, 2), (40, 30)])
    written = saliency_video(run, frames, tmp_path / "out.gif")
    ((id, reason),) = written.skipped
    assert (written.frames, id) == (1, "0.png")
    assert "at 16 x 240000 pixels it has more than 16,384 patches" in reason
    with pytest.raises(ValueError, match=r"none of .* can be drawn \(the first: 0.png: at 4096 x"):
        saliency_video(run, frames, tmp_path / "out.gif", size=4096)


def test_the_speed_is_the_files(run, tmp_path):
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    pictures[0].save(tmp_path / "in.gif", save_all=True, append_images=pictures[1:], duration=330)
    saliency_video(run, tmp_path / "in.gif", tmp_path / "out.gif")
    assert Image.open(tmp_path / "out.gif").info["duration"] == 330
    saliency_video(run, tmp_path / "in.gif", tmp_path / "out.gif", fps=10)
    assert Image.open(tmp_path / "out.gif").info["duration"] == 100


def test_head_and_size_choose_the_map(run, tmp_path, monkeypatch):
    seen = []

    def maps(encoder, pixels):
        seen.append(tuple(pixels.shape))
        grid = np.ones((1, 2, pixels.shape[2] // 4, pixels.shape[3] // 4), dtype=np.float32)
        grid[0, 1, 0, 0] = 100
        return grid

    monkeypatch.setattr(video, "pixel_maps", maps)
    frames = write_frames(tmp_path / "frames", [(50, 30)])
    pixels = []
    for head in (1, 2):
        saliency_video(run, frames, tmp_path / "out.webp", size=26, head=head)
        # Beside the frame, the map's lower right corner.
        drawn = Image.open(tmp_path / "out.webp").convert("RGB")
        pixels.append(sum(drawn.getpixel((drawn.width * 2 // 3 - GAP - 5, drawn.height - 5))))
    assert seen == [(1, 3, 24, 40)] * 2
    assert pixels[0] > 500 > 100 > pixels[1]


def test_a_long_one_is_cut(run, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 2 * 240 * 736)
    frames = write_frames(tmp_path / "frames", [(16, 16)] * 5)
    written = saliency_video(run, frames, tmp_path / "out.gif")
    assert (written.frames, written.cut) == (3, True)


def test_what_fails_half_way_leaves_nothing(run, tmp_path, monkeypatch):
    frames = write_frames(tmp_path / "frames", [(16, 16)] * 3)
    real, calls = video.mass_mask, []

    def fails_late(values):
        calls.append(values)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return real(values)

    monkeypatch.setattr(video, "mass_mask", fails_late)
    (tmp_path / "out.gif").write_bytes(b"earlier")
    with pytest.raises(OSError, match="disk is full"):
        saliency_video(run, frames, tmp_path / "out.gif")
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "out.gif"}
    assert (tmp_path / "out.gif").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "a.mp4"}, r"must be .gif or .webp"),
        ({"head": 3}, "head is 3; the last layer has heads 1 to 2"),
        ({"head": 0}, "head is 0"),
        ({"fps": 0}, "fps is 0"),
        ({"size": 3}, "below one patch of 4"),
        ({"frames": "nothing"}, "no file or folder"),
        ({"frames": "bad"}, r"none of .* can be drawn \(the first: a.png: it is not an image"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_nothing(run, tmp_path, options, message):
    write_frames(tmp_path / "frames", [(16, 16)])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no")
    arguments = {"frames": "frames", "out": "out.gif"} | options
    paths = {name: tmp_path / arguments.pop(name) for name in ("frames", "out")}
    with pytest.raises(ValueError, match=message):
        saliency_video(run, **paths, **arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "bad"}


def test_backbones_without_tokens_are_refused_by_name(tmp_path):
    backbone = create_backbone("resnet18", img_size=32)
    encoder = Encoder(backbone, Preprocess(32, 32, (0.5,) * 3, (0.2,) * 3), {"seed": 0})
    encoder.save(tmp_path / "run")
    frames = write_frames(tmp_path / "frames", [(16, 16)])
    with pytest.raises(ValueError, match="saliency: backbone resnet18 has no tokens"):
        saliency_video(tmp_path / "run", frames, tmp_path / "out.gif")


def test_the_command_names_what_it_skips(run, tmp_path, capsys):
    frames = write_frames(tmp_path / "frames", [(16, 16)] * 2)
    (frames / "1.png").write_bytes(b"no picture")
    out = tmp_path / "out.gif"
    arguments = ["--frames", str(frames), "--out", str(out), "--device", "cpu", "--size", "24"]
    cli.main(["saliency", str(run), *arguments])
    printed = capsys.readouterr()
    assert printed.out == f"{out}: 1 frames\n"
    assert printed.err.startswith('skipped "1.png": it is not an image')
    assert Image.open(out).height == 10 * 24
