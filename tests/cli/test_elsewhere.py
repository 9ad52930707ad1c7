"""A run means the same from any working directory, and after its data have moved."""

import pytest

from tests.cli import shell


@pytest.fixture
def run(tmp_path, monkeypatch):
    shell.make_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert shell.pretrain(tmp_path / "run", "--data", "folder:photos", "--steps", 4).code == 0
    monkeypatch.chdir("/")
    return tmp_path / "run"


def test_a_relative_folder_is_found_again(run):
    assert shell.vitrail("resume", run).code == 0
    assert shell.vitrail("embed", run, "--out", run / "features.npz").code == 0


def test_data_that_moved_are_the_same_data(run):
    photos = run.parent / "photos"
    for step in sorted((run / "checkpoints").iterdir())[1:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    photos.rename(run.parent / "moved")
    refused = shell.vitrail("resume", run)
    shell.assert_refused(refused, "photos")
    config = run / "config.json"
    config.write_text(config.read_text().replace("/photos", "/moved"))
    assert shell.vitrail("resume", run).code == 0
    (run.parent / "moved").joinpath("extra.png").write_bytes(b"another file")
    shell.assert_refused(shell.vitrail("resume", run), "has changed since", "images then")
