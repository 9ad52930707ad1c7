"""`vitrail export`: exports load in other libraries and give the same features."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from vitrail.backbones.create import create_backbone
from vitrail.backbones.families import ToSTModel
from vitrail.backbones.registry import BACKBONES
from vitrail.cli import main
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.exporting.export import export

DINOV2 = {"width": 32, "heads": 2, "depth": 2, "img_size": 28}
PLAIN = ("vit_nano_patch4_28", {})
VITS = [
    PLAIN,
    ("vit_nano_patch4_28", {"in_chans": 1, "bias": False, "ratio": 2}),
    ("vit_nano_patch4_28", {"registers": 3}),
    ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32}),
    ("vit_small_patch14_dinov2", DINOV2),
    ("vit_small_patch14_reg4_dinov2", DINOV2),
    ("vit_giant_patch14_dinov2", {**DINOV2, "width": 40}),
    ("vit_giant_patch14_reg4_dinov2", {**DINOV2, "bias": False}),
]
OURS = [
    ("crate_nano_patch4_28", {"in_chans": 1, "eta": 0.2}),
    ("crate_alpha_nano_patch4_28", {"decoupled": False}),
    ("tost_vit_nano_patch4_28", {"registers": 2}),
    ("aot_mssa_nano_patch4_28", {}),
]

OF_TIMM = [
    ("resnet18", {"in_chans": 1, "img_size": 32}),
    ("swin_nano_patch2_28", {}),
]


def random_encoder(name: str, overrides: dict, size: int | None = None) -> Encoder:
    """Every weight is random: none may be at a value that hides where it went."""
    backbone = create_backbone(name, **overrides)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    side, channels = size or backbone.img_size, backbone.in_chans
    preprocess = Preprocess(side, side + 4, (0.4,) * channels, (0.2,) * channels)
    return Encoder(backbone.eval(), preprocess, {"seed": 0, "data": "digits", "step": 3})


def run_of(folder: Path, name: str, overrides: dict, size: int | None = None) -> Path:
    random_encoder(name, overrides, size).save(folder / "run")
    return folder / "run"


def loaded(folder: Path) -> Encoder:
    encoder = Encoder.load(folder)
    encoder.backbone.eval()
    return encoder


def images_for(encoder: Encoder, count: int = 2) -> Tensor:
    size = encoder.preprocess.size
    return torch.randn(count, encoder.channels, size, size)


def close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def as_python(line: str, out: Path) -> str:
    """The call after the path in a command's answer."""
    assert line.startswith(f"{out}: ")
    return line.removeprefix(f"{out}: ")


def run_call(call: str, **names: object) -> torch.nn.Module:
    *before, last = call.split("; ")
    assert before in ([], ["import vitrail.interop.timm_zoo"])
    return eval(last, names).eval()


@pytest.mark.parametrize(("name", "overrides"), VITS + OURS + OF_TIMM)
def test_timm_gives_the_same_features(tmp_path: Path, name: str, overrides: dict) -> None:
    run = run_of(tmp_path, name, overrides)
    call = as_python(export(run, "timm"), run / "export/timm")
    encoder = loaded(run)
    x = images_for(encoder)
    expected = encoder.backbone(x).pooled
    close(run_call(call, timm=timm)(x), expected)
    # As timm's own folders, with a fresh classifier too.
    folder = f"local-dir:{run / 'export/timm'}"
    model = timm.create_model(folder, pretrained=True, num_classes=0).eval()
    close(model(x), expected)
    assert timm.create_model(folder, pretrained=True, num_classes=7)(x).shape == (2, 7)
    data = timm.data.resolve_data_config(model=model)
    size = encoder.preprocess.size
    assert tuple(data["input_size"]) == (encoder.channels, size, size)
    assert data["crop_pct"] == pytest.approx(size / (size + 4))
    assert tuple(data["mean"]) == (0.4,) * encoder.channels


@pytest.mark.parametrize(("name", "overrides"), VITS + OF_TIMM)
def test_timms_own_names_need_no_vitrail(tmp_path: Path, name: str, overrides: dict) -> None:
    run = run_of(tmp_path, name, overrides)
    line = export(run, "timm")
    assert "vitrail.interop" not in line
    config = json.loads((run / "export/timm/config.json").read_text())
    any_size = "swin_tiny_patch4_window7_224" if "swin" in name else "vit_tiny_patch16_224"
    assert config["architecture"] == (name if name in timm_names() else any_size)
    assert config["create_model"] in line
    assert config["vitrail"]["step"] == 3


def test_a_swin_that_timm_names(tmp_path: Path) -> None:
    run = run_of(tmp_path, "swin_tiny_patch4_window7_224", {"in_chans": 1})
    call = as_python(export(run, "timm"), run / "export/timm")
    path = str(run / "export/timm/model.safetensors")
    assert call == (
        "timm.create_model('swin_tiny_patch4_window7_224', num_classes=0, in_chans=1, "
        f"checkpoint_path={path!r})"
    )


def timm_names() -> list[str]:
    return sorted(set(timm.list_models()) - set(timm.list_models(module="timm_zoo")))


@pytest.mark.parametrize(("name", "overrides"), VITS)
def test_transformers_gives_the_same_features(tmp_path: Path, name: str, overrides: dict) -> None:
    transformers = pytest.importorskip("transformers")
    run = run_of(tmp_path, name, overrides)
    call = as_python(export(run, "hf"), run / "export/hf")
    model = run_call(call, transformers=transformers)
    encoder = loaded(run)
    x = images_for(encoder)
    ours, theirs = encoder.backbone(x), model(pixel_values=x).last_hidden_state
    close(theirs[:, 0], ours.pooled)
    patches = ours.patches.flatten(1, 2)
    close(theirs[:, -patches.shape[1] :], patches)


def test_transformers_finds_every_weight_and_no_other(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for i, (name, overrides) in enumerate(VITS):
        run = run_of(tmp_path / str(i), name, overrides)
        model = re.search(r"transformers\.(\w+)", export(run, "hf")).group(1)
        more = {"add_pooling_layer": False} if model == "ViTModel" else {}
        _, info = getattr(transformers, model).from_pretrained(
            run / "export/hf", output_loading_info=True, **more
        )
        assert not info["missing_keys"], name
        assert not info["unexpected_keys"], name


def test_transformers_prepares_images_as_we_do(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run = run_of(tmp_path, *PLAIN)
    export(run, "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(run / "export/hf")
    noise = np.random.default_rng(0).integers(80, 180, (50, 70, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    ours = loaded(run).preprocess(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    torch.testing.assert_close(theirs, ours, atol=0.03, rtol=0)  # theirs round to 8 bits


def test_positions_are_written_for_the_size_of_the_images(tmp_path: Path) -> None:
    run = run_of(tmp_path, "vit_small_patch14_dinov2", {**DINOV2, "img_size": 56}, size=28)
    encoder = loaded(run)
    x28, x42 = (torch.randn(2, 3, side, side) for side in (28, 42))
    model = run_call(as_python(export(run, "timm"), run / "export/timm"), timm=timm)
    close(model(x28), encoder.backbone(x28).pooled)
    out = tmp_path / "larger"
    model = run_call(as_python(export(run, "timm", out, img_size=42), out), timm=timm)
    close(model(x42), encoder.backbone(x42).pooled)
    config = json.loads((out / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 42, 42]
    assert config["pretrained_cfg"]["crop_pct"] == pytest.approx(28 / 32)
    assert config["vitrail"]["kwargs"]["img_size"] == 42
    with pytest.raises(ValueError, match=r"patch size 14 does not divide .* 30; use a size of 28"):
        export(run, "timm", tmp_path / "odd", img_size=30)


@pytest.mark.parametrize("img_size", [None, 16])
def test_our_own_layout(tmp_path: Path, img_size: int | None) -> None:
    run = run_of(tmp_path, "crate_nano_patch4_28", {})
    line = export(run, "safetensors", tmp_path / "copy", img_size)
    assert line == f"{tmp_path / 'copy'}: vitrail.load({str(tmp_path / 'copy')!r})"
    before, after = loaded(run), loaded(tmp_path / "copy")
    x = torch.randn(2, 3, 16, 16)
    close(after.backbone(x).pooled, before.backbone(x).pooled)
    assert after.preprocess.size == (img_size or 28)
    assert after.info["step"] == 3


IN_ONNX = """
import sys
from vitrail.cli import main
for run in sys.argv[1:]:
    main(["export", run, "--format", "onnx"])
"""


def test_onnx_gives_the_same_features(tmp_path: Path, slow: bool) -> None:
    """In another process: tracing does not see through the tests' checks of shapes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    one_layer = [(name, {**overrides, "depth": 1}) for name, overrides in OURS[:3]]
    chosen = [("vit_nano_patch4_28", {"registers": 1, "depth": 1}), *one_layer]
    if slow:
        chosen += OURS
        chosen += OF_TIMM[:2]
        tost = [name for name, row in BACKBONES.items() if isinstance(row, ToSTModel)]
        chosen += [(name, {"depth": 1, "width": 64, "img_size": 32}) for name in tost[:1]]
    runs = [run_of(tmp_path / str(i), *case) for i, case in enumerate(chosen)]
    command = [sys.executable, "-c", IN_ONNX, *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert len(done.stdout.splitlines()) == len(runs)
    for line, run in zip(done.stdout.splitlines(), runs, strict=True):
        path = run / "export/encoder.onnx"
        assert line.startswith(f"{path}: onnxruntime.InferenceSession(")
        assert sorted(p.name for p in path.parent.iterdir()) == ["encoder.onnx"]
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [out.name for out in session.get_outputs()] == ["features", "patches"]
        about = json.loads(session.get_modelmeta().custom_metadata_map["vitrail"])
        assert about["preprocess"]["mean"][0] == 0.4
        encoder = loaded(run)
        for count in (1, 5):
            x = images_for(encoder, count)
            ours = encoder.backbone(x)
            pooled, patches = map(torch.from_numpy, session.run(None, {"images": x.numpy()}))
            torch.testing.assert_close(pooled, ours.pooled, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(patches, ours.patches, rtol=1e-4, atol=1e-4)


def test_onnx_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail.exporting import to_onnx

    class Program:
        class model:
            metadata_props: dict[str, str] = {}  # noqa: RUF012

        def save(self, path: Path, external_data: bool) -> None:
            path.touch()

    def wrong(path: Path, images: Tensor) -> list[Tensor]:
        return [out + 1 for out in to_onnx.Graph(loaded(run).backbone)(images)]

    run = run_of(tmp_path, *PLAIN)
    monkeypatch.setattr(to_onnx, "_export", lambda graph, images: Program())
    monkeypatch.setattr(to_onnx, "run_onnx", wrong)
    with pytest.raises(ValueError, match=r"features of onnxruntime differ .* by up to 1\.0e"):
        export(run, "onnx")
    assert not (run / "export").exists()


def test_missing_onnx_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, *PLAIN)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"onnxscript.*pip install 'vitrail\[onnx\]'"):
        export(run, "onnx")


def test_what_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, "crate_nano_patch4_28", {})
    with pytest.raises(ValueError, match=r"crate_nano_patch4_28 is no plain ViT.*--format timm"):
        export(run, "hf")
    assert not (run / "export").exists()


def test_a_vit_without_a_residual_keeps_its_own_name(tmp_path: Path) -> None:
    """It is no ViT of timm's; no flag of theirs makes it one."""
    run = run_of(tmp_path, "vit_nano_patch4_28", {"residual": False})
    assert "timm.create_model('vit_nano_patch4_28'" in export(run, "timm")
    run = run_of(tmp_path / "named", "vit_tiny_patch16_224", {"residual": False, "depth": 1})
    with pytest.raises(ValueError, match="no counterpart in timm; export it with --format onnx"):
        export(run, "timm")


def test_what_timm_computes_otherwise_is_refused(tmp_path: Path) -> None:
    swin = ("swin_nano_patch2_32", {})
    with pytest.raises(ValueError, match=r"another function at 20 × 20 .*features differ"):
        export(run_of(tmp_path / "features", *swin, size=20), "timm")
    with pytest.raises(ValueError, match=r"another function at 4 × 4 .*other shapes"):
        export(run_of(tmp_path / "shapes", *swin, size=4), "timm")
    with pytest.raises(ValueError, match=r"resnet18_small has a stem .*--format onnx"):
        export(run_of(tmp_path / "stem", "resnet18_small", {}), "timm")
    assert not list(tmp_path.glob("*/run/export"))


def test_nothing_is_written_over(tmp_path: Path) -> None:
    run = run_of(tmp_path, *PLAIN)
    export(run, "timm")
    before = (run / "export/timm/config.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"export/timm exists; move it away.*--out"):
        export(run, "timm")
    assert (run / "export/timm/config.json").stat().st_mtime_ns == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    run = run_of(tmp_path, *PLAIN)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        export(run, "timm")
    assert sorted(p.name for p in run.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_an_onnx_file_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export(run_of(tmp_path, *PLAIN), "onnx", tmp_path / "file")


def command(*arguments: object) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["export", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_the_command(tmp_path: Path) -> None:
    run = run_of(tmp_path, *PLAIN)
    code, out, err = command(run / "encoder.safetensors", "--format", "timm", "--img-size", 32)
    assert (code, err) == (0, "")
    assert out.startswith(f"{run / 'export/timm'}: timm.create_model(")
    assert "img_size=32" in out
    assert len(out.splitlines()) == 1
    code, out, err = command(run, "--format", "timm")
    assert (code, out) == (1, "")
    assert err.startswith("vitrail: error: ")
    assert "exists" in err
