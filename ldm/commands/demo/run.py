"""Trains both stages on emoji scenes, then generates and scores images of captions that no training image has."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ldm
from ldm.artifact import to_json
from ldm.commands.demo.page import FIRST, Results, write_page
from ldm.common.devices import available
from ldm.common.errors import UserError
from ldm.data.sources.emoji import Emoji
from ldm.data.sources.scenes import Scenes
from ldm.data.storage.table import Table
from ldm.evaluation.legal_report import PLACES
from ldm.evaluation.measures.image_set import from_bytes, to_bytes
from ldm.evaluation.measures.legal_scenes import best_places, by_objects, fit, scenes_of, summary, variance_of_places
from ldm.evaluation.measures.scene_reader import SceneReader, caption_scores, train_reader
from ldm.images import grid, save_png

CAPTIONS, TWO_OBJECTS, SEED = 200, 150, 0
REPEATED, TIMES = 16, 8  # captions that are generated several times, for the variance of places
READ, NEAR = "read rightly", "nearest legal scene"
OUT = Path("runs/demo")
Rows = dict[str, dict[str, float]]


def main(words: Sequence[str] = ()) -> None:
    """Trains what isn't trained yet, generates, scores, and says what to try next."""
    if words:
        raise UserError(f"demo takes no options: leave out '{words[0]}'.")
    start = time.monotonic()
    seconds = {
        "stage one": step("python train_vae.py data=emoji resume=true"),
        "stage two": step("python train_ldm.py data=emoji resume=true"),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    results = _scored_images(Emoji(), seconds)
    seconds["in all"] = time.monotonic() - start
    page = write_page(OUT, results)
    show(results.scores, results.coverage, seconds["in all"])
    print(f"The same as a page, with the curves and the worst images: {page}")


def _scored_images(emoji: Emoji, seconds: dict[str, float]) -> Results:
    """Generates the captions' images, scores them, and writes the grid, its captions and the scores to OUT.

    The time that each part takes is added to `seconds`.
    """
    print("\ntraining a classifier that reads scenes, to score the images", flush=True)
    begin = time.monotonic()
    reader = train_reader(emoji)
    _, val = emoji.tables(Path("runs/cache/data"))
    vae, model = ldm.load("runs/vae/emoji"), ldm.load("runs/ldm/emoji", available())
    columns, captions = emoji.held_out_captions(CAPTIONS, TWO_OBJECTS, SEED)
    scenes = Scenes(**columns)
    scores = {NEAR: near_stage_one(emoji, vae, scenes), READ: read_stage_one(reader, val, vae)}
    seconds["a classifier that reads scenes, and the first stage's scores"] = time.monotonic() - begin
    begin = time.monotonic()
    images = model(captions, seed=SEED, output="pt", batch_size=50).cpu()
    seconds[f"generating {CAPTIONS} images"] = time.monotonic() - begin
    fitted = fit(emoji, to_bytes(images), scenes)
    scores[NEAR] |= named("generated", by_objects(fitted))
    scores[READ]["generated"] = caption_scores(reader, images, columns)
    begin = time.monotonic()
    covered = {PLACES: coverage(emoji, model, scenes[:REPEATED], captions[:REPEATED])}
    seconds[f"generating {REPEATED} captions {TIMES} times"] = time.monotonic() - begin
    about = {"captions": captions[:FIRST], "seed": SEED, **model.sampling}
    save_png(grid(images[:FIRST], 8), OUT / "grid.png", {"ldm": json.dumps(about)})
    (OUT / "captions.txt").write_text("\n".join(captions) + "\n")
    (OUT / "score.json").write_bytes(to_json(scores | covered))
    return Results(scores=scores, coverage=covered, images=images, captions=captions, fitted=fitted, seconds=seconds)


def step(command: str) -> float:
    """Runs one of the README's own commands; returns the seconds that it took."""
    print(f"\n$ {command}", flush=True)
    begin = time.monotonic()
    result = subprocess.run([sys.executable, *command.split()[1:]], check=False)
    if result.returncode:
        sys.exit(result.returncode)
    return time.monotonic() - begin


def read_stage_one(reader: SceneReader, val: Table, vae: ldm.AutoencoderKL, n: int = 1000) -> Rows:
    """How well the classifier reads validation scenes and their reconstructions."""
    rows = np.arange(min(n, len(val)))
    scenes, images = scenes_of(val, rows).columns(), val.batch(rows, ["image"])["image"]
    return {
        "real validation scenes": caption_scores(reader, images, scenes),
        "their VAE reconstructions (the ceiling)": caption_scores(reader, reconstructed(vae, images), scenes),
    }


def near_stage_one(emoji: Emoji, vae: ldm.AutoencoderKL, scenes: Scenes) -> Rows:
    """How near real scenes and their reconstructions are to legal scenes, which generated images can't be expected to
    exceed.
    """
    images = from_bytes(torch.from_numpy(emoji.compose(scenes, SEED)[0]))
    kinds = {
        "real scenes of the same captions": images,
        "reconstructions, posterior's mean": reconstructed(vae, images),
        "reconstructions from a sampled latent": reconstructed(vae, images, SEED),
    }
    return {what: summary(fit(emoji, to_bytes(one), scenes)) for what, one in kinds.items()}


@torch.inference_mode()
def reconstructed(vae: ldm.AutoencoderKL, images: Tensor, seed: int | None = None) -> Tensor:
    """Images encoded and decoded: from the mean of their posterior, or with a seed from a sample of it."""
    generator = torch.Generator().manual_seed(seed or 0)
    parts = []
    for batch in images.split(100):
        posterior = vae.encode(batch)
        noise = torch.zeros(()) if seed is None else torch.randn(posterior.mean.shape, generator=generator)
        parts.append(vae.decode(posterior.sample(noise)).clamp(-1, 1))
    return torch.cat(parts)


def coverage(emoji: Emoji, model: ldm.LatentDiffusion, scenes: Scenes, captions: Sequence[str]) -> float:
    """How much of the data's jitter the images of one caption cover: see `variance_of_places`."""
    images = model(captions, n=TIMES, seed=SEED + CAPTIONS, output="pt", batch_size=64)  # grouped by caption
    each = to_bytes(images).cpu().unflatten(0, (len(captions), TIMES)).transpose(0, 1)
    return variance_of_places(emoji, np.stack([best_places(emoji, one.numpy(), scenes) for one in each]), scenes)


def named(what: str, groups: Rows) -> Rows:
    """The groups' figures as rows of a table, each named by what was scored and the group."""
    return {what if group == "all" else f"{what}, {group}": figures for group, figures in groups.items()}


def show(scores: Mapping[str, Mapping[str, Mapping[str, float]]], covered: Mapping[str, float], seconds: float) -> None:
    """Prints the scores as tables, and the commands to try next."""
    print(f"\nPSNR to the nearest legal scene, {CAPTIONS} images of each kind:")
    _show_rows(scores[NEAR])
    for name, value in covered.items():
        print(f"{name}: {value:.2f}")
    print(f"\nshare read correctly by a classifier, of {CAPTIONS} images and of real scenes:")
    _show_rows(scores[READ])
    print(f"\n{seconds:.0f} s in all. Look at {OUT / 'grid.png'}; its captions are in {OUT / 'captions.txt'}.")
    print("Next: python sample.py run=emoji prompt='a cat above a rocket on a blue background' n=4 out=cat.png")
    print("Few steps: python train_ldm.py finetune=distill base=emoji data=emoji guidance=2.5")


def _show_rows(rows: Mapping[str, Mapping[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(" " * 42 + "".join(f"{name.replace('all, ', ''):>12}" for name in names))
    for title, row in rows.items():
        print(f"{title:<42}" + "".join(f"{row[name]:12.3f}" for name in names))
