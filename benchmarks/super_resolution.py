"""Super-resolution of emoji scenes, 16x16 to 32x32, against bicubic enlargement.

    python benchmarks/super_resolution.py [SECONDS] [--runs DIR] [--out PNG] [KEY=VALUE ...]

Trains experiment=emoji_sr for the budget and enlarges validation scenes that were averaged to 16x16. The measure is the
Frechet distance to other real validation scenes, in the 256 features of a classifier of real scenes
(ldm/evaluation/measures/scene_reader.py; the number isn't an FID, whose features are Inception's). The image shows rows
of the low resolution, of bicubic, of the model's and of the real images.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from recipe import arguments, report, train
from torch import Tensor

import ldm
from ldm.conditioning.lowres import smaller
from ldm.data.sources.emoji import Emoji
from ldm.evaluation.measures.distances import frechet_distance
from ldm.evaluation.measures.scene_reader import SceneReader, train_reader


def features(reader: SceneReader, images: Tensor) -> Tensor:
    return torch.cat([reader.features(batch) for batch in images.split(250)])


def psnr(images: Tensor, real: Tensor) -> float:
    return float(10 * torch.log10(4 / (images - real).square().mean()))


def main() -> None:
    args = arguments(__doc__, 480)
    spent = {"train_ldm": train("train_ldm.py", args.seconds, args.runs, "experiment=emoji_sr", *args.options)}
    emoji = Emoji()
    _, val = emoji.tables(Path(args.runs) / "cache" / "data")
    n = args.n or 1000
    real = val.batch(np.arange(n), ["image"])["image"]
    other = val.batch(np.arange(n, min(2 * n, len(val))), ["image"])["image"]
    low = smaller(real, 2)
    bicubic = F.interpolate(low, scale_factor=2.0, mode="bicubic").clamp(-1, 1)
    model = ldm.load(f"{args.runs}/ldm/emoji_sr")
    generated = model(image=low, seed=args.seed, output="pt", batch_size=50)
    reader = train_reader(emoji, 300 if args.seconds >= 120 else 20)
    reference = features(reader, other)
    distance = {
        name: frechet_distance(features(reader, images), reference)
        for name, images in {"real": real, "bicubic": bicubic, "model": generated}.items()
    }
    figures = {
        "Frechet distance in the classifier's features": distance,
        "lower than bicubic's by": 1 - distance["model"] / distance["bicubic"],
        "wanted": 0.3,
        "PSNR in dB": {"bicubic": psnr(bicubic, real), "model": psnr(generated, real)},
        "images": n,
        "seconds": spent,
        "sampling": model.sampling,
    }
    some = slice(0, 16)
    rows = [F.interpolate(low[some], scale_factor=2.0), bicubic[some], generated[some], real[some]]
    report(figures, torch.cat(rows), 16, Path(args.out or f"{args.runs}/super_resolution.png"))


if __name__ == "__main__":
    main()
