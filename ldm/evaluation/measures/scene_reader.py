"""A small classifier for emoji scenes, which reads from an image what its caption says."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.sources.emoji import Emoji
from ldm.data.sources.scenes import draw_any

PARTS = ("first", "second", "relation", "background")


class SceneReader(nn.Module):
    """Images (B, 3, H, W) to logits of first object, second object (or none), relation and background."""

    def __init__(self, objects: int, backgrounds: int, width: int = 32):
        super().__init__()
        self.sizes = {"first": objects, "second": objects + 1, "relation": 3, "background": backgrounds}

        def block(a: int, b: int, stride: int) -> nn.Module:
            """A 3x3 convolution from `a` to `b` channels, batch norm and ReLU."""
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        w = width
        self.body = nn.Sequential(
            block(12, 2 * w, 1),
            block(2 * w, 2 * w, 2),
            block(2 * w, 4 * w, 1),
            block(4 * w, 4 * w, 2),
            block(4 * w, 4 * w, 1),
        )
        self.neck = nn.Sequential(nn.Linear(4 * w * 16, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, n) for name, n in self.sizes.items()})

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to features (B, 256)."""
        x = F.pixel_unshuffle(F.interpolate(images, (32, 32), mode="bilinear", antialias=True), 2)  # (B, 12, 16, 16)
        return self.neck(self.body(x.contiguous(memory_format=torch.channels_last)).flatten(1))  # (B, 256)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to the logits (B, values) of each property of the scene."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def train_reader(emoji: Emoji, steps: int = 300, batch_size: int = 64, seed: int = 1) -> SceneReader:
    """A reader trained on scenes of its own, with all pairs of objects, since it must read pairs that the generator
    never saw.

    Noise is added, so that it reads the object and not the texture of a decoder.
    """
    torch.manual_seed(seed)
    scenes = draw_any(emoji.held_out, 100 * batch_size, seed)
    images, _ = emoji.compose(scenes, seed)
    targets = codes(scenes.columns())
    reader = SceneReader(len(emoji.objects), len(emoji.backgrounds)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(reader.parameters(), 3e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    order = torch.cat([torch.randperm(len(images)) for _ in range(-(-steps * batch_size // len(images)))])
    for rows in order[: steps * batch_size].view(steps, batch_size):
        x = torch.from_numpy(images[rows.numpy()]).float() / 127.5 - 1
        logits = reader(x + 0.1 * torch.rand(()) * torch.randn_like(x))
        loss = torch.stack([F.cross_entropy(logits[name], targets[name][rows]) for name in PARTS]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval().requires_grad_(False)


def codes(columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The columns of scenes as targets (N,); class 0 of the second object means that there is none."""
    values = {name: torch.tensor(np.asarray(columns[name])).long() for name in PARTS}
    return values | {"second": values["second"] + 1}


@torch.inference_mode()
def caption_scores(reader: SceneReader, images: Tensor, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The shares of images (N, 3, H, W) in [-1, 1] whose parts are read as the caption says: each part, and all."""
    logits = [reader(batch) for batch in images.split(256)]
    wanted = codes(columns)
    right = {name: torch.cat([batch[name] for batch in logits]).argmax(1) == wanted[name] for name in PARTS}
    everything = torch.stack(list(right.values())).all(0)
    two = wanted["relation"] > 0
    report = {name: float(value.float().mean()) for name, value in right.items()}
    report |= {"all": float(everything.float().mean()), "all, one object": float(everything[~two].float().mean())}
    return report | {"all, two objects": float(everything[two].float().mean())}
