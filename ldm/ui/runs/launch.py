"""Starts, stops and resumes runs: processes of the ordinary command lines, which outlive the page."""

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
from ldm.ui.runs.run_state import config_of, run_folder

SCRIPTS = {"vae": "train_vae", "ldm": "train_ldm"}
NAME_BYTES = 200  # file systems allow 255, and files are named after the run with additions
PAGE_OPTIONS = ("name", "runs_dir", "resume", "overwrite")


class Launcher:
    """Starts runs under `runs_dir`; their logs and command lines are kept in `store_folder`."""

    def __init__(self, runs_dir: Path, store_folder: Path):
        self.runs_dir, self.folder = runs_dir, store_folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._evaluations: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, stage: str, name: str, options: str, overwrite: bool = False) -> str:
        """Starts a run with options as on the command line; returns its key, STAGE/NAME. Raises UserError."""
        _check_run_name(name)
        words = option_words(options)
        if is_run(self.runs_dir / stage / name) and not overwrite:
            raise UserError(f"there is a run {stage}/{name} already: resume it, overwrite it, or take another name.")
        self._spawn(f"{stage}/{name}", [*words, *(["overwrite=true"] if overwrite else [])])
        return f"{stage}/{name}"

    def resume(self, key: str) -> None:
        """Resumes a run, with the options that it was started with here, or else with those in its config.yaml.

        Raises UserError for a run that is unknown, finished or running.
        """
        path = run_folder(self.runs_dir, key)
        if (path / DONE).exists():
            raise UserError(f"{key} is finished: start another run with more steps.")
        words = self.record(key).get("words")
        self._spawn(key, [*(words if isinstance(words, list) else words_of_config(config_of(path))), "resume=true"])

    def evaluate(self, key: str) -> None:
        """Starts the evaluation of a run; what it prints goes to the run's log. Raises UserError."""
        run_folder(self.runs_dir, key)
        stage, _, name = key.partition("/")
        with self._lock:
            if (process := self._evaluations.get(key)) and process.poll() is None:
                raise UserError(f"{key} is being evaluated already.")
            words = [f"run={name}", f"stage={stage}", f"runs_dir={self.runs_dir}"]
            self._evaluations[key] = self._open([*script_command("evaluate"), *words], self.log(key))

    def stop(self, key: str) -> None:
        """Asks a run to save and end (SIGTERM). Raises UserError for a run that doesn't run on this machine."""
        holder = lock.read(self.runs_dir / key if self.is_live(key) else run_folder(self.runs_dir, key))
        if holder and lock.is_live(holder):
            if holder["host"] != os.uname().nodename:
                raise UserError(f"{key} runs on {holder['host']}: stop it there.")
            os.kill(int(holder["pid"]), signal.SIGTERM)
        elif self.is_live(key):
            self._processes[key].terminate()  # it hasn't locked its folder yet
        else:
            raise UserError(f"{key} isn't running.")

    def log(self, key: str) -> Path:
        """The file with what the run has printed; it exists if the run was started here."""
        return self.folder / "logs" / f"{key.replace('/', '--')}.log"

    def exit_code(self, key: str) -> int | None:
        """The exit code of the run's process; None while it runs, or if it wasn't started here."""
        process = self._processes.get(key)
        return process.poll() if process else None

    def is_live(self, key: str) -> bool:
        """Whether the run's process was started here and hasn't ended."""
        process = self._processes.get(key)
        return process is not None and process.poll() is None

    def started(self) -> list[str]:
        """The runs that were started here, newest first, including those that ended before they had a folder."""
        return list(reversed(self._processes))

    def record(self, key: str) -> dict[str, Any]:
        """Options and time of a run's last start here; empty if there was none."""
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
            line = [*script_command(SCRIPTS[stage]), *words, f"name={name}", f"runs_dir={self.runs_dir}"]
            self._processes[key] = self._open(line, self.log(key))
            kept = [word for word in words if word.partition("=")[0] not in PAGE_OPTIONS]
            self._keep(key, {"words": kept, "started": time.strftime("%Y-%m-%d %H:%M:%S")})

    def _open(self, line: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
        """Starts a process of its own, whose command line and output are appended to a log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            out.write(f"$ {shlex.join(line)}\n".encode())
            out.flush()
            return subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _keep(self, key: str, record: dict[str, Any]) -> None:
        atomic_write(self.folder / "started.json", json.dumps(self._records() | {key: record}, ensure_ascii=False))

    def _records(self) -> dict[str, Any]:
        try:
            read = json.loads((self.folder / "started.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}


def _check_run_name(name: str) -> None:
    """Raises UserError for text that can't name the run's folder, its log and its record."""
    if not name.isprintable() or any(part.strip() in ("", ".", "..") for part in name.split("/")):
        raise UserError("the run needs a name: give a plain word, which also names its folder.")
    if name == "null" or "${" in name:  # which the run's command line would read as something else
        raise UserError(f"the name '{name[:40]}' isn't the name of a folder on a command line: give a plain word.")
    if len(name.encode()) > NAME_BYTES:
        raise UserError(f"the name '{name[:40]}...' is too long for a folder: take up to {NAME_BYTES} bytes.")


def option_words(options: str) -> list[str]:
    """Typed options as words of a command line. Raises UserError for words that aren't KEY=VALUE, and for options that
    the page sets itself."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"the options can't be read ({error}): write KEY=VALUE, with quotes around spaces.") from None
    flags, words = overrides.split(words)
    if flags:
        raise UserError(f"{flags[0]} is for the command line: remove it, since the page starts one run at a time.")
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key in PAGE_OPTIONS:
            raise UserError(f"{key}= has a field of its own: remove it from the options.")
    return words


def words_of_config(config: Mapping[str, Any]) -> list[str]:
    """Options that compose the config of a run: all that is known of a run that wasn't started here."""
    sections = {key: value for key, value in config.items() if key not in (*PAGE_OPTIONS, "cache_dir")}
    groups = [f"{group}={choice}" for group in sections if (choice := _group_choice(group, sections[group]))]
    return [*groups, *_flatten(sections)]


def _group_choice(group: str, section: Any) -> str | None:
    """The choice of a config group that a section may come from: it has the same class, and no key that the section
    lacks."""
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


def _flatten(config: Mapping[str, Any], path: str = "") -> list[str]:
    words = []
    for key, value in config.items():
        where = f"{path}.{key}" if path else str(key)
        words += _flatten(value, where) if isinstance(value, Mapping) else [f"{where}={_plain(value)}"]
    return words


def script_command(script: str) -> list[str]:
    """The command that runs a script: the file in a clone, or else the installed `ldm`."""
    file = CONF.parent / f"{script}.py"
    if file.is_file():
        return [sys.executable, str(file)]
    return [str(Path(sys.executable).with_name("ldm")), script.replace("_", "-")]


def _plain(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(overrides.quote(v) if isinstance(v, str) else _plain(v) for v in value)}]"
    return str(value)
