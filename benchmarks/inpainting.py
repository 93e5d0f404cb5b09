"""Inpainting: is a removed object replaced as the prompt says, and do known pixels stay as they were?

    python benchmarks/inpainting.py [SECONDS] [--runs DIR] [--out PNG] [KEY=VALUE ...]
    python benchmarks/inpainting.py 600 --runs runs run=emoji     # a run that was trained without masks

Emoji scenes. Stage one gets an eighth of the budget, stage two (experiment=emoji_inpaint) the rest. Of held-out scenes
with two objects one is hidden (its bounding box and a pixel around it), and the hole is filled by the scene's caption
with another object's name in its place, so that copying what was there doesn't help. A classifier of real scenes
(ldm/evaluation/measures/scene_reader.py) reads the result. The output image shows rows of scenes, of the masked scenes
that the model is given, and of its results.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe import arguments, report, train
from torch import Tensor

import ldm
from ldm.data.sources.emoji import Emoji
from ldm.data.sources.scenes import Scenes, draw_held_out
from ldm.evaluation.measures.scene_reader import SceneReader, train_reader


def holes(maps: np.ndarray, thing: np.ndarray, margin: int = 1) -> Tensor:
    """Bounding boxes of the objects `thing` (N,) in maps (N, H, W), `margin` pixels wider: (N, 1, H, W) of 0 and 1."""
    masks = torch.zeros(len(maps), 1, *maps.shape[1:])
    for mask, ids, wanted in zip(masks, maps, thing, strict=True):
        rows, columns = np.nonzero(ids == wanted + 1)
        top, left = max(rows.min() - margin, 0), max(columns.min() - margin, 0)
        mask[0, top : rows.max() + margin + 1, left : columns.max() + margin + 1] = 1
    return masks


def others(scenes: Scenes, hidden: np.ndarray, objects: int, seed: int) -> Scenes:
    """The scenes with another object in place of the hidden one: the first where `hidden`, else the second."""
    rng = np.random.default_rng([seed, 7])
    there = zip(scenes.first, scenes.second, strict=True)
    new = np.array([rng.choice([k for k in range(objects) if k not in pair]) for pair in there])
    return replace(scenes, first=np.where(hidden, new, scenes.first), second=np.where(hidden, scenes.second, new))


def agrees(reader: SceneReader, images: Tensor, scenes: Scenes, hidden: np.ndarray) -> tuple[float, float]:
    """The share of images whose new object is read as the caption says, and of those whose kept object is."""
    read: dict[str, Any] = reader(images)
    first = read["first"].argmax(1).numpy() == scenes.first
    second = read["second"].argmax(1).numpy() - 1 == scenes.second
    return float(np.where(hidden, first, second).mean()), float(np.where(hidden, second, first).mean())


def trained(args: Namespace) -> dict[str, float]:
    """Trains both stages; returns the seconds that each took."""
    stage_one = args.seconds / 8
    spent = {"train_vae": train("train_vae.py", stage_one, args.runs, "data=emoji")}
    options = ("experiment=emoji_inpaint", *args.options)
    spent["train_ldm"] = train("train_ldm.py", args.seconds - stage_one, args.runs, *options)
    return spent


def main() -> None:
    args = arguments(__doc__, 600)
    run = next((word.removeprefix("run=") for word in args.options if word.startswith("run=")), None)
    spent = {} if run else trained(args)
    emoji, n = Emoji(), args.n or 100
    reader = train_reader(emoji, 300 if args.seconds >= 120 else 20)
    scenes = draw_held_out(emoji.held_out, n, n, args.seed)
    pixels, maps = emoji.compose(scenes, args.seed)
    images = torch.from_numpy(pixels).float() / 127.5 - 1
    hidden = np.random.default_rng(args.seed).random(n) < 0.5
    mask = holes(maps, np.where(hidden, scenes.first, scenes.second))
    wanted = others(scenes, hidden, len(emoji.objects), args.seed)
    model = ldm.load(f"{args.runs}/ldm/{run or 'emoji_inpaint'}")
    generated = model(
        wanted.captions(emoji.objects, emoji.backgrounds),
        image=images,
        mask=mask,
        seed=args.seed,
        output="pt",
        batch_size=50,
    )
    kept = (mask == 0).expand_as(images)
    composed = torch.from_numpy(emoji.compose(wanted, args.seed)[0]).float() / 127.5 - 1
    filled, left = agrees(reader, generated, wanted, hidden)
    figures = {
        "the filled object is read as the caption says": filled,
        "wanted": 0.6,
        "the kept object is read rightly": left,
        "the same on real scenes of the new captions": agrees(reader, composed, wanted, hidden),
        "known pixels are exactly as they were": bool(torch.equal(generated[kept], images[kept])),
        "images": n,
        "seconds": spent,
        "sampling": model.sampling,
    }
    some = slice(0, 16)
    shown = torch.where(kept, images, torch.zeros(()))
    out = Path(args.out or f"{args.runs}/inpainting.png")
    report(figures, torch.cat([images[some], shown[some], generated[some]]), 16, out)


if __name__ == "__main__":
    main()
