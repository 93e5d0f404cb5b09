"""`sample.py`: images from a trained model, as files."""

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
from ldm.images import grid, save_png, to_pil8
from ldm.interop.hub import origin_of
from ldm.model.cascade import check_fit, enlarge
from ldm.model.computing import coding, computed_in, device
from ldm.model.generate import sample_prior
from ldm.model.inputs import prompts_of
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.networks import Autoencoder
from ldm.training.runs.folder import find_run

# Options of the sampler; null in the YAML means: as the model was trained to be sampled.
_SAMPLING = (
    *("sampler", "steps", "guidance", "interval", "rescale", "spacing", "shift", "eta", "variance", "clip"),
    *("order", "variant", "autoguidance"),
)
_STAGE_TWO = (
    *("prompt", "prompts_file", "prompt_2", "negative", "labels", "map", "image", "mask", "embed_image", "control"),
    "then",
)
_IMAGES = ("image", "mask", "pad", "map")
_FRAME = ("original_size", "crop", "target_size")
# What is negative, by its name in Python
_NEGATIVE = {"negative": "prompt", "negative_2": "prompt_2", **{f"negative_{name}": name for name in _FRAME}}
# What the PNGs say of an image beside how it was sampled, in this order.
_RECORDED = (
    *("negative", "image", "mask", "strength", "pad", "map", "embed_image", "then", "autoguide", "lora", "decoder"),
    *("control", "control_scale", "control_start", "control_end", "control_image", "control_from"),
    *("prompt_2", "negative_2", *_FRAME, *(f"negative_{name}" for name in _FRAME)),
)
Generated = tuple[
    Tensor, list[str], dict[str, Any]
]  # images (N, C, H, W), a caption each, the settings that they share


def main(config: dict[str, Any], job: str | None = None) -> None:
    """Writes a grid and, with `single`, each image, with the settings in a text chunk of each file."""
    if config["n"] is None:
        config = config | {"n": 1 if config["prompts_file"] else 4}
    path = find_run(config["stage"], config["run"], config["runs_dir"])
    out = _checked_out(config["out"]) if config["out"] else _unused_name(path, job)
    model = load(path, device(config["device"]), **coding(config))
    _put_decoder_in(model, config)
    _put_loras_on(model, config)
    if isinstance(model, Autoencoder):
        images, captions, settings = _from_prior(model, config)
    elif isinstance(model, LatentDiffusion):
        images, captions, settings = _from_model(model, config)
    else:
        raise UserError(f"{path} holds a {type(model).__name__}, which can't be sampled.")
    settings = {"run": origin_of(path) or str(config["run"]), **settings}  # the commit of what is on the hub
    _write(images, captions, settings, config, out=out)


def loras(text: str | None) -> list[tuple[str, float]]:
    """Names and scales in the option `lora`: `mine`, `mine:0.8` or `[mine:0.8,path/to/a.safetensors]`.

    The scale is 1 where none is given.
    """
    if not text:
        return []
    pieces = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else [text]
    named = [re.fullmatch(r"(.+?)(?::([-+]?(?:\d+\.?\d*|\.\d+)))?", piece.strip()) for piece in pieces]
    return [(match[1], float(match[2] or 1)) for match in named if match]


def as_json(about: Mapping[str, Any]) -> str:
    """Settings as JSON, which has no infinite numbers, as `interval` may: the largest float32 stands for them."""
    return json.dumps({key: _bounded(value) for key, value in about.items()}, ensure_ascii=False, allow_nan=False)


def _bounded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_bounded(element) for element in value]
    if isinstance(value, Mapping):
        return {key: _bounded(element) for key, element in value.items()}
    return min(max(value, -MAX_FLOAT32), MAX_FLOAT32) if isinstance(value, float) else value


# The output ----------------------------------------------------------------------------------------------------------


def _checked_out(named: str) -> Path:
    """The file that `out` names.

    Its folder is created, and a file that can't be written is refused before anything is generated.
    """
    out = Path(named).expanduser()
    if out.suffix.lower() != ".png":
        raise UserError(f"out={out} has to end in .png.")
    if out.is_dir():
        raise UserError(f"out={out} is a folder; name a file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: its folder can't be created ({error.strerror}); name another.") from None
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"out={out}: its folder can't be written to; name another.")
    return out


def _unused_name(run: Path, job: str | None) -> Path:
    """A new name in the run's samples/, or in the working folder for a model that isn't a run of ours."""
    folder = run / "samples" if (run / "samples").is_dir() else Path()
    stem = f"sample-{job}" if job else "sample"
    numbers = (i for i in range(1, 1_000_000) if not (folder / f"{stem}-{i:03d}.png").exists())
    return folder / f"{stem}-{next(numbers):03d}.png"


def _write(
    images: Tensor, captions: list[str], settings: Mapping[str, Any], config: Mapping[str, Any], *, out: Path
) -> None:
    """Writes the grid as `out`, and with `single` the images into a folder beside it, of the same name."""
    several_prompts = len(captions) > config["n"] > 1
    columns = config["columns"] or (config["n"] if several_prompts else _near_square(len(images)))
    about = {"seed": config["seed"], "prompts": list(dict.fromkeys(captions)), **settings}
    save_png(grid(images, columns), out, {"ldm": as_json(about)})
    singles = out.with_suffix("")
    if config["single"]:
        singles.mkdir(exist_ok=True)
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            about = {"prompt": caption, "seed": config["seed"] + i, **settings}
            save_png(to_pil8(image), singles / f"{i:05d}.png", {"ldm": as_json(about)})
    counted = "1 image" if len(images) == 1 else f"{len(images)} images"
    print(f"{counted}: {out}" + (f" and {singles}/" if config["single"] else ""), flush=True)


def _near_square(n: int) -> int:
    return max(1, int(np.ceil(np.sqrt(n))))


# Generating ----------------------------------------------------------------------------------------------------------


def _from_prior(vae: Any, config: Mapping[str, Any]) -> Generated:
    """`n` images decoded from z ~ N(0, I)."""
    if given := [key for key in _STAGE_TWO if config[key] is not None]:
        raise UserError(
            f"{given[0]}= is for a run of stage two: an autoencoder alone generates without conditions; leave it out."
        )
    size = config["size"] or (vae.preprocess.height, vae.preprocess.width)
    height, width = (size, size) if isinstance(size, int) else size
    images = sample_prior(vae, config["n"], (height, width), config["seed"], batch_size=config["batch_size"])
    return images.cpu(), [""] * len(images), {"sampler": "prior", **computed_in(vae)}


def _from_model(model: LatentDiffusion, config: Mapping[str, Any]) -> Generated:
    """`n` images for each prompt or label."""
    conditions = _prompts_or_labels(config)
    if config["prompt_2"] is not None:
        conditions["text"] = prompts_of(model, conditions.get("text"), config["prompt_2"])
    options = {key: config[key] for key in _SAMPLING if config.get(key) is not None}
    if config["autoguide"]:
        model.load_autoguide(find_run("ldm", config["autoguide"], config["runs_dir"]))
    images_given = {key: config[key] for key in _IMAGES}
    model.check_images(**images_given, control=config["control_image"], control_from=config["control_from"])
    also = ("strength", "feather", "embed_image", "noise_level", "size", *_FRAME)
    initial, image_conditions = model.read(**images_given, **{key: config[key] for key in also})
    control = _control_images(model, conditions | image_conditions, initial, config)
    images = model.generate_for(
        conditions | image_conditions,
        config["n"],
        negative={name: config[key] for key, name in _NEGATIVE.items() if config[key] is not None},
        seed=config["seed"],
        size=config["size"],
        batch_size=config["batch_size"],
        initial=initial,
        control=control,
        **options,
    )
    if config["then"]:
        images = _enlarged(model, images, conditions, config)
    prompts = next(iter(conditions.values()), [""])
    captions = [
        str(prompt[0] if isinstance(prompt, tuple) else prompt)
        for prompt in prompts
        for _ in range(len(images) // len(prompts))
    ]
    recorded = {key: config[key] for key in _RECORDED if config[key] is not None}
    return images.cpu(), captions, {**model.sampling, **options, **recorded, **computed_in(model)}


def _prompts_or_labels(config: Mapping[str, Any]) -> dict[str, list]:
    """The conditions that are given as words and numbers, by column."""
    if config["prompt"] is not None and config["prompts_file"]:
        raise UserError("prompt= and prompts_file= exclude each other; give one.")
    conditions: dict[str, list] = {}
    if config["prompt"] is not None:
        conditions["text"] = [replace_surrogates(str(config["prompt"]))]
    elif config["prompts_file"]:
        conditions["text"] = _read_prompts(Path(config["prompts_file"]))
    if config["labels"] is not None:
        labels = config["labels"]
        conditions["label"] = list(labels) if isinstance(labels, (list, tuple)) else [labels]
    return conditions


def _read_prompts(path: Path) -> list[str]:
    """The lines of a text file that aren't empty."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts_file={path} can't be read as text ({error}).") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"prompts_file={path} holds no prompt; write one on each line.")
    return prompts


def _control_images(
    model: LatentDiffusion, conditions: Mapping[str, list], initial: Any, config: Mapping[str, Any]
) -> Any:
    """Puts on the ControlNets that `control` names, and returns the control images; None without an image."""
    names = config["control"] or ()
    for name in names if isinstance(names, (list, tuple)) else [names]:
        model.load_controlnet(find_run("ldm", name, config["runs_dir"]), name=str(name))
    control, control_from = config["control_image"], config["control_from"]
    on = [name for name, (adapter, _) in model.adapters.items() if isinstance(adapter, Control)]
    if on and control is None and control_from is None:
        if names:
            raise UserError(
                "control= needs a control image: give control_image=, or control_from=, an image to make it from."
            )
        print(
            f"without control_image= or control_from=, these are images of the base alone, without {', '.join(on)}",
            flush=True,
        )
    return model.control_images(
        conditions,
        initial,
        config["size"],
        control=control,
        control_from=control_from,
        scale=config["control_scale"],
        start=config["control_start"],
        end=config["control_end"],
        guess=config["guess_mode"],
    )


def _enlarged(
    model: LatentDiffusion, images: Tensor, conditions: Mapping[str, list], config: Mapping[str, Any]
) -> Tensor:
    """The images enlarged by the model of super-resolution that `then` names, under the conditions that it takes."""
    larger = load(find_run("ldm", config["then"], config["runs_dir"]), device(config["device"]), **coding(config))
    if not isinstance(larger, LatentDiffusion):
        raise UserError(f"then={config['then']} isn't a run of train_ldm.py.")
    check_fit(model, larger)
    repeated = {}
    for column, values in conditions.items():
        if column in larger.conditioner.inputs:
            first = [value[0] if isinstance(value, tuple) else value for value in values]
            repeated[column] = [value for value in first for _ in range(config["n"])]
    options = {"seed": config["seed"], "batch_size": config["batch_size"]}
    return enlarge(larger, images, repeated, config["noise_level"], **options)


# What is put on the model --------------------------------------------------------------------------------------------


def _put_decoder_in(model: Any, config: Mapping[str, Any]) -> None:
    """Replaces the model's decoder by that of the run or path that `decoder` names."""
    if not (name := config["decoder"]):
        return
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"decoder={name}: a decoder goes into a run of train_ldm.py; leave stage= out.")
    model.load_decoder(find_run("vae", name, config["runs_dir"]))


def _put_loras_on(model: Any, config: Mapping[str, Any]) -> None:
    """Puts the LoRAs that `lora` names on the model: runs, folders or files."""
    for name, scale in loras(config["lora"]):
        if not isinstance(model, LatentDiffusion):
            raise UserError(f"lora={name}: a LoRA is put on a run of train_ldm.py; leave stage= out.")
        model.load_lora(find_run("ldm", name, config["runs_dir"]), scale, name=name)
