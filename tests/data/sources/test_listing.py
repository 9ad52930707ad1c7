"""Tests of the listing of a folder: cached, and made again after a change that it can notice."""

import os
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.sources.cache import cache_file, cache_folder
from vitrail.data.sources.formats import listing as manifest
from vitrail.data.sources.formats.listing import Paths, list_files
from vitrail.data.sources.registry import open_source

SUFFIXES = (".png", ".jpg")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def kept_early(monkeypatch) -> list[int]:
    """Caches small and fresh folders, too. Counts the walks."""
    monkeypatch.setattr(manifest, "KEPT_FROM", 1)
    monkeypatch.setattr(manifest, "SETTLED_NS", -(10**18))
    walks: list[int] = []
    walk = manifest._walk
    monkeypatch.setattr(manifest, "_walk", lambda *args: walks.append(1) or walk(*args))
    return walks


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in ("b/2.png", "a/deep/1.JPG", "a/3.txt", "a/0.png", ".hidden/4.png", "a-b/5.png"):
        put(root, name)
    return root


def put(root, name: str, size: int = 3) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"x" * size)


def listed(root, inside: str = "") -> list[str]:
    return list(list_files(root, inside, SUFFIXES).paths)


def tick() -> None:
    """Waits for more than a tick of the file system's clock (`SETTLED_NS`)."""
    time.sleep(0.02)


def kept_files() -> list:
    return [path for path in cache_folder().rglob("*") if path.is_file()]


# ---- what is listed


def test_order_sizes_and_subfolders(folder):
    put(folder, "b/6.png", size=7)
    listing = list_files(folder, "", SUFFIXES)
    assert list(listing.paths) == ["a-b/5.png", "a/0.png", "a/deep/1.JPG", "b/2.png", "b/6.png"]
    assert listing.sizes.tolist() == [3, 3, 3, 3, 7]
    assert listed(folder, "a") == ["a/0.png", "a/deep/1.JPG"]
    assert listed(folder, "a/deep") == ["a/deep/1.JPG"]


def test_links(folder, tmp_path):
    put(tmp_path / "far", "x/7.png", size=5)
    os.symlink(tmp_path / "far", folder / "linked")
    os.symlink(folder, folder / "b" / "loop")
    os.symlink("self.png", folder / "self.png")
    os.symlink(tmp_path / "nowhere", folder / "gone.png")
    listing = list_files(folder, "", SUFFIXES)
    sizes = dict(zip(listing.paths, listing.sizes.tolist(), strict=True))
    assert sizes["linked/x/7.png"] == 5
    assert sizes["self.png"] == sizes["gone.png"] == -1, "quarantined when read, not fatal here"
    assert len(sizes) == 7


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=12)))
def test_paths_are_a_sequence_of_what_went_in(raw):
    paths = pickle.loads(pickle.dumps(Paths.of(raw)))
    assert len(paths) == len(raw)
    assert list(paths.raws()) == raw
    assert list(paths) == [os.fsdecode(path) for path in raw]
    assert [paths.raw(i) for i in range(-len(raw), 0)] == raw
    for beyond in (len(raw), -len(raw) - 1):
        with pytest.raises(IndexError):
            paths[beyond]


def test_memory_of_many_paths():
    raw = [b"n%08d/n%08d_%07d.JPEG" % (i // 100, i // 100, i) for i in range(20000)]
    assert len(pickle.dumps(Paths.of(raw))) < 1.1 * sum(len(path) + 8 for path in raw)


# ---- what is kept


def test_second_listing_walks_no_more(folder, kept_early):
    first = list_files(folder, "", SUFFIXES)
    second = list_files(folder, "", SUFFIXES)
    assert len(kept_early) == 1
    assert list(first.paths) == list(second.paths)
    assert np.array_equal(first.sizes, second.sizes)
    assert listed(folder, "a") == ["a/0.png", "a/deep/1.JPG"], "each subfolder has its own"
    assert list(list_files(folder, "", (".txt",)).paths) == ["a/3.txt"], "and each choice of names"


@pytest.mark.parametrize(
    "change", ["add", "remove", "rename", "old time", "swap folders", "link", "new folder"]
)
def test_changes_are_seen(folder, tmp_path, kept_early, change):
    os.symlink(folder / "b", folder / "c")
    before = listed(folder)
    assert listed(folder) == before
    tick()
    if change == "add":
        put(folder, "a/deep/9.png")
    elif change == "remove":
        (folder / "b/2.png").unlink()
    elif change == "rename":
        (folder / "b/2.png").rename(folder / "b/8.png")
    elif change == "old time":  # as archives and copies restore it
        times = (folder / "b").stat()
        put(folder, "b/9.png")
        os.utime(folder / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "swap folders":
        put(tmp_path / "other", "8.png")
        os.utime(tmp_path / "other", ns=(0, (folder / "b").stat().st_mtime_ns))
        times = folder.stat()
        (folder / "b").rename(tmp_path / "away")
        (tmp_path / "other").rename(folder / "b")
        os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "link":
        (folder / "c").unlink()
        put(tmp_path / "far", "1.png")
        os.symlink(tmp_path / "far", folder / "c")
    elif change == "new folder":
        put(folder, "new/1.png")
    after = listed(folder)
    assert after != before
    assert set(after) == set(walked(folder))


def walked(root) -> list[str]:
    return [os.fsdecode(path) for path in manifest._walk(root, "", (b".png", b".jpg")).paths]


def test_a_file_replaced_in_place_is_not_seen(folder, kept_early):
    """The docstring of the module states this limit."""
    source = open_source(f"folder:{folder}")
    tick()
    put(folder, "b/2.png", size=99)
    assert open_source(f"folder:{folder}").fingerprint() == source.fingerprint()
    put(folder, "b/new.png")
    assert open_source(f"folder:{folder}").fingerprint() != source.fingerprint()


def test_few_or_fresh_files_are_not_kept(folder, monkeypatch):
    now = time.time_ns()
    listed(folder)
    assert not kept_files(), "few"
    monkeypatch.setattr(manifest, "KEPT_FROM", 4)
    listed(folder)
    assert not kept_files(), "a folder has changed just now: another change may not show"
    monkeypatch.setattr(manifest.time, "time_ns", lambda: now + 1_500_000_000)
    listed(folder)
    assert not kept_files()
    monkeypatch.setattr(manifest.time, "time_ns", lambda: now + 4_000_000_000)
    listed(folder)
    assert len(kept_files()) == 1


def test_links_to_nowhere_are_not_kept(folder, tmp_path, kept_early):
    os.symlink(tmp_path / "later", folder / "later")
    assert len(listed(folder)) == 4
    put(tmp_path / "later", "1.png")
    assert len(listed(folder)) == 5


@pytest.mark.parametrize("damage", ["text", "half", "empty", "lacks", "sizes", "starts", "pickle"])
def test_damaged_files_are_ignored_and_made_again(folder, kept_early, damage):
    before = listed(folder)
    (path,) = kept_files()
    whole = path.read_bytes()
    with np.load(path) as kept:
        arrays = dict(kept)
    if damage == "lacks":
        del arrays["sizes"]
    elif damage == "sizes":
        arrays["sizes"] = arrays["sizes"][:-1]
    elif damage == "starts":
        arrays["starts"] = arrays["starts"][::-1]
    elif damage == "pickle":
        arrays["text"] = np.array([{}], dtype=object)
    np.savez(path, **arrays)
    content = {"text": b"no archive", "half": whole[: len(whole) // 2], "empty": b""}
    if damage in content:
        path.write_bytes(content[damage])
    assert listed(folder) == before
    assert len(kept_early) == 2
    assert listed(folder) == before
    assert len(kept_early) == 2, "it was made again"


def test_a_cache_that_cannot_be_written_costs_nothing(folder, tmp_path, kept_early):
    (tmp_path / "cache").write_text("a file")
    assert listed(folder) == listed(folder)
    assert len(kept_early) == 2


def test_the_cache_is_where_users_have_theirs(folder, tmp_path, kept_early):
    listed(folder)
    (path,) = kept_files()
    assert path.is_relative_to(tmp_path / "cache" / "vitrail" / "folders")
    assert path.suffix == cache_file("folders", "x").suffix
    assert sorted(folder.iterdir()) == sorted(
        folder / name for name in (".hidden", "a", "a-b", "b")
    ), "nothing is left in the folder itself"


def test_a_source_from_a_kept_listing_is_the_same(folder, kept_early):
    first, second = (open_source(f"folder:{folder}") for _ in range(2))
    assert len(kept_early) == 1
    assert first.fingerprint() == second.fingerprint()
    assert list(first.classes) == list(second.classes) == ["a", "a-b", "b"]
    labels = [second.label(i) for i in range(len(second))]
    assert labels == [first.label(i) for i in range(len(first))] == [1, 0, 0, 2]
    copy = pickle.loads(pickle.dumps(second))
    assert [copy.id(i) for i in range(4)] == ["a-b/5.png", "a/0.png", "a/deep/1.JPG", "b/2.png"]
