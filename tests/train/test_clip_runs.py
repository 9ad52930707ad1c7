"""CLIP from a table of pairs to words: killed and resumed, exported, evaluated, and refused."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import finish
from tests.train import runs
from vitrail import api
from vitrail.data.sources.registry import open_source
from vitrail.evals.evaluate import evaluate
from vitrail.text_encoder import TextEncoder
from vitrail.train.build import pictures_of

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (0, 0, 0)}
SHAPES = ("left", "right", "top", "bottom")
STEPS = 90


def write_pairs(folder: Path) -> Path:
    """Two halves of a picture, one of them coloured, in different shades: 96 pairs, 4 classes."""
    rng = np.random.default_rng(0)
    rows = ["path,caption,label,split"]
    for i in range(96):
        colour, shape = list(COLOURS)[i % 4], SHAPES[i // 4 % 4]
        pixels = np.full((16, 16, 3), 255)
        half = {"left": np.s_[:, :8], "right": np.s_[:, 8:], "top": np.s_[:8], "bottom": np.s_[8:]}
        pixels[half[shape]] = np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 20, 3), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        split = "test" if i >= 64 else "train"
        rows.append(f"{i}.png,a {colour} field on the {shape},{colour},{split}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return folder / "pairs.csv"


def recipe_of(pairs: str, **changes: object) -> object:
    from vitrail.config import override
    from vitrail.recipes.named import get_recipe

    tiny = runs.TINY | {"data": f"pairs:{pairs}", "backbone_options": ("width=32", "depth=2")}
    tiny |= {"patch_size": 4, "steps": runs.STEPS, "optim": {"lr": 3e-3, "warmup_epochs": 1.0}}
    objective = {"views": {"size": 16}, "embed_dim": 16, "text_width": 32, "text_depth": 1}
    objective |= {"vocabulary": 300, "drop_path": 0.1}
    return override(get_recipe("clip_emoji"), tiny | {"objective": objective} | changes)


def pretrain(pairs: str, out: str) -> None:
    """Runs in a child process."""
    from vitrail import api

    torch.set_num_threads(1)
    api.start(recipe_of(pairs), Path(out))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    pairs = write_pairs(folder)
    return api.start(recipe_of(str(pairs), steps=STEPS), folder / "run")


def test_killed_and_resumed_ends_with_the_bits_of_one_that_was_not(tmp_path):
    pairs = str(write_pairs(tmp_path))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(pretrain, pairs, str(whole)) == 0
    code = finish(runs.die_at, "fsync", 19, pretrain, pairs, str(killed))
    assert code == -signal.SIGKILL
    assert (killed / "checkpoints").exists()
    assert finish(runs.resume, str(killed)) == 0
    runs.assert_equal_bits(runs.final_state(killed), runs.final_state(whole))
    for name in ("text.safetensors", "text.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_it_learns_words_and_evaluates_them(trained):
    protocols = ("zeroshot", "retrieval", "knn")
    found = evaluate(trained, protocols=protocols, quiet=True)
    assert found["zeroshot"]["chance"] == 1 / 4
    assert found["zeroshot"]["accuracy"] > 0.6
    recall = found["retrieval"]["image_to_text"]
    assert recall["candidates"] == 16
    assert recall["recall@1"] > 4 * recall["chance@1"]
    assert found["figures"]["retrieval"] == "figures/retrieval.png"
    assert Image.open(trained / "figures" / "retrieval.png").width > 600
    kept = json.loads((trained / "evaluation.json").read_text())
    assert kept["zeroshot"] == found["zeroshot"]


def test_captions_and_images_share_a_space(trained):
    text = TextEncoder.load(trained)
    words = text.transform(["a red field on the left", "a blue field on the top"])
    assert words.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-5)
    # A caption's vector does not depend on what it is encoded with.
    np.testing.assert_allclose(text.transform(["a red field on the left"])[0], words[0], atol=1e-6)
    red = np.full((1, 16, 16, 3), 255, dtype=np.uint8)
    red[:, :, :8] = COLOURS["red"]
    image = text.place(api.load(trained).transform(red))
    assert image @ words[0] > image @ words[1]
    assert text.transform([]).shape == (0, 16)


def test_a_damaged_text_side_is_named(trained, tmp_path):
    for name in ("text.safetensors", "text.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    TextEncoder.load(tmp_path)
    info = json.loads((trained / "text.json").read_text())
    info["space"]["dim"] = 8
    (tmp_path / "text.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"not what text\.json beside it describes \(see image_pr"):
        TextEncoder.load(tmp_path)
    (tmp_path / "text.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"damaged or no safetensors file"):
        TextEncoder.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"tokenizer": {}},
        {"tokenizer": None},
        {"space": {"depth": 20_000}},
        {"space": {"width": -4}},
        {"space": {"heads": 0}},
        {"space": {"heads": 7}},
        {"space": {"vocabulary": 9}},
        {"space": {"kind": "sideways"}},
    ],
)
def test_no_description_is_believed(trained, tmp_path, damage):
    shutil.copy(trained / "text.safetensors", tmp_path)
    info = json.loads((trained / "text.json").read_text())
    for key, value in damage.items():
        info[key] = info[key] | value if key == "space" else value
    (tmp_path / "text.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"text\.json does not describe a text encoder"):
        TextEncoder.load(tmp_path)


def test_brackets_without_end_are_no_description(trained, tmp_path):
    shutil.copy(trained / "text.safetensors", tmp_path)
    (tmp_path / "text.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"text\.json does not describe a text encoder"):
        TextEncoder.load(tmp_path)


def test_sides_of_two_steps_are_told_apart(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    info = json.loads((trained / "text.json").read_text()) | {"step": 7}
    (tmp_path / "run" / "text.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"text side is of step 7 and its encoder of step 90"):
        evaluate(tmp_path / "run", protocols=["zeroshot"], quiet=True)
    # What needs no words is not held up by them.
    (tmp_path / "run" / "text.json").write_text("{}")
    assert evaluate(tmp_path / "run", protocols=["knn"], quiet=True)["knn"]["trained"] > 0


def test_a_lost_text_side_is_written_again(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "text.json").unlink()
    api.resume(tmp_path / "run")
    assert (tmp_path / "run" / "text.json").read_bytes() == (trained / "text.json").read_bytes()


def test_what_was_trained_on_is_not_measured(tmp_path):
    pairs = write_pairs(tmp_path)
    rows = [line.rpartition(",")[0] for line in pairs.read_text().splitlines()]
    pairs.write_text("\n".join(rows) + "\n")
    run = api.start(recipe_of(str(pairs), steps=1), tmp_path / "run")
    for name in ("zeroshot", "retrieval"):
        with pytest.raises(ValueError, match=r"trained on these very captions; .*'split'"):
            evaluate(run, protocols=[name], quiet=True)


def test_what_does_not_fit_is_told(trained):
    text = TextEncoder.load(trained)
    with pytest.raises(ValueError, match="a list of captions"):
        text.transform("a red field")
    with pytest.raises(ValueError, match=r"5 dimensions .* trained with 32"):
        text.place(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"^nowhere knows no captions"):
        TextEncoder.load("nowhere")


def test_a_run_without_words_says_so(tmp_path):
    run = api.start(runs.tiny_recipe("simdino", steps=1), tmp_path / "run")
    assert not (run / "text.json").exists()
    with pytest.raises(ValueError, match="knows no captions"):
        TextEncoder.load(run)
    for name in ("zeroshot", "retrieval"):
        with pytest.raises(ValueError, match=rf"{name}: the encoder has no text side"):
            evaluate(run, protocols=[name], quiet=True)


def test_slices_of_unequal_labels_are_refused(tmp_path):
    from vitrail.config import override
    from vitrail.recipes.named import get_recipe

    pairs = write_pairs(tmp_path)
    pairs.write_text(pairs.read_text().replace(",black,", ",,"))
    changes = {"data": f"pairs:{pairs}", "channels": 1, "accumulate": 2, "device": "cpu"}
    recipe = override(get_recipe("crate_digits_supervised"), changes)
    with pytest.raises(ValueError, match=r"accumulate is 2, but 16 of 64 samples have no label"):
        api.start(recipe, tmp_path / "run")


def test_images_with_several_captions_are_numbered(tmp_path):
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\n0.png,a\n1.png,b\n./0.png,c\n")
    source = open_source(f"pairs:{table}", "train", 3)
    assert pictures_of(source).tolist() == [0, 1, 0]
    table.write_text("image,caption\n0.png,a\n1.png,b\n")
    assert pictures_of(open_source(f"pairs:{table}", "train", 3)) is None
    assert pictures_of(open_source("digits", "train", None)) is None
