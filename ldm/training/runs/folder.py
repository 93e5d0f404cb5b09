"""The run folder, `runs/STAGE/NAME/`: stable and named, so that a repeated or requeued command finds its work again.

It holds config.yaml, metrics.csv, speed.csv, samples/, checkpoints/ and model/; a file DONE marks the run as finished.
The folders of a sweep's jobs lie inside, as `NAME/channels-64_diffusion-eps`, and are runs of their own.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import atomic_write, has_its_size, is_whole, make_folder, record_of, state_of, write_recorded
from ldm.common.ranks import rank
from ldm.interop import hub
from ldm.training.runs import lock

log = logging.getLogger(__name__)
DONE = "DONE"


class RunFolder:
    """The files of one run, held for this process from `open_run` to `close`, or to the end of a `with`."""

    def __init__(self, path: Path, fresh: bool = False, goes_on: bool = False):
        self.path, self._fresh, self._goes_on = path, fresh, goes_on
        self._lock: lock.Lock | None = None
        self._whole: set[tuple[str | int, ...]] = set()  # checkpoints that were written or read to the end, unchanged

    @property
    def config(self) -> Path:
        """The composed config of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Losses and measures, a row each time they are logged."""
        return self.path / "metrics.csv"

    @property
    def speed(self) -> Path:
        """Images per second and memory, a row each time they are logged."""
        return self.path / "speed.csv"

    @property
    def samples(self) -> Path:
        """The grids of samples made during training."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.path / "model"

    @property
    def finished(self) -> bool:
        """Whether the run is done.

        A run that starts again or is trained further isn't, even if the first process hasn't cleared its folder yet.
        """
        return not (self._fresh or self._goes_on) and (self.path / DONE).exists()

    def save_config(self, config: dict[str, Any]) -> None:
        """Writes config.yaml, in the first process."""
        if rank() == 0:
            atomic_write(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            (self.path / DONE).unlink(missing_ok=True)  # the mark of a run that is now trained further

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is undamaged, by its recorded size and hash; None if there is none.

        The first process hashes each checkpoint once. The others only compare sizes, and find out whether they took the
        same checkpoint when the processes meet (`Checkpoints`).
        """
        return None if self._fresh else newest_checkpoint(self.checkpoints, self._is_whole)

    def note_whole(self, path: Path) -> None:
        """Notes that a checkpoint was just written to its end, so it needn't be read to know that it is whole."""
        self._whole.add(state_of(path))

    def _is_whole(self, path: Path) -> bool:
        try:
            state = state_of(path)
        except FileNotFoundError:  # the first process has just removed it
            return False
        if state not in self._whole and not (is_whole if rank() == 0 else has_its_size)(path):
            return False
        self._whole.add(state)
        return True

    def finish(self) -> None:
        """Marks the run as finished: from now on `resume=true` does nothing unless it gives a higher limit."""
        atomic_write(self.path / DONE, time.strftime("%Y-%m-%d %H:%M:%S\n"))

    def hold(self, goes_on: bool = False) -> None:
        """Locks the folder for this process. Raises UserError if another process holds it."""
        self._lock, self._goes_on = lock.Lock(self.path), goes_on

    def close(self) -> None:
        """Releases the folder for other processes."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run(
    stage: str,
    name: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    runs_dir: str | Path = "runs",
    more: Callable[[RunFolder], bool] = lambda folder: False,
) -> RunFolder:
    """The folder of the run `name`, made and locked.

    A finished run that is to be resumed is returned unlocked, unless `more` says that it is to be trained further.
    Raises UserError for a run that exists, unless `resume` or `overwrite` says what to do with it, and for one in use.
    """
    if resume and overwrite:
        raise UserError("resume=true and overwrite=true contradict each other; give one.")
    path = _path_of(stage, name, runs_dir)
    folder = RunFolder(path)
    goes_on = resume and folder.finished and more(folder)
    if resume and folder.finished and not goes_on:
        print(f"{path} is finished: nothing to do.", flush=True)
        return folder
    if rank() > 0:  # the first process holds the folder for all
        return RunFolder(path, fresh=overwrite, goes_on=goes_on)
    make_folder(path)
    folder.hold(goes_on)
    try:
        _take_over(folder, resume, overwrite)
    except BaseException:
        folder.close()
        raise
    return folder


def find_run(stage: str, name_or_path: str | Path, runs_dir: str | Path = "runs") -> Path:
    """The folder of a run that is given by name, or what lies at a path: a run, its model/, a checkpoint.

    An address on the hub, `hf://OWNER/NAME`, is downloaded: see `ldm.interop.hub`.
    """
    if hub.is_address(name_or_path):
        return hub.fetch(name_or_path)
    named, given = Path(runs_dir) / stage / name_or_path, Path(name_or_path).expanduser()
    for path in (named, given):
        if is_run(path) or (path is given and _holds_model(path)):
            return path
    known = run_names(stage, runs_dir)
    hint = did_you_mean(str(name_or_path), known) or f" There are none in {runs_dir} yet: run train_{stage}.py first."
    raise UserError(f"there is no run '{name_or_path}' of train_{stage}.py.{hint}")


def run_names(stage: str, runs_dir: str | Path = "runs") -> list[str]:
    """The names of all runs of a stage, those of sweeps as SWEEP/JOB."""
    root = Path(runs_dir) / stage
    runs = [path for path in (*root.glob("*"), *root.glob("*/*")) if is_run(path)]
    return sorted(str(path.relative_to(root)) for path in runs)


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run."""
    return (path / "config.yaml").is_file()


def write_checkpoint(path: Path, content: Any) -> None:
    """Writes a checkpoint (bytes, or a function that writes to the open file), with its size and SHA-256 beside it."""
    write_recorded(path, content)


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint and the record of its size and hash."""
    path.unlink(missing_ok=True)
    record_of(path).unlink(missing_ok=True)


def newest_checkpoint(folder: Path, whole: Callable[[Path], bool] = is_whole) -> Path | None:
    """The newest whole checkpoint of a folder, by the step in its name. Damaged ones are skipped with a warning."""
    for path in sorted(folder.glob("*.ckpt"), reverse=True):
        if whole(path):
            return path
        log.warning("%s is damaged or incomplete; using the previous one.", path)
    return None


def _path_of(stage: str, name: str, runs_dir: str | Path) -> Path:
    parts = Path(name).parts
    if not name.strip() or Path(name).is_absolute() or ".." in parts or "\0" in name or parts[0].startswith("."):
        raise UserError(f"name='{name}' can't be a folder in {Path(runs_dir) / stage}; take a plain name=.")
    return Path(runs_dir).expanduser() / stage / name


def _take_over(folder: RunFolder, resume: bool, overwrite: bool) -> None:
    """Makes a locked folder ready for a run, or refuses."""
    old = list(_own_entries(folder.path))
    if overwrite:
        for entry in old:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    elif any(map(_is_worth_keeping, old)) and not resume:
        state = "is finished" if folder.finished else "exists"
        raise UserError(
            f"the run {folder.path} {state}: use resume=true to continue it, overwrite=true to start it again, "
            "or another name=."
        )
    elif resume:
        good = folder.newest_checkpoint()
        if good is None and old:
            print(f"{folder.path} has no good checkpoint: starting at step 0.", flush=True)
        for path in folder.checkpoints.glob("*.ckpt"):
            if good is None or path.name > good.name:  # damaged; a warning was logged
                remove_checkpoint(path)
    for part in (folder.samples, folder.checkpoints):
        part.mkdir(exist_ok=True)
    for part in (folder.path, folder.checkpoints, folder.model, folder.samples, folder.path / "ema"):
        for staged in part.glob(".*.tmp"):  # left by a process that was killed while it wrote
            staged.unlink()


def _own_entries(path: Path) -> Iterator[Path]:
    """The run's own files: not its lock, and not the runs of a sweep of the same name."""
    return (entry for entry in path.iterdir() if entry.name != lock.NAME and not is_run(entry))


def _is_worth_keeping(entry: Path) -> bool:
    """Whether an entry is more than a run leaves if it ends before its first step."""
    return entry.name != "config.yaml" and not (entry.is_dir() and not any(entry.iterdir()))


def _holds_model(path: Path) -> bool:
    """Whether a path that isn't a run of ours may be loaded: a file, a model folder, a diffusers folder."""
    return path.is_file() or any((path / name).is_file() for name in ("config.json", "model_index.json"))
