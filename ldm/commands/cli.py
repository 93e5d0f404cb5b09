"""The entry scripts: a command line becomes a checked plain dict, with which training, sampling and evaluation work.

A user's mistake is reported in one line on stderr with exit code 2, before any work starts. With -m, every job is
checked before the first one runs; a job that fails doesn't stop the others, but makes the exit code 1.
"""

import ast
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import ldm
from ldm.common.errors import UserError, did_you_mean
from ldm.config import descriptions, overrides
from ldm.config.checking import checked, refuse_sizes_beside_base
from ldm.config.compose import CONF, group_names
from ldm.config.explaining import explain
from ldm.config.sweeps import each_job, swept_values

# Modules that do the work: `main(config, job)`, and where a sweep can be refused beforehand, `precheck(config)`.
WORK = {
    "train_vae": "ldm.commands.train_vae",
    "train_ldm": "ldm.commands.train_ldm",
    "sample": "ldm.commands.sample",
    "evaluate": "ldm.commands.evaluate",
    "score": "ldm.commands.score",
    "check": "ldm.commands.check",
    "augment": "ldm.commands.augment",
    "app": "ldm.ui.server.serve",
}
_SCRIPTS = ("train_vae", "train_ldm", "sample", "evaluate", "score", "augment", "app")  # that a clone has as NAME.py
# Commands without a config: `main(words)`. Their module's docstring is their help.
PLAIN = {
    "export": "ldm.commands.export",
    "compare": "ldm.commands.compare",
    "rebuild_ema": "ldm.commands.rebuild_ema",
    "merge": "ldm.commands.merge",
    "demo": "ldm.commands.demo",
    "doctor": "ldm.commands.doctor",
}
# Hydra writes no folder and no log of its own: the run folder is ours.
_QUIET = [
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]


def train_vae() -> None:
    """The script train_vae.py: stage one."""
    run("train_vae")


def train_ldm() -> None:
    """The script train_ldm.py: stage two."""
    run("train_ldm")


def sample() -> None:
    """The script sample.py: images from a trained model."""
    run("sample")


def evaluate() -> None:
    """The script evaluate.py: scores of a trained model."""
    run("evaluate")


def score() -> None:
    """The script score.py: scores for a paper."""
    run("score")


def augment() -> None:
    """The script augment.py: variants of images by an autoencoder."""
    run("augment")


def app() -> None:
    """The script app.py: the web page."""
    run("app")


def main() -> None:
    """`ldm COMMAND ...`: the same as the script of that name."""
    commands = {name.replace("_", "-"): name for name in (*WORK, *PLAIN)}
    word, words = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    command = commands.get(word.replace("_", "-"))
    if word == "--version":
        print(f"ldm {ldm.__version__}")
    elif word in ("--help", "-h"):
        print(_help_on_commands())
    elif command is None:
        sys.exit(_report(f"ldm has no command '{word}'.{did_you_mean(word, commands)}"))
    elif command in PLAIN:
        run_plain(command, words)
    else:
        run(command, words)


def run_plain(command: str, words: list[str]) -> None:
    """Runs a command that parses its words itself, without Hydra."""
    if "--help" in words or "-h" in words:
        print(_docstring(PLAIN[command]))
        return
    _exit_on_user_error(lambda: importlib.import_module(PLAIN[command]).main(words))


def run(script: str, words: list[str] | None = None) -> None:
    """Runs `script` with the words of a command line, sys.argv's by default."""
    words = sys.argv[1:] if words is None else words
    if "--help" in words or "-h" in words:
        from ldm.config.help import help_text

        print(help_text(script, CONF, _program(script)))
        return
    _exit_on_user_error(lambda: _run_hydra(script, words))


def _exit_on_user_error(work: Callable[[], object]) -> None:
    try:
        work()
    except UserError as error:
        sys.exit(_report(str(error)))
    except KeyboardInterrupt:
        sys.exit(_report("stopped.", 130))


def _help_on_commands() -> str:
    """A line for each command: its name, and what it does."""
    lines = ["usage: ldm COMMAND [KEY=VALUE ...]", ""]
    for name in WORK:
        lines.append(f"  {name.replace('_', '-'):12} {descriptions.about(CONF / f'{name}.yaml')}")
    for name, module in PLAIN.items():
        lines.append(f"  {name.replace('_', '-'):12} {_docstring(module).splitlines()[0]}")
    lines += ["", "`ldm COMMAND --help` shows a command's options and examples."]
    return "\n".join([*lines, "`ldm doctor` shows what is installed, which runs you have, and what to type next."])


def _docstring(module: str) -> str:
    """A module's docstring, read from its source: importing it may take seconds, for torch and Lightning."""
    path = Path(ldm.__file__).parent.joinpath(*module.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(source.read_text("utf-8")), clean=False) or "").strip()


def _program(script: str) -> str:
    """How `script` was called: by its own name in a clone, as a command of `ldm` from a wheel."""
    called_ldm = Path(sys.argv[0]).stem == "ldm" or script not in _SCRIPTS
    return f"ldm {script.replace('_', '-')}" if called_ldm else f"python {script}.py"


class _Jobs:
    """The jobs that Hydra starts in this process: one, or those of a sweep."""

    def __init__(self, script: str, options: list[str]):
        self.script, self.options, self.argv = script, options, sys.argv
        self.errors: list[Exception] = []
        self.failed: list[str] = []  # names of a sweep's jobs

    def __call__(self, cfg: DictConfig) -> float | None:
        sys.argv = self.argv  # Lightning starts further processes with it
        try:
            return _job(self.script, cfg, self.options)
        except Exception as error:
            self.errors.append(error)
            if HydraConfig.get().mode == RunMode.RUN and isinstance(error, UserError):
                sys.exit(_report(str(error)))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                self.failed.append(_report_job(error, self.options))
            raise

    def raise_explained(self, error: Exception) -> None:
        """Raises the error that the user sees in place of `error`; nothing where failed jobs were reported already."""
        if self.failed:
            return
        if error in self.errors or isinstance(error, UserError):  # a UserError may come from another process
            raise error
        if type(error).__module__.startswith(("submitit", "joblib")):
            raise UserError(f"a job of the sweep failed: {str(error).strip().splitlines()[-1]}") from error
        raise UserError(explain(error)) from error


def _run_hydra(script: str, words: list[str]) -> None:
    flags, options = overrides.prepare(words, group_names(words))
    jobs = _Jobs(script, options)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out as they are, not as Hydra prints them
    with tempfile.TemporaryDirectory(prefix="ldm-") as scratch:  # Hydra always writes a sweep's multirun.yaml
        quiet = [*_QUIET, f"hydra.sweep.dir={overrides.quote(scratch)}"]
        sys.argv = [jobs.argv[0], *quiet, *options, *flags]
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=script)(jobs)()
        except Exception as error:
            jobs.raise_explained(error)
        finally:
            sys.argv = jobs.argv
        _print_best(Path(scratch))
    if jobs.failed:
        sys.exit(_report(f"{len(jobs.failed)} of the sweep's jobs failed: {', '.join(jobs.failed)}.", 1))


def _print_best(sweep: Path) -> None:
    """Prints the best value that a search found, and the options that gave it, from its sweeper's results."""
    for file in sweep.glob("optimization_results.yaml"):
        found = yaml.safe_load(file.read_text())
        values = " ".join(f"{key.lstrip('+')}={value}" for key, value in found["best_params"].items())
        print(f"-- best: {found['best_value']:.5g} with {values}", flush=True)


def _job(script: str, cfg: DictConfig, options: list[str]) -> float | None:
    """Runs a plain command line, or one job of a sweep. Returns the job's objective in a search, else None."""
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping and HydraConfig.get().job.num == 0:
        _check_sweep(script, options)
    config = checked(script, cfg, HydraConfig.get().runtime.choices)
    if script == "train_vae":
        refuse_sizes_beside_base(config, options)
    name = None
    if sweeping:
        name = overrides.job_name(swept_values(options))
        if "resume" in config and not config["overwrite"]:
            config["resume"] = True  # a repeated sweep skips finished jobs and resumes the others
        print(f"-- {name or 'job'}", flush=True)
    result = _work(script, config, name)
    if not sweeping or not config.get("objective"):
        return None
    from ldm.commands.objective import objective

    return objective(config, script.removeprefix("train_"), result)


def _work(script: str, config: dict[str, Any], name: str | None) -> Any:
    """Does the work of `script`. A failure of the machine, as of a full disk, becomes a UserError with a next step."""
    try:
        return importlib.import_module(WORK[script]).main(config, name)
    except (OSError, EOFError, MemoryError, RuntimeError) as error:
        from ldm.training.runs.guards import explained

        if fixable := explained(error, config):
            raise fixable from error
        raise


def _check_sweep(script: str, options: list[str]) -> None:
    """Refuses a sweep before its first job if the config of any job is wrong or its first stage is missing."""
    for name, cfg, choices in each_job(script, options):
        try:
            config = checked(script, cfg, choices)
            precheck = getattr(importlib.import_module(WORK[script]), "precheck", None)
            if precheck:
                precheck(config)
        except UserError as error:
            if HydraConfig.get().runtime.choices["hydra/launcher"] != "basic":  # this process belongs to the job
                raise
            sys.exit(_report(f"{name}: {error}"))


def _report_job(error: Exception, options: list[str]) -> str:
    """Reports at once why a sweep's job failed; returns the job's name."""
    name = overrides.job_name(swept_values(options)) or "job"
    if isinstance(error, UserError):
        _report(f"{name}: {error}")
    else:
        traceback.print_exception(error)
    return name


def _report(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
