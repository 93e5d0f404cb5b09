"""What few steps cost in quality: a base and its distilled students on emoji scenes, by network evaluations.

    python benchmarks/few_steps.py runs/ldm/emoji runs/ldm/emoji-fast runs/ldm/emoji-lcm:1 runs/ldm/emoji-lcm:4

A model runs with its own number of steps, or with that after the colon; the first model is the base, at 2 to 20 steps.
For each: the share of scenes that a classifier reads correctly in every part, the share of images with a PSNR above 20
dB to the nearest legal scene, and the Frechet distance to 2000 real scenes, over captions that no training image has,
with mean and standard deviation over the seeds. The base's fewest evaluations are those at which its distance is at
most 5 % above its best. Nothing is selected: a grid shows the first images of the first seed, enlarged fourfold.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ldm
from ldm.commands.evaluate import features_for
from ldm.data.sources.emoji import Emoji
from ldm.data.sources.scenes import Scenes
from ldm.evaluation.measures.distances import frechet_distance
from ldm.evaluation.measures.features import Features
from ldm.evaluation.measures.image_set import from_bytes, to_bytes
from ldm.evaluation.measures.legal_scenes import fit
from ldm.evaluation.measures.scene_reader import SceneReader, caption_scores, train_reader
from ldm.evaluation.scoring import NetworkCalls
from ldm.images import grid

STEPS = (2, 4, 6, 8, 10, 12, 16, 20)  # of the base
WITHIN = 1.05
NAMES = ("all right", "above 20 dB", "Frechet distance")


class Measure:
    """The captions of each seed, and the networks that score images of them."""

    def __init__(self, seeds: int, n: int, cache: Path):
        self.emoji, self.n = Emoji(), n
        self.reader: SceneReader = train_reader(self.emoji)
        self.captions = [self.emoji.held_out_captions(n, 3 * n // 4, seed) for seed in range(seeds)]
        train, val = self.emoji.tables(cache / "data")
        config = {"device": "cpu", "features": "auto", "cache_dir": str(cache)}
        self.features: Features = features_for(val.preprocess, train, config)
        columns, _ = self.emoji.held_out_captions(2000, 1500, seeds)
        self.real = self.features(from_bytes(torch.from_numpy(self.emoji.compose(Scenes(**columns), seeds)[0])))

    def __call__(self, model: ldm.LatentDiffusion, out: Path, **options: Any) -> dict[str, Any]:
        """The figures of a model sampled with `options`; a grid goes to `out`."""
        rows, images = [], None
        with NetworkCalls(model.denoiser.network) as count:
            for seed, (columns, captions) in enumerate(self.captions):
                images = model(captions, seed=self.n * seed, output="pt", batch_size=100, **options)
                rows.append(self.figures(images, columns))
                if seed == 0:
                    enlarged(images[:24], out)
        figures: dict[str, Any] = {"evaluations": count.rows / (self.n * len(self.captions))}
        for name, values in zip(NAMES, np.array(rows).T, strict=True):
            figures |= {name: float(values.mean()), f"{name}, std": float(values.std())}
        return figures

    def figures(self, images: Tensor, columns: dict[str, np.ndarray]) -> list[float]:
        near = fit(self.emoji, to_bytes(images), Scenes(**columns))
        right = caption_scores(self.reader, images, columns)["all"]
        return [right, float((near.psnr > 20).mean()), frechet_distance(self.features(images), self.real)]


def enlarged(images: Tensor, out: Path) -> None:
    sheet = grid(images, 8)
    sheet.resize((4 * sheet.width, 4 * sheet.height), Image.Resampling.NEAREST).save(out)


def fewest(rows: dict[str, dict[str, Any]]) -> float:
    """The evaluations of the cheapest row whose distance is within 5 % of the best."""
    best = min(row["Frechet distance"] for row in rows.values())
    return min(row["evaluations"] for row in rows.values() if row["Frechet distance"] <= WITHIN * best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="the base, then students; RUN or RUN:STEPS")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=200, help="captions of each seed")
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS, help="of the base")
    parser.add_argument("--cache", default="runs/cache")
    parser.add_argument("--out", default="runs/few_steps", help="folder of grids and figures")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    measure, found = Measure(options.seeds, options.n, Path(options.cache)), {}
    base, *students = options.models
    wanted = [(base, steps) for steps in options.steps]
    wanted += [(name, int(steps) if steps else None) for name, _, steps in (s.partition(":") for s in students)]
    for name, steps in wanted:
        model = ldm.load(name)
        key = f"{Path(name).name}, {steps or model.sampling['steps']} steps"
        found[key] = measure(model, out / f"{key.replace(', ', '-').replace(' ', '-')}.png", steps=steps)
        print(json.dumps({key: found[key]}), flush=True)
    cheapest = fewest(dict(list(found.items())[: len(options.steps)])) if options.steps else None
    report = {"features": measure.features.name, "settings": found, "the base's fewest evaluations": cheapest}
    (out / "figures.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
