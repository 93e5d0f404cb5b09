"""The run folder: found again, never overwritten by accident, held by one process, whole after a crash."""

import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.common import files
from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.training.runs import checkpoints, lock
from ldm.training.runs.checkpoints import Checkpoints
from ldm.training.runs.folder import (
    RunFolder,
    find_run,
    newest_checkpoint,
    open_run,
    remove_checkpoint,
    run_names,
    write_checkpoint,
)


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


def make_run(runs: Path, name: str, finished: bool = True, stage: str = "ldm") -> Path:
    with open_run(stage, name, runs_dir=runs) as run:
        run.save_config({"name": name, "text": "猫"})
        write_checkpoint(run.checkpoints / "step-00000010.ckpt", b"ten")
        if finished:
            run.finish()
    return run.path


def lock_of(folder: Path, **changes) -> None:
    """Leaves the lock that another process would have left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / lock.NAME).write_text(json.dumps(lock._identity() | changes))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_new_run_has_its_folders_and_its_config(runs):
    path = make_run(runs, "emoji")
    assert path == runs / "ldm" / "emoji"
    assert (path / "samples").is_dir()
    assert "猫" in (path / "config.yaml").read_text()
    assert not (path / lock.NAME).exists()


@pytest.mark.parametrize("finished", [True, False])
def test_an_existing_run_is_refused_with_the_ways_out(runs, finished):
    make_run(runs, "emoji", finished)
    with pytest.raises(UserError) as error:
        open_run("ldm", "emoji", runs_dir=runs)
    assert all(way in str(error.value) for way in ("resume=true", "overwrite=true", "name="))
    assert ("is finished" in str(error.value)) == finished
    assert not (runs / "ldm" / "emoji" / lock.NAME).exists()


def test_a_run_that_never_began_is_no_obstacle(runs):
    with open_run("ldm", "emoji", runs_dir=runs) as run:
        run.save_config({})
    open_run("ldm", "emoji", runs_dir=runs).close()


def test_resuming_a_finished_run_has_nothing_to_do(runs, capsys):
    make_run(runs, "emoji")
    with open_run("ldm", "emoji", resume=True, runs_dir=runs) as run:
        assert run.finished
    assert "nothing to do" in capsys.readouterr().out


def test_resuming_finds_the_checkpoint_and_says_when_there_is_none(runs, capsys):
    path = make_run(runs, "emoji", finished=False)
    with open_run("ldm", "emoji", resume=True, runs_dir=runs) as run:
        assert run.newest_checkpoint() == path / "checkpoints" / "step-00000010.ckpt"
        assert not run.finished
    assert capsys.readouterr().out == ""
    open_run("ldm", "fresh", resume=True, runs_dir=runs).close()
    assert capsys.readouterr().out == ""  # it begins, and has nothing to say
    (path / "checkpoints" / "step-00000010.ckpt").write_bytes(b"cut")
    open_run("ldm", "emoji", resume=True, runs_dir=runs).close()
    assert "step 0" in capsys.readouterr().out


def test_overwriting_clears_the_run_but_not_a_sweeps_runs_inside(runs):
    path, job = make_run(runs, "emoji"), make_run(runs, "emoji/channels-64")
    with open_run("ldm", "emoji", overwrite=True, runs_dir=runs) as run:
        assert run.newest_checkpoint() is None
        assert not run.finished
        assert not run.config.exists()
    assert (job / "DONE").exists()
    assert path.exists()


def test_a_second_process_takes_no_overwritten_run_for_finished(runs, monkeypatch):
    """It may come before the first one has cleared the folder: it left, and the first waited for it for ever."""
    with open_run("ldm", "a", runs_dir=runs) as run:
        run.finish()
    monkeypatch.setenv("RANK", "1")
    second = open_run("ldm", "a", overwrite=True, runs_dir=runs)
    assert (run.path / "DONE").exists() and not second.finished


def test_a_sweeps_run_may_lie_in_a_folder_that_is_no_run_yet(runs):
    make_run(runs, "emoji/channels-64")
    open_run("ldm", "emoji", runs_dir=runs).close()


def test_resume_and_overwrite_contradict(runs):
    with pytest.raises(UserError, match="contradict"):
        open_run("ldm", "emoji", resume=True, overwrite=True, runs_dir=runs)


@pytest.mark.parametrize("name", ["", " ", "../up", "/abs", ".hidden", "a\0b"])
def test_a_name_that_leaves_the_folder_is_refused(runs, name):
    with pytest.raises(UserError, match="name"):
        open_run("ldm", name, runs_dir=runs)
    assert not runs.exists()


def test_a_run_in_use_is_refused_with_its_holder(runs):
    with open_run("ldm", "emoji", runs_dir=runs), pytest.raises(UserError, match="already open in this process"):
        open_run("ldm", "emoji", resume=True, runs_dir=runs)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started = lock._process_start(other.pid)
        lock_of(runs / "ldm" / "emoji", pid=other.pid, started=started)
        with pytest.raises(UserError, match=f"process {other.pid} on {socket.gethostname()}"):
            open_run("ldm", "emoji", overwrite=True, runs_dir=runs)
        other.kill()
        while lock.is_live(lock.read(runs / "ldm" / "emoji")) is not False:
            pass  # killed, not yet reaped by us: a zombie holds nothing
        open_run("ldm", "emoji", resume=True, runs_dir=runs).close()
    finally:
        other.kill()
        other.wait()


def test_a_stale_lock_is_taken_over(runs):
    lock_of(runs / "ldm" / "gone", pid=dead_pid())
    open_run("ldm", "gone", runs_dir=runs).close()
    lock_of(runs / "ldm" / "reused", started="1")  # this pid, but of an earlier process
    open_run("ldm", "reused", runs_dir=runs).close()


def test_a_lock_of_another_host_or_a_damaged_one_is_respected(runs):
    lock_of(runs / "ldm" / "far", host="elsewhere", pid=dead_pid())
    (runs / "ldm" / "spoilt").mkdir()
    (runs / "ldm" / "spoilt" / lock.NAME).write_text("{")
    for name in ("far", "spoilt"):
        with pytest.raises(UserError, match="in use"):
            open_run("ldm", name, resume=True, runs_dir=runs)


def test_a_requeued_slurm_job_takes_its_own_lock_over_from_another_host(runs, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    lock_of(runs / "ldm" / "emoji", host="elsewhere", slurm_restart=None)
    with pytest.raises(UserError, match="in use"):
        open_run("ldm", "emoji", resume=True, runs_dir=runs)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    open_run("ldm", "emoji", resume=True, runs_dir=runs).close()


def test_of_many_processes_one_gets_the_run(runs):
    lock_of(runs / "ldm" / "emoji", pid=dead_pid())  # which each of them finds stale
    fork = multiprocessing.get_context("fork")
    answers, together = fork.Queue(), fork.Barrier(3, timeout=60)

    def take() -> None:
        together.wait()
        try:
            open_run("ldm", "emoji", runs_dir=runs)
            answers.put("mine")
        except UserError:
            answers.put("refused")
        together.wait()  # the one that has it holds it until all have tried

    processes = [fork.Process(target=take) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in processes) == ["mine", "refused", "refused"]
    for process in processes:
        process.join()


def test_runs_are_found_by_name_and_by_path(runs, tmp_path, monkeypatch):
    path, job = make_run(runs, "emoji"), make_run(runs, "emoji/channels-64")
    assert find_run("ldm", "emoji", runs) == path
    assert find_run("ldm", "emoji/channels-64", runs) == job
    assert find_run("ldm", str(path), "nowhere") == path
    assert find_run("ldm", path / "checkpoints" / "step-00000010.ckpt", runs).is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a folder that happens to have the name is no run
    with pytest.raises(UserError, match="no run 'digits'"):
        find_run("ldm", "digits", runs)
    assert run_names("ldm", runs) == ["emoji", "emoji/channels-64"]


def test_a_run_that_is_not_there_gets_a_hint(runs):
    with pytest.raises(UserError, match="train_vae.py first"):
        find_run("vae", "emoji", runs)
    make_run(runs, "emoji", stage="vae")
    with pytest.raises(UserError, match="Did you mean 'emoji'"):
        find_run("vae", "emojy", runs)


def test_the_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    paths = [tmp_path / f"step-{step:08d}.ckpt" for step in (9, 10, 200)]
    for path in paths:
        write_checkpoint(path, path.name.encode() * 100)
    assert newest_checkpoint(tmp_path) == paths[2]
    paths[2].write_bytes(paths[2].read_bytes()[:-1])  # cut
    assert newest_checkpoint(tmp_path) == paths[1]
    assert "step-00000200.ckpt is damaged" in caplog.text
    flipped = bytearray(paths[1].read_bytes())
    flipped[5] ^= 1
    paths[1].write_bytes(flipped)
    assert newest_checkpoint(tmp_path) == paths[0]
    remove_checkpoint(paths[0])
    assert not list(tmp_path.glob("*09.ckpt*"))
    paths[2].with_name("step-00000300.ckpt").write_bytes(b"no sidecar: killed before it was written")
    assert newest_checkpoint(tmp_path) is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic_write(path, fail)
    with pytest.raises(UserError, match="No space left"):
        atomic_write(path, lambda file: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_swept_away(runs):
    path = make_run(runs, "emoji", finished=False)
    left = path / "checkpoints" / ".step-00000020.ckpt.abc.tmp"
    left.write_bytes(b"half")
    open_run("ldm", "emoji", resume=True, runs_dir=runs).close()
    assert not left.exists()


def read_to_the_end(monkeypatch) -> list[str]:
    """The names of the files that are hashed from now on."""
    seen: list[str] = []
    whole = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: (seen.append(path.name), whole(path))[1])
    return seen


def two_checkpoints(path: Path) -> list[Path]:
    paths = [path / "checkpoints" / f"step-{step:08d}.ckpt" for step in (20, 30)]
    for one in paths:
        write_checkpoint(one, one.name.encode() * 100)
    return paths


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def test_resuming_reads_the_newest_checkpoint_once(runs, monkeypatch):
    newest = two_checkpoints(make_run(runs, "emoji"))[1]
    seen = read_to_the_end(monkeypatch)
    more = lambda folder: folder.newest_checkpoint() == newest  # noqa: E731
    with open_run("ldm", "emoji", resume=True, runs_dir=runs, more=more) as run:
        assert run.newest_checkpoint() == run.newest_checkpoint() == newest
    assert seen == [newest.name]


def test_what_this_process_wrote_is_not_read_again_unless_it_changed(runs, monkeypatch):
    with open_run("ldm", "emoji", runs_dir=runs) as run:
        old, newest = two_checkpoints(run.path)
        run.note_whole(newest)
        seen = read_to_the_end(monkeypatch)
        assert run.newest_checkpoint() == newest and not seen
        time.sleep(0.02)  # a file system counts time in ticks
        flip(newest)
        assert run.newest_checkpoint() == old and seen == [newest.name, old.name]


def test_other_processes_look_at_sizes_alone(runs, monkeypatch):
    old, newest = two_checkpoints(make_run(runs, "emoji", finished=False))
    monkeypatch.setenv("RANK", "1")
    seen = read_to_the_end(monkeypatch)
    flip(newest)
    with open_run("ldm", "emoji", resume=True, runs_dir=runs) as run:
        assert run.newest_checkpoint() == newest
        newest.write_bytes(newest.read_bytes()[:-1])
        assert run.newest_checkpoint() == old
    assert not seen


def test_processes_that_chose_different_checkpoints_do_not_train_on(runs, monkeypatch):
    old, newest = two_checkpoints(make_run(runs, "emoji"))
    for others in ([old.name, newest.name], ["step 0", newest.name]):
        monkeypatch.setattr(checkpoints, "gathered", lambda own, others=others: [others[0], own])
        with pytest.raises(
            UserError, match=f"continues from {others[0]}, but other processes had started with {newest.name}"
        ):
            Checkpoints(RunFolder(runs), begins=newest).setup(None, None, "fit")
    monkeypatch.setattr(checkpoints, "gathered", lambda own: [own, own])
    Checkpoints(RunFolder(runs), begins=newest).setup(None, None, "fit")


@pytest.mark.parametrize("size", [0, 1000, files.Hashing.LARGE - 1, 3 * files.Hashing.LARGE + 1])
def test_what_passes_through_is_counted_and_hashed(tmp_path, size):
    content = os.urandom(size)
    with open(tmp_path / "file", "wb") as file:
        hashing = files.Hashing(file)
        for part in (content, content[:100], memoryview(content)):
            assert hashing.write(part) == len(part)
    whole = content + content[:100] + content
    assert (tmp_path / "file").read_bytes() == whole
    assert hashing.record == {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_large_piece_that_finds_no_room_is_reported():
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as file:
        files.Hashing(file).write(bytes(2 * files.Hashing.LARGE))
