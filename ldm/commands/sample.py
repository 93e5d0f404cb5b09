"""`sample.py`: pictures from a trained model, as files."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldm.adapters.controlnet import Control
from ldm.common.annotations import MAX_FLOAT32, replace_surrogates
from ldm.common.errors import UserError
from ldm.images import grid, save_png
from ldm.model.cascade import check_fit, enlarge
from ldm.model.computing import coding, computed_in, device
from ldm.model.generate import sample_prior
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.networks import AutoencoderKL
from ldm.training.runs.folder import find_run

# Options of the sampler itself; null in the YAML means: as the model was trained to be sampled.
OPTIONS = (
    *("sampler", "steps", "guidance", "interval", "rescale", "spacing", "shift", "eta", "variance", "clip"),
    *("order", "variant", "autoguidance"),
)

FRAME = ("original_size", "crop", "target_size")
CONTROL = ("control", "control_scale", "control_start", "control_end")
ASKED = ("prompt", "prompts_file", "negative", "labels", "map", "image", "mask", "embed_image", "control", "then")
CONTROL_PICTURES = ("control_image", "control_from")


def main(config: dict[str, Any], job: str | None = None) -> None:
    """Writes a grid and, with `single`, each picture, every one with its settings in a text chunk."""
    if config["n"] is None:
        config = config | {"n": 1 if config["prompts_file"] else 4}
    path = find_run(config["stage"], config["run"], config["runs_dir"])
    out = place(config["out"]) if config["out"] else unused(path, job)
    model = load(path, device(config["device"]), **coding(config))
    put_decoder_in(model, config)
    put_loras_on(model, config)
    if isinstance(model, AutoencoderKL):
        images, captions, settings = from_prior(model, config)
    elif isinstance(model, LatentDiffusion):
        images, captions, settings = from_model(model, config)
    else:
        raise UserError(f"{path} holds a {type(model).__name__}, which can't be sampled.")
    settings = {"run": str(config["run"]), **settings}
    write(images, captions, settings, config, out)


def place(named: str) -> Path:
    """Where `out` says, its folder made: what can't be written is told before anything is drawn."""
    out = Path(named).expanduser()
    if out.suffix.lower() != ".png":
        raise UserError(f"out={out} has to end in .png.")
    if out.is_dir():
        raise UserError(f"out={out} is a folder; name a file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: its folder can't be made ({error.strerror}); name another.") from None
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"out={out}: its folder can't be written to; name another.")
    return out


def from_model(model: LatentDiffusion, config: Mapping[str, Any]) -> tuple[Tensor, list[str], dict[str, Any]]:
    """Images (N, C, H, W), what each was asked for, and the settings they share."""
    given = conditions(config)
    options = {key: config[key] for key in OPTIONS if config.get(key) is not None}
    if config["autoguide"]:
        model.load_autoguide(find_run("ldm", config["autoguide"], config["runs_dir"]))
    keys = ("image", "strength", "mask", "feather", "pad", "map", "embed_image", "noise_level", "size", *FRAME)
    over = {"control": config["control_image"], "control_from": config["control_from"]}
    model.check_pictures(**{key: config[key] for key in ("image", "mask", "pad", "map")}, **over)
    start, pictures = model.read(**{key: config[key] for key in keys})
    steering = steered(model, given | pictures, start, config)
    images = model.draw(
        given | pictures,
        config["n"],
        negative=config["negative"],
        seed=config["seed"],
        size=config["size"],
        batch_size=config["batch_size"],
        start=start,
        steering=steering,
        **options,
    )
    if config["then"]:
        images = enlarged(model, images, given, config)
    asked = next(iter(given.values()), [""])
    captions = [str(value) for value in asked for _ in range(len(images) // len(asked))]
    shown = [
        *("negative", "image", "mask", "strength", "pad", "map", "embed_image", "then", "autoguide", "lora", "decoder")
    ]
    shown += [*CONTROL, *CONTROL_PICTURES, *FRAME]
    named = {key: config[key] for key in shown if config[key] is not None}
    return images.cpu(), captions, {**model.sampling, **options, **named, **computed_in(model)}


def put_decoder_in(model: Any, config: Mapping[str, Any]) -> None:
    """Takes the decoder of the run or path that `decoder` names."""
    if not (name := config["decoder"]):
        return
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"decoder={name}: a decoder goes into a run of train_ldm.py; leave stage= out.")
    model.load_decoder(find_run("vae", name, config["runs_dir"]))


def put_loras_on(model: Any, config: Mapping[str, Any]) -> None:
    """Puts on what `lora` names: runs, folders or files."""
    for name, scale in loras(config["lora"]):
        if not isinstance(model, LatentDiffusion):
            raise UserError(f"lora={name}: a LoRA is put on a run of train_ldm.py; leave stage= out.")
        model.load_lora(find_run("ldm", name, config["runs_dir"]), scale, name=name)


def loras(text: str | None) -> list[tuple[str, float]]:
    """`mine`, `mine:0.8` or `[mine:0.8,path/to/a.safetensors]` as names and scales; 1 where none is said."""
    if not text:
        return []
    pieces = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else [text]
    named = [re.fullmatch(r"(.+?)(?::([-+]?(?:\d+\.?\d*|\.\d+)))?", piece.strip()) for piece in pieces]
    return [(match[1], float(match[2] or 1)) for match in named if match]


def steered(model: LatentDiffusion, given: Mapping[str, list], start: Any, config: Mapping[str, Any]) -> Any:
    """What ControlNets shall be told, those that `control` names put on first; None without a control image."""
    names = config["control"] or ()
    for name in names if isinstance(names, (list, tuple)) else [names]:
        model.load_controlnet(find_run("ldm", name, config["runs_dir"]), name=str(name))
    control, made_from = (config[key] for key in CONTROL_PICTURES)
    on = [name for name, (adapter, _) in model.adapters.items() if isinstance(adapter, Control)]
    if on and control is None and made_from is None:
        if names:
            raise UserError(
                "control= needs a control image, control_image=, or control_from=, a picture to make it from."
            )
        print(f"no control_image= or control_from=: drawn as by the base of {', '.join(on)}", flush=True)
    options = {key: config[f"control_{key}"] for key in ("scale", "start", "end")}
    begin, guess = options.pop("start"), config["guess_mode"]
    size = config["size"]
    return model.steering(given, start, size, control=control, made_from=made_from, begin=begin, guess=guess, **options)


def enlarged(model: LatentDiffusion, images: Tensor, given: Mapping[str, list], config: Mapping[str, Any]) -> Tensor:
    """The pictures through the model of super-resolution that `then` names."""
    larger = load(find_run("ldm", config["then"], config["runs_dir"]), device(config["device"]), **coding(config))
    if not isinstance(larger, LatentDiffusion):
        raise UserError(f"then={config['then']} is no run of train_ldm.py.")
    check_fit(model, larger)
    said = {k: [v for v in vs for _ in range(config["n"])] for k, vs in given.items() if k in larger.conditioner.takes}
    return enlarge(larger, images, said, config["noise_level"], seed=config["seed"], batch_size=config["batch_size"])


def conditions(config: Mapping[str, Any]) -> dict[str, list]:
    """What was asked for, by column."""
    if config["prompt"] is not None and config["prompts_file"]:
        raise UserError("prompt= and prompts_file= exclude each other; give one.")
    given: dict[str, list] = {}
    if config["prompt"] is not None:
        given["text"] = [replace_surrogates(str(config["prompt"]))]
    elif config["prompts_file"]:
        given["text"] = read_prompts(Path(config["prompts_file"]))
    if config["labels"] is not None:
        labels = config["labels"]
        given["label"] = list(labels) if isinstance(labels, (list, tuple)) else [labels]
    return given


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that aren't empty."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts_file={path} can't be read as text ({error}).") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"prompts_file={path} holds no prompt; write one a line.")
    return prompts


def from_prior(vae: Any, config: Mapping[str, Any]) -> tuple[Tensor, list[str], dict[str, Any]]:
    """`n` images decoded from z ~ N(0, I)."""
    if asked := [key for key in ASKED if config[key] is not None]:
        raise UserError(f"{asked[0]}= is for a run of stage two: an autoencoder by itself draws whatever it may be.")
    preprocess = vae.preprocess
    size = config["size"] or (preprocess.height, preprocess.width)
    height, width = (size, size) if isinstance(size, int) else size
    images = sample_prior(vae, config["n"], (height, width), config["seed"], config["batch_size"])
    return images.cpu(), [""] * len(images), {"sampler": "prior", **computed_in(vae)}


def write(
    images: Tensor, captions: list[str], settings: Mapping[str, Any], config: Mapping[str, Any], out: Path
) -> None:
    """The grid as `out`, and the pictures beside it in a folder of its name."""
    columns = config["columns"] or (config["n"] if len(captions) > config["n"] > 1 else near_square(len(images)))
    about = {"seed": config["seed"], "prompts": list(dict.fromkeys(captions)), **settings}
    save_png(grid(images, columns), out, {"ldm": as_json(about)})
    if config["single"]:
        from ldm.images import to_pil8

        singles = out.with_suffix("")
        singles.mkdir(exist_ok=True)
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            about = {"prompt": caption, "seed": config["seed"] + i, **settings}
            save_png(to_pil8(image), singles / f"{i:05d}.png", {"ldm": as_json(about)})
    print(
        f"{len(images)} picture{'s' * (len(images) > 1)}: {out}"
        + (f" and {out.with_suffix('')}/" if config["single"] else ""),
        flush=True,
    )


def as_json(about: Mapping[str, Any]) -> str:
    """Settings as JSON, which has no infinite numbers: float32's largest stands for them, as in `interval`."""
    return json.dumps({key: _bounded(value) for key, value in about.items()}, ensure_ascii=False, allow_nan=False)


def _bounded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_bounded(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _bounded(one) for key, one in value.items()}
    return min(max(value, -MAX_FLOAT32), MAX_FLOAT32) if isinstance(value, float) else value


def near_square(n: int) -> int:
    return max(1, int(np.ceil(np.sqrt(n))))


def unused(run: Path, job: str | None) -> Path:
    """A new name in the run's samples/, or in the working folder for a model that isn't a run of ours."""
    folder = run / "samples" if (run / "samples").is_dir() else Path()
    stem = f"sample-{job}" if job else "sample"
    numbers = (i for i in range(1, 1_000_000) if not (folder / f"{stem}-{i:03d}.png").exists())
    return folder / f"{stem}-{next(numbers):03d}.png"
