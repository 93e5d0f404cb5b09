"""Runs started, stopped and resumed from the page: processes of the ordinary command lines, which outlive the page."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.config import overrides
from ldm.config.compose import CONF
from ldm.training.runs import lock
from ldm.training.runs.folder import DONE, is_run
from ldm.ui.runs.listing import config_of, folder

SCRIPTS = {"vae": "train_vae", "ldm": "train_ldm"}
NAME_BYTES = 200  # file systems take 255 of a file's name, which has more parts than the run's
OURS = ("name", "runs_dir", "resume", "overwrite")


class Launcher:
    """Starts runs under `runs_dir`, whose logs and command lines it keeps in `store_folder`."""

    def __init__(self, runs_dir: Path, store_folder: Path):
        self.runs_dir, self.folder = runs_dir, store_folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, stage: str, name: str, options: str, overwrite: bool = False) -> str:
        """Starts a run of the options, KEY=VALUE words as in a shell; returns its key STAGE/NAME."""
        check_name(name)
        words = option_words(options)
        if is_run(self.runs_dir / stage / name) and not overwrite:
            raise UserError(f"there is a run {stage}/{name} already: resume it, throw it away, or take another name.")
        self._spawn(f"{stage}/{name}", [*words, *(["overwrite=true"] if overwrite else [])])
        return f"{stage}/{name}"

    def resume(self, key: str) -> None:
        """Goes on with a run, by the options that it was started with, here or, as far as config.yaml has them,
        elsewhere."""
        path = folder(self.runs_dir, key)
        if (path / DONE).exists():
            raise UserError(f"{key} is finished: start another run, with more steps.")
        words = self.record(key).get("words")
        self._spawn(key, [*(words if isinstance(words, list) else words_of_config(config_of(path))), "resume=true"])

    def stop(self, key: str) -> None:
        """Asks a run to save and end (SIGTERM)."""
        holder = lock.read(self.runs_dir / key if self.is_live(key) else folder(self.runs_dir, key))
        if holder and lock.is_live(holder):
            if holder["host"] != os.uname().nodename:
                raise UserError(f"{key} runs on {holder['host']}; stop it there.")
            os.kill(int(holder["pid"]), signal.SIGTERM)
        elif self.is_live(key):
            self._processes[key].terminate()  # not yet so far that it holds its folder
        else:
            raise UserError(f"{key} isn't running.")

    def log(self, key: str) -> Path:
        """What the run printed, where it was started here."""
        return self.folder / "logs" / f"{key.replace('/', '--')}.log"

    def exit_code(self, key: str) -> int | None:
        """How the run's process ended, where it was started here; None while it runs or where nobody knows."""
        process = self._processes.get(key)
        return process.poll() if process else None

    def is_live(self, key: str) -> bool:
        """Whether a process that was started here for this run has not ended."""
        process = self._processes.get(key)
        return process is not None and process.poll() is None

    def started(self) -> list[str]:
        """Runs whose process was started here, the newest first, even where it ended before it had a folder."""
        return list(reversed(self._processes))

    def record(self, key: str) -> dict[str, Any]:
        """Options and start of a run, as kept when it was started here."""
        kept = self._records().get(key)
        return kept if isinstance(kept, dict) else {}

    def _spawn(self, key: str, words: Sequence[str]) -> None:
        stage, _, name = key.partition("/")
        with self._lock:
            if self.is_live(key):
                raise UserError(f"{key} is running already.")
            holder = lock.read(self.runs_dir / key)
            if holder and lock.is_live(holder):
                raise UserError(f"{key} is running already, as process {holder['pid']} on {holder['host']}.")
            log = self.log(key)
            log.parent.mkdir(parents=True, exist_ok=True)
            line = [*entry(SCRIPTS[stage]), *words, f"name={name}", f"runs_dir={self.runs_dir}"]
            with log.open("ab") as out:
                out.write(f"$ {shlex.join(line)}\n".encode())
                out.flush()
                self._processes[key] = subprocess.Popen(
                    line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
            kept = [word for word in words if word.partition("=")[0] not in OURS]
            self._keep(key, {"words": kept, "started": time.strftime("%Y-%m-%d %H:%M:%S")})

    def _keep(self, key: str, record: dict[str, Any]) -> None:
        atomic_write(self.folder / "started.json", json.dumps(self._records() | {key: record}, ensure_ascii=False))

    def _records(self) -> dict[str, Any]:
        try:
            read = json.loads((self.folder / "started.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}


def check_name(name: str) -> None:
    """Raises UserError for what is no name of a run's folder, and of the files that are kept of it beside it."""
    if not name.isprintable() or any(part.strip() in ("", ".", "..") for part in name.split("/")):
        raise UserError("give the run a name: a plain word, which becomes its folder's.")
    if len(name.encode()) > NAME_BYTES:
        raise UserError(f"the name '{name[:40]}...' is too long for a folder: take up to {NAME_BYTES} letters.")


def option_words(options: str) -> list[str]:
    """The words of a command line's options, refused where they aren't KEY=VALUE or are the page's own to give."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"the options can't be read ({error}): write KEY=VALUE, with quotes around blanks.") from None
    flags, words = overrides.split(words)
    if flags:
        raise UserError(f"{flags[0]} is for the command line: a page starts one run at a time.")
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key in OURS:
            raise UserError(f"{key}= has a field of its own here; take it out of the options.")
    return words


def words_of_config(config: Mapping[str, Any]) -> list[str]:
    """Options that compose the config of a run, which is all that is known of one started elsewhere."""
    sections = {key: value for key, value in config.items() if key not in (*OURS, "cache_dir")}
    groups = [f"{group}={choice}" for group in sections if (choice := _choice(group, sections[group]))]
    return [*groups, *_flat(sections)]


def _choice(group: str, section: Any) -> str | None:
    """The choice of a config group that a section may have come from: of the same class, with no key that it lacks."""
    if not isinstance(section, Mapping):
        return None
    for file in sorted((CONF / group).glob("*.yaml")):
        text = file.read_text("utf-8")
        read = yaml.safe_load(text) or {}
        same = read["class"] == section.get("class") if "class" in read else set(read) == set(section)
        if "@package" not in text and same and _has_keys(section, read):
            return file.stem
    return None


def _has_keys(section: Any, read: Any) -> bool:
    """Whether every key of `read`, at any depth, is in `section`."""
    if not isinstance(read, Mapping):
        return True
    return isinstance(section, Mapping) and all(k in section and _has_keys(section[k], v) for k, v in read.items())


def _flat(config: Mapping[str, Any], path: str = "") -> list[str]:
    words = []
    for key, value in config.items():
        where = f"{path}.{key}" if path else str(key)
        words += _flat(value, where) if isinstance(value, Mapping) else [f"{where}={_plain(value)}"]
    return words


def entry(script: str) -> list[str]:
    """The command that runs a script: a clone's own file, or the installed `ldm`."""
    file = CONF.parent / f"{script}.py"
    if file.is_file():
        return [sys.executable, str(file)]
    return [str(Path(sys.executable).with_name("ldm")), script.replace("_", "-")]


def _plain(value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(overrides.quote(v) if isinstance(v, str) else _plain(v) for v in value)}]"
    return str(value)
