"""The entry scripts: a command line becomes a checked plain dict, which training, sampling and evaluation work on.

A user's mistake becomes one line on stderr and exit code 2, before any work starts. Under -m every job is checked
before the first one runs; a job that fails doesn't stop the others, and makes the exit code 1.
"""

import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import ldm
from ldm.common.errors import UserError, did_you_mean
from ldm.config import overrides
from ldm.config.compose import (
    CONF,
    checked,
    each_job,
    explain,
    group_names,
    refuse_sizes_beside_base,
    swept_values,
)

# What does the work: `main(config, job)`, and where a sweep can be refused beforehand, `precheck(config)`.
WORK = {
    "train_vae": "ldm.commands.train_vae",
    "train_ldm": "ldm.commands.train_ldm",
    "sample": "ldm.commands.sample",
    "evaluate": "ldm.commands.evaluate",
    "augment": "ldm.commands.augment",
    "app": "ldm.ui.server.serve",
}
# Commands that compose nothing: `main(words)`.
PLAIN = {
    "export": "ldm.commands.export",
    "compare": "ldm.commands.compare",
    "rebuild_ema": "ldm.commands.rebuild_ema",
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
    """Stage one."""
    run("train_vae")


def train_ldm() -> None:
    """Stage two."""
    run("train_ldm")


def sample() -> None:
    """Pictures from a trained model."""
    run("sample")


def evaluate() -> None:
    """A trained run, measured."""
    run("evaluate")


def augment() -> None:
    """Variants of images by an autoencoder."""
    run("augment")


def app() -> None:
    """The web page."""
    run("app")


def main() -> None:
    """`ldm COMMAND ...`: the same as the script of that name."""
    commands = {name.replace("_", "-"): name for name in (*WORK, *PLAIN)}
    word, words = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if word == "--version":
        print(f"ldm {ldm.__version__}")
    elif word in ("--help", "-h"):
        print(f"usage: ldm {'|'.join(commands)} [KEY=VALUE ...]\n\n`ldm COMMAND --help` lists a command's options.")
    elif word.replace("_", "-") not in commands:
        sys.exit(_report(f"ldm has no command '{word}'.{did_you_mean(word, commands)}"))
    elif (command := commands[word.replace("_", "-")]) in PLAIN:
        run_plain(command, words)
    else:
        run(command, words)


def run_plain(command: str, words: list[str]) -> None:
    """Runs a command that reads its words itself."""
    module = importlib.import_module(PLAIN[command])
    if "--help" in words or "-h" in words:
        print(module.__doc__)
        return
    try:
        module.main(words)
    except UserError as error:
        sys.exit(_report(str(error)))
    except KeyboardInterrupt:
        sys.exit(_report("stopped.", 130))


def run(script: str, words: list[str] | None = None) -> None:
    """Runs `script` with the words of a command line, sys.argv's by default."""
    words = sys.argv[1:] if words is None else words
    if "--help" in words or "-h" in words:
        from ldm.config.help import help_text

        print(help_text(script, CONF, _program(script)))
        return
    try:
        _run_hydra(script, words)
    except UserError as error:
        sys.exit(_report(str(error)))
    except KeyboardInterrupt:
        sys.exit(_report("stopped.", 130))


def _program(script: str) -> str:
    """How `script` was called: by its own name in a clone, as a command of `ldm` from a wheel."""
    called_ldm = Path(sys.argv[0]).stem == "ldm"
    return f"ldm {script.replace('_', '-')}" if called_ldm else f"python {script}.py"


def _run_hydra(script: str, words: list[str]) -> None:
    flags, options = overrides.prepare(words, group_names(words))
    original, raised, failed = sys.argv, [], []

    def task(cfg: DictConfig) -> float | None:
        sys.argv = original  # Lightning starts further processes with it
        try:
            return _job(script, cfg, options)
        except Exception as error:
            raised.append(error)
            if HydraConfig.get().mode == RunMode.RUN and isinstance(error, UserError):
                sys.exit(_report(str(error)))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                failed.append(_report_job(error, options))
            raise

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out as they are, not in Hydra's own print
    with tempfile.TemporaryDirectory(prefix="ldm-") as scratch:  # a sweep's multirun.yaml must be written somewhere
        quiet = [*_QUIET, f"hydra.sweep.dir={overrides.quote(scratch)}"]
        sys.argv = [original[0], *quiet, *options, *flags]
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=script)(task)()
        except Exception as error:
            if not failed:
                if error in raised or isinstance(error, UserError):  # a UserError may be another process's
                    raise
                if type(error).__module__.startswith(("submitit", "joblib")):
                    raise UserError(f"a job of the sweep failed: {str(error).strip().splitlines()[-1]}") from error
                raise UserError(explain(error)) from error
        finally:
            sys.argv = original
        _tell_best(Path(scratch))
    if failed:
        sys.exit(_report(f"{len(failed)} of the sweep's jobs failed: {', '.join(failed)}.", 1))


def _tell_best(sweep: Path) -> None:
    """What a search found, as its sweeper wrote it down."""
    for file in sweep.glob("optimization_results.yaml"):
        found = yaml.safe_load(file.read_text())
        values = " ".join(f"{key.lstrip('+')}={value}" for key, value in found["best_params"].items())
        print(f"-- best: {found['best_value']:.5g} with {values}", flush=True)


def _job(script: str, cfg: DictConfig, options: list[str]) -> float | None:
    """One run: of a plain command line, or of a sweep; in a search, what it is worth."""
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
            config["resume"] = True  # a repeated sweep skips what is finished and goes on with the rest
        print(f"-- {name or 'job'}", flush=True)
    left = _work(script, config, name)
    if not sweeping or not config.get("objective"):
        return None
    from ldm.commands.objective import objective

    return objective(config, script.removeprefix("train_"), left)


def _work(script: str, config: dict[str, Any], name: str | None) -> Any:
    """What `script` does; a failure of the machine, as of a full disk, becomes a UserError that says what to do."""
    try:
        return importlib.import_module(WORK[script]).main(config, name)
    except (OSError, EOFError, MemoryError, RuntimeError) as error:
        from ldm.training.runs.guards import explained

        if mendable := explained(error, config):
            raise mendable from error
        raise


def _check_sweep(script: str, options: list[str]) -> None:
    """Refuses a sweep before its first job, if any job's config is wrong or its stage one missing."""
    for name, cfg, choices in each_job(script, options):
        try:
            config = checked(script, cfg, choices)
            precheck = getattr(importlib.import_module(WORK[script]), "precheck", None)
            if precheck:
                precheck(config)
        except UserError as error:
            if HydraConfig.get().runtime.choices["hydra/launcher"] != "basic":  # this process is the job's own
                raise
            sys.exit(_report(f"{name}: {error}"))


def _report_job(error: Exception, options: list[str]) -> str:
    """Says at once what became of a sweep's job; returns its name."""
    name = overrides.job_name(swept_values(options)) or "job"
    if isinstance(error, UserError):
        _report(f"{name}: {error}")
    else:
        traceback.print_exception(error)
    return name


def _report(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
