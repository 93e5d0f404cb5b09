"""`make demo`: both stages on emoji scenes, images of captions that no training image had, and their scores.

Nothing is picked: the captions are drawn by a fixed seed from combinations that were kept out of training, and the grid
shows the first of them in order.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ldm
from ldm.artifact import to_json
from ldm.commands.demo_page import write_page
from ldm.common.devices import available
from ldm.common.errors import UserError
from ldm.data.sources.emoji import Emoji
from ldm.data.sources.scenes import Scenes
from ldm.data.storage.table import Table
from ldm.evaluation.legal_report import PLACES
from ldm.evaluation.measures.image_set import from_bytes, to_bytes
from ldm.evaluation.measures.legal_scenes import best_places, by_objects, fit, scenes_of, summary, variance_of_places
from ldm.evaluation.measures.scene_reader import Reader, score, train_reader
from ldm.images import grid, save_png

CAPTIONS, TWO_OBJECTS, SEED = 200, 150, 0
OFTEN, TIMES = 16, 8  # so many captions so many times, for the variance of places
READ, NEAR = "read rightly", "nearest legal scene"
OUT = Path("runs/demo")
Rows = dict[str, dict[str, float]]


def main(words: Sequence[str] = ()) -> None:
    """Trains what isn't trained yet, generates, scores, and says what to try next."""
    if words:
        raise UserError(f"demo takes no options: leave out '{words[0]}'.")
    start = time.monotonic()
    timings = {
        "stage one": step("python train_vae.py data=emoji resume=true"),
        "stage two": step("python train_ldm.py data=emoji resume=true"),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    emoji = Emoji()
    print("\ntraining a classifier that reads scenes, to score the images", flush=True)
    begun = time.monotonic()
    reader = train_reader(emoji)
    _, val = emoji.tables(Path("runs/cache/data"))
    vae, model = ldm.load("runs/vae/emoji"), ldm.load("runs/ldm/emoji", available())
    columns, captions = emoji.held_out_captions(CAPTIONS, TWO_OBJECTS, SEED)
    scenes = Scenes(**columns)
    scores = {NEAR: near_stage_one(emoji, vae, scenes), READ: read_stage_one(reader, val, vae)}
    timings["a classifier that reads scenes, and the first stage's scores"] = time.monotonic() - begun
    begun = time.monotonic()
    images = model(captions, seed=SEED, output="pt", batch_size=50).cpu()
    timings[f"generating {CAPTIONS} images"] = time.monotonic() - begun
    fitted = fit(emoji, to_bytes(images), scenes)
    scores[NEAR] |= named("generated", by_objects(fitted))
    scores[READ]["generated"] = score(reader, images, columns)
    begun = time.monotonic()
    covered = {PLACES: coverage(emoji, model, scenes[:OFTEN], captions[:OFTEN])}
    timings[f"generating {OFTEN} captions {TIMES} times"] = time.monotonic() - begun
    about = {"captions": captions[:40], "seed": SEED, **model.sampling}
    save_png(grid(images[:40], 8), OUT / "grid.png", {"ldm": json.dumps(about)})
    (OUT / "captions.txt").write_text("\n".join(captions) + "\n")
    (OUT / "score.json").write_bytes(to_json(scores | covered))
    timings["in all"] = time.monotonic() - start
    page = write_page(OUT, scores, covered, images, captions, fitted, timings)
    show(scores, covered, timings["in all"])
    print(f"The same as a page, with the curves and the worst images: {page}")


def step(command: str) -> float:
    """Runs one of the README's own commands; the seconds that it took."""
    print(f"\n$ {command}", flush=True)
    begun = time.monotonic()
    result = subprocess.run([sys.executable, *command.split()[1:]], check=False)
    if result.returncode:
        sys.exit(result.returncode)
    return time.monotonic() - begun


def read_stage_one(reader: Reader, val: Table, vae: ldm.AutoencoderKL, n: int = 1000) -> Rows:
    """How validation scenes and their reconstructions are read."""
    rows = np.arange(min(n, len(val)))
    scenes, images = scenes_of(val, rows).columns(), val.batch(rows, ["image"])["image"]
    return {
        "real validation scenes": score(reader, images, scenes),
        "their VAE reconstructions (the ceiling)": score(reader, reconstructed(vae, images), scenes),
    }


def near_stage_one(emoji: Emoji, vae: ldm.AutoencoderKL, scenes: Scenes) -> Rows:
    """How near real scenes and their reconstructions are to legal ones: what generated images can't be expected to
    pass."""
    images = from_bytes(torch.from_numpy(emoji.compose(scenes, SEED)[0]))
    kinds = {
        "real scenes of the same captions": images,
        "reconstructions, posterior's mean": reconstructed(vae, images),
        "reconstructions, a draw of it": reconstructed(vae, images, SEED),
    }
    return {what: summary(fit(emoji, to_bytes(one), scenes)) for what, one in kinds.items()}


@torch.inference_mode()
def reconstructed(vae: ldm.AutoencoderKL, images: Tensor, seed: int | None = None) -> Tensor:
    """Images decoded again from the mean of their posterior, or from a draw of it."""
    generator = torch.Generator().manual_seed(seed or 0)
    parts = []
    for batch in images.split(100):
        posterior = vae.encode(batch)
        noise = torch.zeros(()) if seed is None else torch.randn(posterior.mean.shape, generator=generator)
        parts.append(vae.decode(posterior.sample(noise)).clamp(-1, 1))
    return torch.cat(parts)


def coverage(emoji: Emoji, model: ldm.LatentDiffusion, scenes: Scenes, captions: Sequence[str]) -> float:
    """How much of the jitter the images of one caption cover: see `variance_of_places`."""
    images = model(captions, n=TIMES, seed=SEED + CAPTIONS, output="pt", batch_size=64)  # a caption's follow each other
    each = to_bytes(images).cpu().unflatten(0, (len(captions), TIMES)).transpose(0, 1)
    return variance_of_places(emoji, np.stack([best_places(emoji, one.numpy(), scenes) for one in each]), scenes)


def named(what: str, groups: Rows) -> Rows:
    """The groups' figures as rows of a table."""
    return {what if group == "all" else f"{what}, {group}": figures for group, figures in groups.items()}


def show(scores: dict[str, Rows], covered: dict[str, float], seconds: float) -> None:
    print(f"\nPSNR to the nearest legal scene, {CAPTIONS} images of each kind:")
    show_rows(scores[NEAR])
    for name, value in covered.items():
        print(f"{name}: {value:.2f}")
    print(f"\nread rightly by a classifier, of {CAPTIONS} images and of real scenes:")
    show_rows(scores[READ])
    print(f"\n{seconds:.0f} s in all. Look at {OUT / 'grid.png'}; its captions are in {OUT / 'captions.txt'}.")
    print("Next: python sample.py run=emoji prompt='a cat above a rocket on a blue background' n=4 out=cat.png")
    print("Few steps: python train_ldm.py finetune=distill base=emoji data=emoji, then sample.py run=emoji-fast")


def show_rows(rows: Rows) -> None:
    names = list(next(iter(rows.values())))
    print(" " * 42 + "".join(f"{name.replace('all, ', ''):>12}" for name in names))
    for title, row in rows.items():
        print(f"{title:<42}" + "".join(f"{row[name]:12.3f}" for name in names))
