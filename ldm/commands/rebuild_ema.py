"""Makes a new run from a trained one, with its weights averaged over another length.

    ldm rebuild-ema run=NAME_OR_PATH length=LENGTH[,LENGTH ...] [OPTION=VALUE ...]

    ldm rebuild-ema run=emoji length=0.1              # writes runs/ldm/emoji-ema-0.1
    ldm rebuild-ema run=emoji length=0.03,0.07,0.15   # a run for each

    run         the name or path of a run; it must have been trained with ema.lengths=[0.05,0.1]
    length      the length of the average, as a share of the training
    stage       ldm (default) or vae: the stage in which the name is looked up
    name        the name of the new run, for a single length; by default RUN-ema-LENGTH
    overwrite   true replaces a run of that name
    runs_dir    the folder of the runs, by default runs

sample.py and evaluate.py take the new run by its name. docs/techniques.md says what the lengths mean.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

import ldm.model.latent_diffusion  # noqa: F401  registers the classes that files name
from ldm import artifact
from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import atomic_write
from ldm.training.averages.snapshots import rebuild
from ldm.training.runs.folder import DONE, find_run

OPTIONS = ("run", "length", "stage", "name", "runs_dir", "overwrite")


def main(words: Sequence[str]) -> list[Path]:
    """Rebuilds the averages that `words` ask for, KEY=VALUE each; returns the folders of the new runs."""
    options = dict(word.partition("=")[::2] for word in words)
    if unknown := [key for key in options if key not in OPTIONS]:
        raise UserError(f"rebuild_ema has no option '{unknown[0]}'.{did_you_mean(unknown[0], OPTIONS)}")
    if not options.get("run") or not options.get("length"):
        raise UserError("rebuild_ema needs run=NAME_OR_PATH and length=, as in `run=emoji length=0.1`.")
    stage, runs_dir = options.get("stage", "ldm"), options.get("runs_dir", "runs")
    lengths = options["length"].strip("[]").split(",")
    if options.get("name") and len(lengths) > 1:
        raise UserError("name= names one run: give one length, or leave out name=.")
    run = find_run(stage, options["run"], runs_dir)
    overwrite = options.get("overwrite", "").lower() == "true"
    out = []
    for text in lengths:
        length = _number(text)
        to = run.parent / (options.get("name") or f"{run.name}-ema-{length:g}")
        out.append(rebuild_run(run, length, to, overwrite))
        print(f"{to}: the average of length {length:g}", flush=True)
    return out


@torch.no_grad()
def rebuild_run(run: Path, length: float, to: Path, overwrite: bool = False) -> Path:
    """Writes the run `to`: the config of `run`, and its model with weights averaged over `length`.

    Raises UserError where `to` exists, or the stored averages belong to another model.
    """
    if to.exists() and not overwrite:
        raise UserError(f"{to} exists: give overwrite=true to replace it, or another name=.")
    model = artifact.load(run / "model")
    rebuilt = rebuild(run / "ema", length)
    state = model.state_dict()
    if unknown := [name for name in rebuilt.weights if name not in state]:
        raise UserError(
            f"{run}: the stored averages belong to another model, since this one has no {unknown[0]}; restore the run."
        )
    for name, weight in rebuilt.weights.items():
        state[name].copy_(weight)
    to.mkdir(parents=True, exist_ok=True)
    if (run / "config.yaml").is_file():
        shutil.copy(run / "config.yaml", to / "config.yaml")
    artifact.save(model, to / "model")
    atomic_write(to / DONE, f"rebuilt from {len(rebuilt.steps)} steps of lengths {rebuilt.lengths}\n")
    return to


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"length={text}: give a number, such as 0.1.") from None
