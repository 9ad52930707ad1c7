"""Deaths of workers: the cause is reported, and a file that crashes its decoder is a bad file."""

import errno
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.contract import Batch
from vitrail.data.loading import workers as workers_module
from vitrail.data.loading.loader import Loader, read_images
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.loading.reader import Reader, Request
from vitrail.data.loading.workers import read_slices
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import RandomResizedCrop

PLAN = RandomResizedCrop(8).plan()

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def source(tmp_path):
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        path = tmp_path / "images" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return open_source(f"folder:{tmp_path / 'images'}")


def deadly(source, ids: set[str], by: int) -> None:
    """Makes these files kill the process that reads them."""
    read = source.read

    def kill(index, *detail):
        if source.id(index) in ids:
            faulthandler.disable()  # pytest's, which would tell a long story
            os.kill(os.getpid(), by)
            time.sleep(10)  # the signal comes at once, though not before os.kill returns
        return read(index, *detail)

    source.read = kill


def loader_of(source, quarantine: Quarantine, workers: int = 2) -> Loader:
    return Loader(
        source, PLAN, batch_size=20, seed=3, device="cpu", workers=workers, quarantine=quarantine
    )


def run(loader: Loader, stop: int = 6) -> list[Batch]:
    return [batch for [batch] in loader.steps(0, stop)]


@pytest.mark.parametrize("by", [signal.SIGSEGV, signal.SIGABRT])
def test_a_file_that_crashes_its_decoder_is_replaced_as_any_bad_file(source, tmp_path, by):
    known = Quarantine(None, 40)
    for id in ("07.png", "21.png"):
        known.add(id, "known to be bad")
    expected = run(loader_of(source, known, workers=0))
    deadly(source, {"07.png", "21.png"}, by)
    path = tmp_path / "quarantine.jsonl"
    found = run(loader_of(source, Quarantine(path, 40)))
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.index, other.index)
        assert torch.equal(batch.label, other.label)
        assert torch.equal(batch.views[0], other.views[0])
    reasons = Quarantine(path, 40).entries
    assert reasons.keys() == {"07.png", "21.png"}
    assert reasons["07.png"].startswith(f"its decoder crashed: signal {int(by)} (")
    assert not multiprocessing.active_children()


def test_a_killed_reader_is_named_with_its_file(source, tmp_path):
    deadly(source, {"07.png"}, signal.SIGKILL)
    path = tmp_path / "quarantine.jsonl"
    died = r'folder:.*died on signal 9 \(Killed\) while reading "07.png"; the memory may have run'
    with pytest.raises(OSError, match=died):
        run(loader_of(source, Quarantine(path, 40)))
    with pytest.raises(OSError, match=died):
        list(read_images(source, Quarantine(path, 40), workers=2))
    assert not path.exists(), "nobody knows that the file is bad"
    assert not multiprocessing.active_children()


def test_crashes_without_end_stop_the_run_and_accuse_no_file(source, tmp_path):
    deadly(source, {source.id(i) for i in range(40)}, signal.SIGSEGV)
    path = tmp_path / "quarantine.jsonl"
    with pytest.raises(OSError, match=r"4 processes that read images died in a row, .*signal 11"):
        run(loader_of(source, Quarantine(path, 40)))
    assert not path.exists()
    assert not multiprocessing.active_children()


def test_a_death_between_images_surfaces_where_images_are_waited_for_and_nowhere_else(source):
    steps = loader_of(source, Quarantine(None, 40), workers=1).steps(0, 10**6)
    next(steps)
    [worker] = multiprocessing.active_children()
    until_idle(worker.pid)
    os.kill(worker.pid, signal.SIGKILL)
    wait([worker.sentinel])
    assert sum(i * i for i in range(10**5)) > 0  # a step: no signal handler raises in it
    with pytest.raises(OSError, match=r"died on signal 9 \(Killed\) while reading none of them"):
        for _ in steps:
            pass
    assert not multiprocessing.active_children()


def until_idle(pid: int) -> None:
    """Waits until a worker has read ahead as far as it may."""
    before, now = -1.0, 0.0
    while now > before:
        before = now
        time.sleep(0.1)
        ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        now = float(ticks[11]) + float(ticks[12])


def test_a_process_that_ends_by_itself_is_an_error(source, monkeypatch):
    read = source.read
    source.read = lambda i, *rest: os._exit(3) if i == 7 else read(i, *rest)
    with pytest.raises(OSError, match=r'died on exit code 3 while reading "07.png"'):
        run(loader_of(source, Quarantine(None, 40)))


def test_an_error_that_cannot_be_sent_is_told_in_words(source):
    class LocalError(Exception):
        pass

    def fail(*_):
        raise LocalError("of a class that only this process knows")

    source.read = fail
    with pytest.raises(RuntimeError, match="LocalError: of a class that only") as caught:
        run(loader_of(source, Quarantine(None, 40)))
    assert "in fail" in str(caught.value.__cause__)


def test_workers_leave_signals_to_the_main_process(source):
    slices = read_slices(Reader(source, 0, ()), (Request([i]) for i in range(40)), 2)
    next(slices)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    assert [read.indices for read in slices] == [[i] for i in range(1, 40)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_meets_a_worker_as_it_starts_is_not_its_own(source, number, monkeypatch):
    serve = workers_module._serve

    def signalled(*arguments):
        os.kill(os.getpid(), number)
        serve(*arguments)

    monkeypatch.setattr(workers_module, "_serve", signalled)
    slices = read_slices(Reader(source, 0, ()), (Request([i]) for i in range(6)), 2)
    assert [read.indices for read in slices] == [[i] for i in range(6)]


def test_requests_are_made_as_they_are_asked_for(source):
    made = []

    def requests():
        for i in range(40):
            made.append(i)
            yield Request([i])

    slices = read_slices(Reader(source, 0, ()), requests(), 2)
    next(slices)
    assert len(made) == 2 * workers_module.PREFETCH + 1
    slices.close()


def test_workers_end_when_the_main_process_is_killed(source):
    ours, theirs = multiprocessing.Pipe()

    def main() -> None:
        steps = loader_of(source, Quarantine(None, 40)).steps(0, 10**6)
        next(steps)
        theirs.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    process = multiprocessing.Process(target=main)
    process.start()
    pids = ours.recv()
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(lives(pid) for pid in pids)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


KEPT = """
import sys
from vitrail.data.loading.reader import Reader, Request
from vitrail.data.sources.registry import open_source
from vitrail.data.loading.workers import read_slices

def reading():
    return read_slices(Reader(source, 0, ()), (Request([0]) for _ in range(100)), 2)

def fail(*_):
    raise LookupError("of a worker")

source = open_source("folder:" + sys.argv[1])
begun = reading()
next(begun)  # it is never closed
source.read = fail
try:
    list(reading())
except LookupError as error:
    kept = error  # its traceback holds every frame, and what they hold, until the very end
raise SystemExit(7)
"""


def test_a_process_ends_though_workers_still_read_and_an_error_of_theirs_is_kept(source):
    folder = source.spec.removeprefix("folder:")
    done = subprocess.run([sys.executable, "-c", KEPT, folder], timeout=50)
    assert done.returncode == 7


def test_nothing_is_left_in_the_temporary_folder(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder = source.spec.removeprefix("folder:")
    done = subprocess.run([sys.executable, "-c", CLEAN, folder], timeout=50)
    assert done.returncode == 0
    assert not list((tmp_path / "temporary").iterdir())


CLEAN = """
import sys
from vitrail.data.loading.reader import Reader, Request
from vitrail.data.sources.registry import open_source
from vitrail.data.loading.workers import read_slices

source = open_source("folder:" + sys.argv[1])
assert len(list(read_slices(Reader(source, 0, ()), (Request([i]) for i in range(9)), 2))) == 9
"""


def test_the_size_of_shared_memory_does_not_matter(source, monkeypatch):
    from multiprocessing import heap

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    # torch would take the images' memory from there
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    assert heap.Arena._dir_candidates == ["/dev/shm"]
    slices = read_slices(Reader(source, 0, ()), (Request([i]) for i in range(6)), 2)
    assert [read.indices for read in slices] == [[i] for i in range(6)]


def test_images_of_16_bits_cross_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 3, 5, 2), dtype=np.uint16)
    for i, image in enumerate(pixels):
        np.save(tmp_path / f"{i}.npy", image.transpose(2, 0, 1))
    source = open_source(f"folder:{tmp_path},bits=16", channels=2)
    requests = [Request([i]) for i in range(4)]
    for read, own in zip(
        read_slices(Reader(source, 0, ()), requests, 2),
        read_slices(Reader(source, 0, ()), requests, 0),
        strict=True,
    ):
        assert torch.equal(read.pixels, own.pixels)
        assert read.pixels.dtype is torch.uint16


def test_memory_that_runs_out_is_an_error_in_words(source, monkeypatch):
    def none_left(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        list(read_slices(Reader(source, 0, ()), [Request([0])], 1))
    assert not multiprocessing.active_children()


def test_a_stopped_worker_ends_with_the_main_process(source):
    ours, theirs = multiprocessing.Pipe()

    def main() -> None:
        steps = loader_of(source, Quarantine(None, 40)).steps(0, 10**6)
        next(steps)
        theirs.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    process = multiprocessing.Process(target=main)
    process.start()
    pids = ours.recv()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(lives(pid) for pid in pids)


def test_an_interrupt_while_a_worker_starts_leaves_none(source, monkeypatch):
    start = multiprocessing.context.ForkProcess.start

    def interrupted(process):
        start(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(read_slices(Reader(source, 0, ()), [Request([0])], 3))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [100_000, 1025, -1])
def test_a_number_of_workers_that_makes_no_sense(source, workers):
    with pytest.raises(ValueError, match=f"workers is {workers}; it must be from 0 to 1024"):
        list(read_slices(Reader(source, 0, ()), [Request([0])], workers))


SCRIPT = """
import multiprocessing, sys
{guard}
    multiprocessing.set_start_method(sys.argv[2], force=True)
    from vitrail.data.loading.loader import read_images
    from vitrail.data.loading.quarantine import Quarantine
    from vitrail.data.loading.start_method import refuse_second_run
    from vitrail.data.sources.registry import open_source
    refuse_second_run()
    source = open_source("folder:" + sys.argv[1])
    print(sum(len(i) for i, _ in read_images(source, Quarantine(None, 40), 1)))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("guarded", [True, False])
def test_start_methods(source, tmp_path, method, guarded):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard="if __name__ == '__main__':" if guarded else "if True:"))
    folder = source.spec.removeprefix("folder:")
    command = [sys.executable, str(script), folder, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    if guarded or method == "fork":
        assert done.stdout == "40\n", done
        return
    assert done.returncode == 1
    assert "OSError: folder:" in done.stderr
    assert f"start method of multiprocessing, '{method}'" in done.stderr.splitlines()[-1]
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
