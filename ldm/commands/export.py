"""Writes a trained model in the formats of other tools.

    ldm export run=NAME_OR_PATH out=PATH [to=diffusers|ldm|single_file|kohya] [OPTION=VALUE ...]

    ldm export run=emoji to=diffusers out=emoji-diffusers
    ldm export run=photos to=single_file out=photos.safetensors dtype=float16
    ldm export run=emoji to=ldm out=hf://OWNER/NAME

    run        a run by name, or a path to anything that ldm.load opens
    out        the folder or file to write; or an address on the Hugging Face Hub to push to, hf://OWNER/NAME[@BRANCH]
    to         diffusers: a pipeline's folder (default); ldm: a model folder that holds all it needs;
               single_file: one .safetensors file, for web UIs; kohya: the same of a LoRA's run;
               peft: a folder of peft's, of a LoRA's run
    dtype      float32, float16 or bfloat16; by default float32
    stage      ldm (default) or vae: where the run is looked for by name
    licence    the licence for the model's card
    runs_dir   the folder of the runs, by default runs

The report says which parts are stock classes there and which bring code of their own.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError, did_you_mean
from ldm.interop import hub
from ldm.interop.export import export
from ldm.interop.exporting import dtype as dtypes
from ldm.interop.hub.push import check_target, push, push_model
from ldm.model.loading import load

OPTIONS = ("run", "out", "to", "dtype", "stage", "licence", "runs_dir")


def main(words: Sequence[str]) -> None:
    """Exports the run that `words` name, KEY=VALUE each, and prints the report."""
    options = dict(word.partition("=")[::2] for word in words)
    if unknown := [key for key in options if key not in OPTIONS]:
        raise UserError(f"export has no option '{unknown[0]}'.{did_you_mean(unknown[0], OPTIONS)}")
    if not options.get("run") or not options.get("out"):
        raise UserError(
            "export needs run=NAME_OR_PATH and out=DIR, as in `run=emoji to=diffusers out=emoji-diffusers`."
        )
    out, to, dtype = options["out"], options.get("to", "diffusers"), options.get("dtype")
    if dtype is not None:
        dtypes.named(dtype)
    if hub.is_address(out):
        check_target(out)
    run = _folder(options)
    model = load(run)
    is_lora = bool(getattr(model, "loras", None))  # the run of a LoRA, which is exported without its base
    if hub.is_address(out):
        about: dict[str, Any] = {"dtype": dtype, "licence": options.get("licence"), "run": run}
        print(_pushed_lora(model, out, to, dtype) if is_lora else push_model(model, out, to, **about))
        return
    if is_lora:
        print(_lora(model, out, to, dtype))
        return
    report = export(model, out, to, about={"licence": options.get("licence"), "run": run}, dtype=dtype)
    print(f"{out}\n{report}")


def _pushed_lora(model: Any, out: str, to: str, dtype: str | None) -> str:
    """Pushes the model's LoRA to the repository `out`; returns the address with the commit."""
    with tempfile.TemporaryDirectory() as folder:
        _lora(model, str(Path(folder, "lora")), to, dtype)
        return push(Path(folder, "lora"), out, message="Push a LoRA of ldm")


def _folder(options: dict[str, str]) -> Path:
    """The run of that name, or else `run` as a path; what is at an address on the hub is downloaded."""
    if hub.is_address(options["run"]):
        return hub.fetch(options["run"])
    named = Path(options.get("runs_dir", "runs")) / options.get("stage", "ldm") / options["run"]
    return named if named.exists() else Path(options["run"])


def _lora(model: Any, out: str, to: str, dtype: str | None) -> Path:
    if to == "single_file":
        raise UserError("export a LoRA's run with to=kohya, for web UIs; merge_lora() makes it part of a model.")
    path: Path = model.export_lora(out, to)
    if dtype is not None and path.is_dir():
        dtypes.cast_folder(path, dtype)
    elif dtype is not None:
        dtypes.cast_file(path, dtype)
    return path
