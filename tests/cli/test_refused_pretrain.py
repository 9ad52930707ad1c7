"""A run that cannot work is refused before anything is made: one message, and no folder."""

from pathlib import Path

import pytest
import torch

from tests.cli import shell
from tests.cli.shell import assert_refused, make_photos, pretrain, vitrail

# changes to the tiny run -> what the message must hold: the thing, the value, the remedy
REFUSED = {
    "steps 0": (["--steps", 0], ["steps is 0", "more than 0"]),
    "no steps": (["--steps", -3], ["steps is -3"]),
    "epochs": (["--steps", "None", "--epochs", "nan"], ["epochs is nan"]),
    "batch size 0": (["--batch-size", 0], ["batch_size is 0"]),
    "batch of 1": (["--batch-size", 1], ["batch_size is 1", "SimDINO", "at least 2"]),
    "accumulate": (["--accumulate", 2], ["accumulate is 2", "SimDINO", "batch_size"]),
    "indivisible": (["--accumulate", 3], ["batch_size 8", "3 accumulation slices"]),
    "workers": (["--workers", -1], ["workers is -1"]),
    "seed": (["--seed", -1], ["seed is -1"]),
    "betas": (["--optim.betas", 1.5, 0.9], ["1.5"]),
    "patch and view": (["--objective.views.local-size", 10], ["10 px", "4 px", "8 or 12"]),
    "patch and image": (["--img-size", 30], ["img_size is 30", "16 pixels"]),
    "image and views": (["--img-size", 64], ["img_size is 64", "views.global-size 64"]),
    "local views": (["--objective.views.local-size", 20], ["local_size is 20", "is 16"]),
    "huge batch": (["--batch-size", 99999999999], ["batch_size is 99999999999", "at most"]),
    "huge views": (["--batch-size", 2**20, "--objective.views.global-size", 4096],
                   ["batch_size is 1048576", "GB", "smaller"]),
    "huge depth": (["--backbone-options", "depth=99999999999"], ["depth is 99999999999", "1000"]),
    "huge width": (["--backbone-options", "width=1048576"], ["width 1048576", "parameters"]),
    "huge workers": (["--workers", 100000], ["workers is 100000", "1024"]),
    "huge steps": (["--steps", 10**13], ["steps is 10000000000000", "at most"]),
    "huge epochs": (["--steps", "None", "--epochs", "1e300"], ["epochs is 1e+300"]),
    "huge head": (["--objective.hidden-dim", 10**12], ["objective.hidden_dim is 1000000000000"]),
    "huge crops": (["--objective.views.n-local", 10**9], ["views.n_local is 1000000000"]),
    "no width": (["--objective.hidden-dim", 0], ["objective.hidden_dim is 0"]),
    "no bottleneck": (["--objective.bottleneck-dim", 0], ["objective.bottleneck_dim is 0"]),
    "no backbone": (["--backbone-options", "width=0"], ["width is 0"]),
    "empty data": (["--data", ""], ["--data is given an empty value"]),
    "empty data, joined": (["--data="], ["--data is given an empty value"]),
    "patch size": (["--patch-size", 5], ["16", "5"]),
    "backbone": (["--backbone", "vit_nano_patch4_33"], ["vit_nano_patch4_33", "vit_nano_patch4_3"]),
    "source": (["--data", "digit"], ["'digit'", "did you mean 'digits'"]),
    "digits": (["--data", "digits:scatered"], ["digits:scatered", "digits:scattered"]),
    "channels": (["--channels", 4], ["channels is 4", "have 1"]),
    "channels of files": (["--data", "folder:PHOTOS", "--channels", 2], ["takes 2", "stats"]),
    "mean": (["--channels", 3], ["1 channels", "takes 3", "mean and std"]),
    "mean and std": (["--objective.views.std", 0.5, 0.5], ["mean has 1 values and std has 2"]),
    "colours": (["--objective.views.grey", 0.2], ["grey is 0.2", "3 channels", "grey=0"]),
    "scale": (["--objective.views.global-scale", 0.5, 0.1], ["scale is (0.5, 0.1)"]),
    "no such folder": (["--data", "folder:/no/such"], ["no folder /no/such"]),
    "empty folder": (["--data", "folder:EMPTY"], ["no images in", "EMPTY", ".jpg"]),
    "a file": (["--data", "folder:FILE"], ["is a file", "folder it is in"]),
    "no folder": (["--data", "folder:"], ["folder:DIR"]),
    "device": (["--device", "gpu"], ["device 'gpu'", "cuda:N"]),
}  # fmt: skip


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("")
    make_photos(tmp_path / "PHOTOS", count=2)
    return tmp_path


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(places, case):
    changes, words = REFUSED[case]
    assert_refused(pretrain(places / "runs" / "a", *changes), *words)
    assert not (places / "runs").exists()


def test_an_empty_out_is_not_this_folder(places):
    from vitrail import api

    assert_refused(pretrain(""), "--out is given an empty value")
    for call in (lambda: api.pretrain("simdino_digits", ""), lambda: api.embed("run", " ")):
        with pytest.raises(ValueError, match="out is empty"):
            call()
    assert sorted(path.name for path in places.iterdir()) == ["EMPTY", "FILE", "PHOTOS"]


def test_control_characters_of_a_name_do_not_reach_the_terminal(places):
    outcome = pretrain(places / "run", "--data", "folder:/no/\x1b[31mred\rname")
    assert_refused(outcome, "/no/\\x1b[31mred\\rname")
    assert "\x1b" not in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(tmp_path):
    words = ["device 'cuda'", "no CUDA device", "--device cpu"]
    assert_refused(pretrain(tmp_path / "run", "--device", "cuda"), *words)
    assert_refused(pretrain(tmp_path / "run", "--device", "cuda:1"), "device 'cuda:1'")
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_is_enough_for_dino(tmp_path):
    outcome = pretrain(tmp_path / "run", "--batch-size", 1, recipe="dino_vits_fashion")
    assert outcome.code == 0, outcome
    assert len(shell.read_lines(tmp_path / "run" / "metrics.jsonl")) == 2


def test_supervised_needs_labels(places):
    changes = "--data folder:PHOTOS --backbone crate_nano_patch4_28 --precision fp32 --device cpu"
    outcome = vitrail(
        "pretrain", "crate_fashion_supervised", "--out", "run", "--steps", 1, *changes.split()
    )
    assert_refused(
        outcome, "'supervised' needs labels", "another objective", "a source with classes"
    )
    assert not Path("run").exists()


def test_a_batch_that_ranks_cannot_share():
    from vitrail.config import override
    from vitrail.distributed.ranks import Ranks
    from vitrail.recipes.named import get_recipe
    from vitrail.train.build import assemble

    recipe = override(get_recipe("simdino_digits"), {"batch_size": 7})
    with pytest.raises(ValueError, match=r"batch_size 7 is the global batch.* 2 ranks"):
        assemble(recipe, Ranks(0, 0, 2, torch.device("cpu")))


@pytest.mark.parametrize("where", ["FILE/run", "/proc/run", "FILE"])
def test_out_cannot_be_written_to(places, where):
    assert_refused(pretrain(Path(where)), f"--out {where}", "cannot be written", "another folder")


def test_out_holds_a_run_already(tmp_path):
    assert pretrain(tmp_path / "run").code == 0
    before = shell.snapshot(tmp_path)
    assert_refused(
        pretrain(tmp_path / "run"), "already holds a run", f"vitrail resume {tmp_path / 'run'}"
    )
    assert shell.snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretain"], ["'pretain' is not a command", "'pretrain'"]),
        (["pretrain", "simdino_digit", "--out", "x"], ["not a recipe", "'simdino_digits'"]),
        (
            ["pretrain", "zzz", "--out", "x"],
            ["'zzz' is not a recipe", "there are: clip_emoji"],
        ),
        (["list", "backbone"], ["'backbone' cannot be listed", "'backbones'"]),
        (["resume", "/no/such/run"], ["/no/such/run holds no run", "vitrail pretrain"]),
        (["evaluate", "/no/such/run"], ["/no/such/run"]),
        (["report", "/no/such/run"], ["/no/such/run"]),
        (["embed", "/no/such/run", "--out", "x.npz"], ["/no/such/run"]),
        (["evaluate", ".", "--protocols", "knnn"], ["'knnn'", "'knn'"]),
        (["embed", ".", "--out", "x.csv"], ["x.csv", ".npz or .parquet"]),
        (["evaluate", ".", "--device", "tpu"], ["device 'tpu'"]),
    ],
)
def test_wrong_names(places, arguments, words):
    before = shell.snapshot(places)
    assert_refused(vitrail(*arguments), *words)
    assert shell.snapshot(places) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-sice", 3], ["--batch-sice", "--batch-size"]),
        (["--batch_sice", 3], ["--batch_sice", "--batch-size"]),
        (["--optim.rate", 3], ["--optim.rate"]),
        (["--optim.warmup", 3], ["--optim.warmup", "--optim.warmup-epochs"]),
        (["--objective.views.globl-size", 3], ["--objective.views.global-size"]),
        (["--objective.out-dim", 3], ["--objective.out-dim"]),
        (["--steps", "many"], ["--steps", "many", "int"]),
        (["--optim.lr", "nan"], ["optim.lr is nan"]),
        (["--objective.eps", 0], ["eps is 0", "above 0"]),
        (["--precision", "fp61"], ["--precision", "fp61", "bf16"]),
    ],
)
def test_unknown_fields_and_values_are_misuse(tmp_path, arguments, words):
    code, out, err = pretrain(tmp_path / "run", *arguments)
    assert code == 2
    assert "Traceback" not in err
    assert "vitrail pretrain simdino_digits --help" in err
    for word in words:
        assert word in err, err
    assert out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [[], ["pretrain"], ["resume"], ["embed", "x"], ["report"]])
def test_what_is_missing_is_misuse(arguments):
    code, out, err = vitrail(*arguments)
    assert code == 2
    assert err != ""
    assert out == ""
