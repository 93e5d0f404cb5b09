"""Map to image: does a segmentation network read the input map back from the generated images?

    python benchmarks/map_to_image.py [SECONDS] [--runs DIR] [--out PNG] [KEY=VALUE ...]

Emoji scenes. Stage one gets an eighth of the budget, stage two (experiment=emoji_map) the rest. A small segmentation
network, trained on real pairs of the training split, reads maps back from real validation images and from images
generated from the same maps. Only pixels that aren't background in the map count. The output image shows rows of maps,
generated images, the maps read from them, and real images.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from recipe import arguments, report, train
from torch import Tensor, nn

import ldm
from ldm.data.sources.emoji import Emoji
from ldm.data.storage.table import Table


class Segmenter(nn.Module):
    """Images (B, 3, H, W) to logits of classes (B, K, H, W): a U-Net of three levels."""

    def __init__(self, classes: int, width: int = 32):
        super().__init__()

        def block(a: int, b: int) -> nn.Module:
            layers = [nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU()]
            return nn.Sequential(*layers, nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU())

        w = width
        self.down = nn.ModuleList([block(3, w), block(w, 2 * w), block(2 * w, 4 * w)])
        self.up = nn.ModuleList([block(6 * w, 2 * w), block(3 * w, w)])
        self.head = nn.Conv2d(w, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        a = self.down[0](images)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        b = self.up[0](torch.cat([F.interpolate(c, scale_factor=2.0), b], 1))
        a = self.up[1](torch.cat([F.interpolate(b, scale_factor=2.0), a], 1))
        return self.head(a)


def train_segmenter(table: Table, classes: int, steps: int, seed: int) -> Segmenter:
    """Trains with noise on the images, so that it reads shapes and colours and not a decoder's texture."""
    torch.manual_seed(seed)
    model = Segmenter(classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(table), (32,)).numpy()
        batch = table.batch(rows, ["image", "map"])
        images = batch["image"] + 0.1 * torch.rand(()) * torch.randn_like(batch["image"])
        loss = F.cross_entropy(model(images), batch["map"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def read_maps(model: Segmenter, images: Tensor) -> Tensor:
    return torch.cat([model(batch).argmax(1) for batch in images.split(100)])


def accuracy(read: Tensor, maps: Tensor) -> float:
    """The share of correctly read pixels, of those that aren't background."""
    objects = maps > 0
    return float((read == maps)[objects].float().mean())


def coloured(maps: Tensor, classes: int) -> Tensor:
    """Maps (B, H, W) as images (B, 3, H, W)."""
    colours = torch.rand(classes, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    colours[0] = 1
    return colours[maps].movedim(3, 1)


def main() -> None:
    args = arguments(__doc__, 600)
    stage_one = args.seconds / 8
    spent = {"train_vae": train("train_vae.py", stage_one, args.runs, "data=emoji")}
    options = ("experiment=emoji_map", *args.options)
    spent["train_ldm"] = train("train_ldm.py", args.seconds - stage_one, args.runs, *options)
    table, val = Emoji().tables(Path(args.runs) / "cache" / "data")
    classes, n = len(table.map_classes), args.n or 200
    segmenter = train_segmenter(table, classes, 300 if args.seconds >= 120 else 20, args.seed + 1)
    real = val.batch(np.arange(n), ["image", "map"])
    model = ldm.load(f"{args.runs}/ldm/emoji_map")
    generated = model(map=real["map"], seed=args.seed, output="pt", batch_size=50)
    decoded = torch.cat([model.decode(model.encode(batch)) for batch in real["image"].split(50)])
    on_real = accuracy(read_maps(segmenter, real["image"]), real["map"])
    on_generated = accuracy(read_maps(segmenter, generated), real["map"])
    figures = {
        "pixel accuracy on real images, background left out": on_real,
        "on their reconstructions": accuracy(read_maps(segmenter, decoded), real["map"]),
        "on generated images": on_generated,
        "share": on_generated / on_real,
        "wanted": 0.8,
        "images": n,
        "seconds": spent,
        "sampling": model.sampling,
    }
    some = slice(0, 16)
    rows = [
        coloured(real["map"][some], classes),
        generated[some],
        coloured(read_maps(segmenter, generated[some]), classes),
    ]
    out = Path(args.out or f"{args.runs}/map_to_image.png")
    report(figures, torch.cat([*rows, real["image"][some]]), 16, out)


if __name__ == "__main__":
    main()
