"""What happens to runs, done to them: each fault for real, with its message, its exit code and what is left."""

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import artifact
from ldm.common.errors import UserError
from ldm.data.caches import latents
from ldm.data.datamodule import BatchModule
from ldm.data.storage.table import Table
from ldm.model.loading import load
from ldm.networks import AutoencoderKL
from ldm.training.runs import guards, lock
from ldm.training.runs.folder import RunFolder
from ldm.training.runs.signals import continuing_command
from ldm.training.task import Task
from ldm.training.trainer.loggers import MetricsCsv, rows_of
from tests.reliability.runs import (
    assert_same_run,
    checkpoint,
    forked,
    signalled,
    steps,
    strike,
    struck_run,
    train,
)

RUN = Path("runs/vae/squares")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A folder with a run that was stopped after its fourth step."""
    folder = tmp_path_factory.mktemp("stopped")
    with contextlib.chdir(folder):
        code = forked(struck_run("vae", Task, "training_step", 4, signalled(signal.SIGTERM), "trainer.max_steps=8"))
        assert code == 143
        assert steps(RUN) == [2, 4]
    return folder


@pytest.fixture
def started(here, stopped) -> Path:
    """The stopped run, copied to be gone on with."""
    shutil.copytree(stopped, here, dirs_exist_ok=True)
    return RUN


def fails(output: Path, stage: str, *words: str, before=lambda: None) -> str:
    """What a run in its own process says that ends with the exit code of a user's error."""

    def work():
        before()
        train(stage, *words)

    assert forked(work, output) == 2, output.read_text()
    printed = output.read_text()
    assert "Traceback" not in printed
    return printed.split("error: ", 1)[1]


# Signals -------------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_after_the_step_with_130_and_a_second_one_at_once(here, capfd):
    interrupt = signalled(signal.SIGINT)
    assert forked(struck_run("vae", Task, "training_step", 3, interrupt, "trainer.max_steps=8")) == 130
    printed = capfd.readouterr().err
    assert "stopping after this step" in printed and "step-00000003.ckpt. To continue: python train_vae.py" in printed
    assert steps(RUN) == [2, 3]
    load(RUN / "checkpoints" / "step-00000003.ckpt")

    def twice():
        strike(Task, "training_step", 2, interrupt)
        strike(Task, "on_train_batch_end", 2, interrupt)
        train("vae", "trainer.max_steps=8", "resume=true")

    assert forked(twice) == 130
    assert steps(RUN) == [3, 4]  # the fifth step wasn't waited for


def test_the_command_that_continues_is_this_one_with_resume():
    words = ["/a b/train_ldm.py", "data=digits", "overwrite=true", "data.root=my photos", "+resume=false"]
    assert continuing_command(words) == "python '/a b/train_ldm.py' data=digits 'data.root=my photos' resume=true"
    assert continuing_command(["/x/bin/ldm", "train-ldm"]) == "ldm train-ldm resume=true"


# Numbers -------------------------------------------------------------------------------------------------------------


def poison(sample: int) -> None:
    """Makes the loss of one training sample infinite."""
    original = BatchModule.on_after_batch_transfer

    def poisoned(self, batch, dataloader_idx):
        out = original(self, batch, dataloader_idx)
        if "image" in out and "start" in out:
            out["image"][out["index"] == sample] = float("inf")
        return out

    BatchModule.on_after_batch_transfer = poisoned


def sample_of_step(step: int) -> int:
    from ldm.data.order import index_of

    return int(index_of(np.arange(8 * (step - 1), 8 * step), 60, 0)[3])


def test_of_the_batches_of_a_step_no_number_is_kept(tmp_path):
    """They would take the device's memory for two steps."""
    guard = guards.FiniteGuard(RunFolder(tmp_path))
    kept = []
    for i in range(4):
        batch = {"start": 8 * i, "image": torch.zeros(8), "index": torch.arange(8)}
        kept += [weakref.ref(value) for value in batch.values() if isinstance(value, torch.Tensor)]
        guard.on_train_batch_start(SimpleNamespace(accumulate_grad_batches=2), None, batch, i)
        del batch
    assert guard._starts == [16, 24] and not any(one() is not None for one in kept)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_sample(started, tmp_path):
    bad = sample_of_step(6)
    words = ("trainer.max_steps=8", "resume=true", "checkpoint.every_n_steps=1")
    printed = fails(tmp_path / "out", "vae", *words, before=lambda: poison(bad))
    assert printed.startswith("step 6: the loss of sample")
    assert f"sample {bad} ({bad}.png) isn't finite." in printed
    assert "The last good checkpoint is runs/vae/squares/checkpoints/step-00000005.ckpt" in printed
    saved = checkpoint(RUN, 5)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())
    load(RUN / "checkpoints" / "step-00000005.ckpt")


def test_no_sample_is_named_for_want_of_memory(started, tmp_path):
    def full(task, row):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def before():
        poison(sample_of_step(6))
        guards.loss_of = full

    printed = fails(tmp_path / "out", "vae", "trainer.max_steps=8", "resume=true", before=before)
    assert printed.startswith("step 6: the loss or its gradient isn't finite for one or more of sample ")


def test_such_updates_are_left_out_up_to_a_limit(started, tmp_path):
    bad = sample_of_step(6)

    def work():
        poison(bad)
        train("vae", "trainer.max_steps=8", "resume=true", "skip_bad_batches=1")

    assert forked(work, tmp_path / "out") == 0
    assert "update left out (1 of at most 1)" in (tmp_path / "out").read_text()
    state = checkpoint(RUN, 8)
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert state["optimizer_states"][0]["state"][0]["step"] == 7  # one less


def test_one_in_the_last_step_is_found_before_the_end_is_saved(started, tmp_path):
    """The flag of an update is read at the next one, and there is none."""
    bad = sample_of_step(7)
    printed = fails(tmp_path / "out", "vae", "trainer.max_steps=7", "resume=true", before=lambda: poison(bad))
    assert printed.startswith("step 7: the loss of sample") and f"sample {bad} " in printed
    assert steps(RUN)[-1] == 6 and not (RUN / "DONE").exists()


def test_an_optimizer_that_cannot_leave_out_an_update_has_its_gradients_taken_away(here, tmp_path):
    bad = sample_of_step(2)

    def work():
        poison(bad)
        Task.configure_optimizers = lambda self: torch.optim.SGD(self.trained.parameters(), momentum=0.9)
        train("vae", "trainer.max_steps=3", "skip_bad_batches=1")

    assert forked(work, tmp_path / "out") == 0, (tmp_path / "out").read_text()
    printed = (tmp_path / "out").read_text()
    assert "step 2: the loss of sample" in printed and "1 of at most 1" in printed
    assert all(value.isfinite().all() for value in checkpoint(RUN, 3)["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_not_finite_is_found_in_other_precisions_too(here, tmp_path, precision, optimizer):
    """In float16 the scaler leaves the update out and halves its scale, which mustn't hide the sample."""
    bad = sample_of_step(6)
    words = ("trainer.max_steps=8", f"trainer.precision={precision}", f"optimizer.name={optimizer}")
    printed = fails(tmp_path / "out", "vae", *words, before=lambda: poison(bad))
    assert printed.startswith("step 6: the loss of sample") and f"sample {bad} ({bad}.png) isn't finite." in printed
    assert "The last good checkpoint is runs/vae/squares/checkpoints/step-00000004.ckpt" in printed

    def work():
        poison(bad)
        train("vae", *words, "resume=true", "skip_bad_batches=1")

    assert forked(work, tmp_path / "skipped") == 0, (tmp_path / "skipped").read_text()
    assert "update left out (1 of at most 1)" in (tmp_path / "skipped").read_text()
    state = checkpoint(RUN, 8)
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    made = {float(own["step"]) for own in state["optimizer_states"][0]["state"].values() if "exp_avg" in own}
    assert made == {7} and all(v.isfinite().all() for v in every_tensor(state["optimizer_states"]))


def every_tensor(tree) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for part in parts for tensor in every_tensor(part)]


@pytest.mark.slow
def test_a_gradient_too_large_for_every_scale_does_not_halve_it_for_ever(here, tmp_path):
    def spoil():
        original = Task.training_step

        def training_step(self, batch, batch_idx):
            loss = original(self, batch, batch_idx)
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss

        Task.training_step = training_step

    printed = fails(tmp_path / "out", "vae", "trainer.max_steps=40", "trainer.precision=16-mixed", before=spoil)
    assert printed.startswith("step 17: the loss is finite but its gradient isn't")  # 2^16 halved 16 times


# The machine ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_and_leaves_the_last_checkpoint(started, tmp_path):
    before = (RUN / "checkpoints" / "step-00000004.ckpt").read_bytes()
    size = len(before) // 2

    def fill():  # no file may grow beyond half a checkpoint; the kernel refuses the write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    printed = fails(tmp_path / "out", "vae", "trainer.max_steps=8", "resume=true", before=fill)
    assert "can't be written (File too large): make room" in printed and "resume=true" in printed
    assert (RUN / "checkpoints" / "step-00000004.ckpt").read_bytes() == before
    load(RUN / "checkpoints" / "step-00000004.ckpt")
    assert not list(RUN.rglob("*.tmp"))


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX rights")
def test_a_read_only_folder_is_reported_at_once(here, tmp_path):
    (here / "locked").mkdir(mode=0o555)
    (here / "scratch").mkdir()
    (here / "scratch").chmod(0o777)
    here.chmod(0o755)

    def drop():  # root may write anywhere
        tempfile.tempdir = "scratch"
        if os.geteuid() == 0:
            os.seteuid(65534)

    printed = fails(tmp_path / "out", "vae", "runs_dir=locked", "trainer.max_steps=2", before=drop)
    assert "locked" in printed and "fix" in printed and "runs_dir=" in printed


def test_a_killed_worker_is_reported(started, tmp_path):
    from ldm.data.datamodule import TrainBatches

    def kill_worker():
        strike(TrainBatches, "__getitem__", 3, signalled(signal.SIGKILL))

    words = ("trainer.max_steps=8", "resume=true", "loader.workers=1")
    printed = fails(tmp_path / "out", "vae", *words, before=kill_worker)
    assert "data worker" in printed and "loader.workers=0" in printed and "resume=true" in printed
    load(RUN / "checkpoints" / "step-00000004.ckpt")


def test_a_worker_killed_while_its_batch_was_on_its_way_is_reported_too(tmp_path):
    """The batch's memory is fetched from the worker through a connection, which breaks with it."""
    from multiprocessing.connection import Pipe

    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(EOFError) as broken:
        ours.recv()
    assert "data worker" in str(guards.explained(broken.value, {"loader": {"workers": 2}}))
    assert guards.explained(EOFError("a file's end"), {"loader": {"workers": 2}}) is None


def test_an_error_in_a_worker_is_reported_as_without_workers(started, tmp_path):
    from ldm.data.datamodule import TrainBatches

    def work_with(error):
        def give():
            raise error

        return lambda: strike(TrainBatches, "__getitem__", 2, give)

    words = ("trainer.max_steps=8", "resume=true", "loader.workers=1")
    printed = fails(tmp_path / "out", "vae", *words, before=work_with(UserError("mend the image a.png.")))
    assert printed == "mend the image a.png.\n"
    with pytest.raises(AssertionError, match="ValueError: five"):  # no fault of the machine: its traceback
        fails(tmp_path / "bug", "vae", *words, before=work_with(ValueError("five")))


def test_out_of_memory_comes_with_advice(started, tmp_path):
    def allocate():
        torch.empty(2**50)

    printed = fails(
        tmp_path / "out",
        "vae",
        "trainer.max_steps=8",
        "resume=true",
        before=lambda: strike(Task, "training_step", 2, allocate),
    )
    assert "out of memory at batch_size=8" in printed and "batch_size=4 trainer.accumulate_grad_batches=2" in printed
    load(RUN / "checkpoints" / "step-00000004.ckpt")


def test_a_run_in_use_is_refused_with_its_process(started, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        from ldm.training.runs import lock

        identity = lock._identity() | {"pid": holder.pid, "started": lock._process_start(holder.pid)}
        (RUN / lock.NAME).write_text(json.dumps(identity))
        printed = fails(tmp_path / "out", "vae", "resume=true", "trainer.max_steps=8")
        assert f"in use by process {holder.pid} on" in printed
    finally:
        holder.kill()
        holder.wait()
    train("vae", "resume=true", "trainer.max_steps=8")  # stale now
    assert (RUN / "DONE").exists()


NO_ROOM = 77


def enter_a_small_room(megabytes: float) -> None:
    """Gives this process a mount namespace of its own, whose folder `room` is a file system of that size.

    As `unshare --map-root-user --mount` does for a new program; but a forked process has imported everything already.
    """
    libc, own = ctypes.CDLL(None, use_errno=True), {"uid": os.getuid(), "gid": os.getgid()}
    new_mounts, new_user, recursive, private = 0x20000, 0x10000000, 0x4000, 0x40000  # linux/sched.h, linux/mount.h
    try:
        must(libc.unshare(new_mounts | new_user))
        Path("/proc/self/setgroups").write_text("deny")
        for kind, number in own.items():
            Path(f"/proc/self/{kind}_map").write_text(f"0 {number} 1")
        must(libc.mount(b"none", b"/", None, recursive | private, None))
        must(libc.mount(b"tmpfs", b"room", b"tmpfs", 0, f"size={int(megabytes * 2**20)}".encode()))
    except (OSError, AttributeError):  # not allowed here, or not Linux
        raise SystemExit(NO_ROOM) from None


def must(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize(("megabytes", "left"), [(0.01, "nothing"), (0.2, "no cache"), (0.55, "no checkpoint")])
def test_a_disk_that_is_full_from_the_start_is_reported_wherever_it_fills_up(here, megabytes, left):
    """No process ends by SIGBUS, as it does where a disk fills up under a memory map."""
    random, output = np.random.default_rng(0), Path("out")
    Path("photos").mkdir()
    for i in range(400):
        Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)).save(f"photos/{i}.png")
    Path("room").mkdir()

    def work():
        enter_a_small_room(megabytes)
        train("vae", "runs_dir=room/runs", "data=folder", "data.root=photos", "trainer.max_steps=8")

    code = forked(work, output)
    if code == NO_ROOM:
        pytest.skip("no namespaces here")
    printed = output.read_text()
    assert code == 2, printed
    assert "Traceback" not in printed
    assert "error: " in printed and ("No space left" in printed) and "make room" in printed
    assert not list(Path("room").iterdir()), "the small room was entered"


def test_a_full_disk_leaves_the_model_folder_as_it_was(started, monkeypatch):
    """The new files are staged, all of them, before the first is moved."""
    before = {path.name: path.read_bytes() for path in (RUN / "model").iterdir()}
    vae = load(RUN)
    for parameter in vae.parameters():
        parameter.mul_(1.01)
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def save():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = len(before["model.safetensors"]) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            artifact.save(vae, RUN / "model")
        except UserError as error:
            print(error)
            raise SystemExit(2) from None

    assert forked(save, Path("out")) == 2
    assert "can't be written (File too large)" in Path("out").read_text()
    assert {path.name: path.read_bytes() for path in (RUN / "model").iterdir()} == before


def test_figures_stay_whole_rows_on_a_full_disk_and_go_on_behind_the_last_whole_row(here, tmp_path):
    train("vae", "trainer.max_steps=2")

    def full():
        log = MetricsCsv(RUN / "metrics.csv", start=100)
        log.log_metrics({"train/loss": 1.0}, 100)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((RUN / "metrics.csv").stat().st_size + 7, limits[1]))
        try:
            log.log_metrics({"train/loss": 2.0}, 101)
        except UserError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # what is printed is a file too
            print(error)
            raise SystemExit(2) from None

    assert forked(full, tmp_path / "out") == 2
    assert "metrics.csv can't be written (File too large)" in (tmp_path / "out").read_text()
    assert rows_of(RUN / "metrics.csv")[-1] == {"step": "100", "train/loss": "1"}
    with (RUN / "metrics.csv").open("a") as file:
        file.write("10")  # as a power cut leaves a row
    log = MetricsCsv(RUN / "metrics.csv", start=101)
    log.log_metrics({"train/loss": 3.0}, 101)
    log.log_metrics({"val/loss": 4.0}, 101)  # a column more
    log.log_metrics({"train/loss": 5.0}, 102)
    assert [row for row in rows_of(RUN / "metrics.csv") if int(row["step"]) >= 100] == [
        {"step": "100", "train/loss": "1"},
        {"step": "101", "train/loss": "3"},
        {"step": "101", "val/loss": "4"},
        {"step": "102", "train/loss": "5"},
    ]


def test_figures_are_appended(here):
    log = MetricsCsv(Path("metrics.csv"))
    log.log_metrics({"a": 1.0, "b": 2.0}, 0)
    inode = os.stat("metrics.csv").st_ino
    for step in range(1, 50):
        log.log_metrics({"b": step}, step)
    assert os.stat("metrics.csv").st_ino == inode  # not replaced
    assert [int(row["step"]) for row in rows_of(Path("metrics.csv"))] == list(range(50))


# SLURM ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_slurm_stops_and_queues_again_continues_in_its_folder(here, monkeypatch, capfd, number):
    words = ("trainer.max_steps=8", "resume=true")
    train("vae", *words, "name=whole")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert forked(struck_run("vae", Task, "training_step", 5, signalled(number), *words)) == 128 + number
    assert f"stopped by {number.name}: saved runs/vae/squares/checkpoints/step-00000005.ckpt" in capfd.readouterr().err
    # a node that dies leaves its lock; the job is put on another one
    (RUN / lock.NAME).write_text(json.dumps(lock._identity() | {"host": "node-1"}))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train("vae", *words)
    assert "resumed runs/vae/squares at step 5 (sample 40)" in capfd.readouterr().out
    assert_same_run(Path("runs/vae/whole"), RUN, 8)


# What a run stands on ------------------------------------------------------------------------------------------------


def test_a_changed_option_is_reported_and_another_architecture_refused(started, tmp_path, capfd):
    printed = fails(tmp_path / "out", "vae", "resume=true", "trainer.max_steps=8", "vae.channels=16")
    assert "can't be resumed as another model: vae.channels was 8, is 16" in printed
    train("vae", "resume=true", "trainer.max_steps=8", "optimizer.lr=0.5")
    assert "changed since it was started: optimizer.lr was 0.003, is 0.5" in capfd.readouterr().out


def test_data_that_changed_are_reported(here, capfd):
    Path("photos").mkdir()
    for i in range(30):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(f"photos/{i}.png")
    words = ("data=folder", "data.root=photos", "trainer.max_steps=6")
    run = Path("runs/vae/photos")
    stop = struck_run("vae", Task, "training_step", 2, signalled(signal.SIGTERM), *words)
    assert forked(stop) == 143
    shutil.copy("photos/3.png", "photos/30.png")
    capfd.readouterr()
    train("vae", *words, "resume=true")
    printed = capfd.readouterr().out
    assert f"{run}: the data have changed; the order of the samples changes from here on" in printed
    assert f"resumed {run} at step 2" in printed and steps(run)[-1] == 6


def test_another_first_stage_under_a_trained_second_one_is_refused(here, stage_one, tmp_path):
    shutil.copytree(stage_one, "runs/vae/squares")
    stop = struck_run("ldm", Task, "training_step", 2, signalled(signal.SIGTERM), "trainer.max_steps=6")
    assert forked(stop) == 143
    vae = load(RUN)
    for parameter in vae.parameters():
        parameter.mul_(1.01)
    artifact.save(vae, RUN / "model")
    printed = fails(tmp_path / "out", "ldm", "trainer.max_steps=6", "resume=true")
    assert "was trained on the latents of another first stage (hash " in printed and "overwrite=true" in printed
    load("runs/ldm/squares/checkpoints/step-00000002.ckpt")
    printed = forked(lambda: train("ldm", "trainer.max_steps=2", "overwrite=true"), tmp_path / "new")
    assert printed == 0
    assert "belongs to another first stage: encoding the data again" in (tmp_path / "new").read_text()


def test_interrupted_latents_are_continued(here, stage_one, monkeypatch, capfd):
    vae = load(stage_one)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8)
    table = Table(pixels, {}, vae.preprocess, "data")
    wanted = latents.cached_latents(table, vae, here / "calm", batch_size=8)
    monkeypatch.setattr(latents, "PIECE", 16)

    def killed():
        strike(AutoencoderKL, "encode", 5, signalled(signal.SIGKILL))
        latents.cached_latents(table, vae, here / "cut", batch_size=8)

    assert forked(killed) == 137
    assert [path.suffix for path in (here / "cut" / "latents").iterdir()] == [".partial"]
    counts = []
    encode = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x: counts.append(len(x)) or encode(self, x))
    made = latents.cached_latents(table, vae, here / "cut", batch_size=8)
    assert sum(counts) == 60 - 32
    assert "at image 32 of 60" in capfd.readouterr().out
    assert np.array_equal(made.mean, wanted.mean) and np.array_equal(made.std, wanted.std)
    assert torch.equal(made.channel_std, wanted.channel_std)
    (folder,) = (here / "cut" / "latents").iterdir()
    os.truncate(folder / "mean.npy", 200)  # a copy cut short: made again
    assert np.array_equal(latents.cached_latents(table, vae, here / "cut", batch_size=8).mean, wanted.mean)


def test_what_is_no_fault_of_the_machine_is_not_explained_away():
    assert guards.explained(ValueError("x"), {}) is None
    assert guards.explained(OSError(2, "No such file"), {}) is None
    assert isinstance(guards.explained(OSError(28, "No space left on device"), {}), UserError)


def test_a_lock_is_not_waited_for_after_its_process(here):
    """Two that start together make the latents once."""
    from ldm.common.files import one_at_a_time

    (here / "folder").mkdir()

    def hold():
        with one_at_a_time(here / "folder"):
            (here / "held").touch()
            time.sleep(30)

    pid = os.fork()
    if pid == 0:
        hold()
        os._exit(0)
    while not (here / "held").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with one_at_a_time(here / "folder"):
        pass


@pytest.mark.slow
def test_one_corrupt_image_in_a_thousand_is_named_once_a_process_and_both_stages_go_on(here, caplog, tmp_path):
    random = np.random.default_rng(0)
    for i in range(1000):
        folder = here / "photos" / f"class-{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i:04}.png")
    bad = here / "photos" / "class-1" / "0334.png"
    bad.write_bytes(bad.read_bytes()[:40])
    data = ("data=folder", "data.root=photos", "trainer.max_steps=8")
    train("vae", *data)
    assert caplog.text.count("0334.png") == 1
    cut = struck_run("vae", Task, "training_step", 5, signalled(signal.SIGKILL), *data, "name=cut")
    assert forked(cut) == 137
    train("vae", *data, "name=cut", "resume=true")
    assert_same_run(Path("runs/vae/photos"), Path("runs/vae/cut"), 8)
    assert caplog.text.count("0334.png") == 2  # once by each process that reads the data
    train("ldm", *data, "name=whole", "first_stage=photos")
    words = (*data, "name=cut", "first_stage=photos")
    assert forked(struck_run("ldm", Task, "training_step", 5, signalled(signal.SIGKILL), *words)) == 137
    train("ldm", *words, "resume=true")
    assert_same_run(Path("runs/ldm/whole"), Path("runs/ldm/cut"), 8)
