"""`sample.py`: pictures from a trained model, as files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.images import grid, save_png
from ldm.loading import load
from ldm.networks import AutoencoderKL
from ldm.pipeline import LatentDiffusion, sample_prior
from ldm.training.run import find_run

# Options of the sampler itself; null in the YAML means: as the model was trained to be sampled.
OPTIONS = ("sampler", "steps", "guidance", "interval", "rescale", "spacing", "shift", "eta", "variance", "clip")


def main(config: dict[str, Any], job: str | None = None) -> None:
    """Writes a grid and, with `single`, each picture, every one with its settings in a text chunk."""
    path = find_run(config["stage"], config["run"], config["runs_dir"])
    model = load(path, device(config["device"]))
    if isinstance(model, AutoencoderKL):
        images, captions, settings = from_prior(model, config)
    elif isinstance(model, LatentDiffusion):
        images, captions, settings = from_model(model, config)
    else:
        raise UserError(f"{path} holds a {type(model).__name__}, which can't be sampled.")
    settings = {"run": str(config["run"]), **settings}
    out = Path(config["out"]) if config["out"] else unused(path, job)
    write(images, captions, settings, config, out)


def from_model(model: LatentDiffusion, config: Mapping[str, Any]) -> tuple[Tensor, list[str], dict[str, Any]]:
    """Images (N, C, H, W), what each was asked for, and the settings they share."""
    given = conditions(config)
    options = {key: config[key] for key in OPTIONS if config.get(key) is not None}
    start = model.start(config["image"], config["strength"], config["mask"], config["feather"])
    images = model.draw(
        given,
        config["n"],
        negative=config["negative"],
        seed=config["seed"],
        size=config["size"],
        batch_size=config["batch_size"],
        start=start,
        **options,
    )
    asked = next(iter(given.values()), [""])
    captions = [str(value) for value in asked for _ in range(config["n"])]
    named = {key: config[key] for key in ("negative", "image", "mask", "strength") if config[key] is not None}
    return images.cpu(), captions, {**model.sampling, **options, **named}


def conditions(config: Mapping[str, Any]) -> dict[str, list]:
    """What was asked for, by column."""
    if config["prompt"] is not None and config["prompts_file"]:
        raise UserError("prompt= and prompts_file= exclude each other; give one.")
    given: dict[str, list] = {}
    if config["prompt"] is not None:
        given["text"] = [str(config["prompt"])]
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
    preprocess = vae.preprocess
    size = config["size"] or (preprocess.height, preprocess.width)
    height, width = (size, size) if isinstance(size, int) else size
    images = sample_prior(vae, config["n"], (height, width), config["seed"], config["batch_size"])
    return images.cpu(), [""] * len(images), {"sampler": "prior"}


def write(
    images: Tensor, captions: list[str], settings: Mapping[str, Any], config: Mapping[str, Any], out: Path
) -> None:
    """The grid as `out`, and the pictures beside it in a folder of its name."""
    if out.suffix.lower() != ".png":
        raise UserError(f"out={out} has to end in .png.")
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = config["columns"] or (config["n"] if len(captions) > config["n"] > 1 else near_square(len(images)))
    about = {"seed": config["seed"], "prompts": list(dict.fromkeys(captions)), **settings}
    save_png(grid(images, columns), out, {"ldm": json.dumps(about, ensure_ascii=False)})
    if config["single"]:
        from ldm.images import to_pil8

        singles = out.with_suffix("")
        singles.mkdir(exist_ok=True)
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            about = {"prompt": caption, "seed": config["seed"] + i, **settings}
            save_png(to_pil8(image), singles / f"{i:05d}.png", {"ldm": json.dumps(about, ensure_ascii=False)})
    print(f"{len(images)} pictures: {out}" + (f" and {out.with_suffix('')}/" if config["single"] else ""), flush=True)


def near_square(n: int) -> int:
    return max(1, int(np.ceil(np.sqrt(n))))


def unused(run: Path, job: str | None) -> Path:
    """A new name in the run's samples/, or in the working folder for a model that isn't a run of ours."""
    folder = run / "samples" if (run / "samples").is_dir() else Path()
    stem = f"sample-{job}" if job else "sample"
    numbers = (i for i in range(1, 1_000_000) if not (folder / f"{stem}-{i:03d}.png").exists())
    return folder / f"{stem}-{next(numbers):03d}.png"


def device(name: str) -> str:
    """The torch device that `name` means; auto: a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
