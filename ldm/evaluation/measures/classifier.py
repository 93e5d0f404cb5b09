"""A feature network that is trained on the data themselves to read their labels or captions, if there is no other."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.devices import send
from ldm.common.files import atomic_write
from ldm.data.storage.table import REPEATS, Table
from ldm.evaluation.measures.features import Features, prepared, weights_hash
from ldm.evaluation.measures.image_set import as_bytes

SIDE, MOST_IMAGES, MOST_CLASSES = 32, 20_000, 1000
Targets = dict[str, Tensor]


class Classifier(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] to logits by head."""

    def __init__(self, heads: dict[str, int], width: int = 24):
        super().__init__()

        def block(a: int, b: int, stride: int) -> nn.Module:
            """A 3x3 convolution from `a` to `b` channels, batch norm and ReLU."""
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        w = width
        self.body = nn.Sequential(
            block(12, 2 * w, 1), block(2 * w, 2 * w, 2), block(2 * w, 4 * w, 2), block(4 * w, 4 * w, 1)
        )
        self.neck = nn.Sequential(nn.Linear(4 * w * 16, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.names = list(heads)
        self.heads = nn.ModuleList([nn.Linear(256, size) for size in heads.values()])

    def features(self, x: Tensor) -> Tensor:
        """What the heads read, with each block's mean over positions, (B, 256 + 12 width).

        Heads may ignore noise or blur, which the first blocks see.
        """
        h, means = F.pixel_unshuffle(x, 2), []
        for block in self.body:
            h = block(h)
            means.append(h.mean((2, 3)))
        return torch.cat([self.neck(h.flatten(1)), *means], 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, 32, 32) in [-1, 1] to the logits (B, classes) of each head."""
        features = self.neck(self.body(F.pixel_unshuffle(x, 2)).flatten(1))
        return {name: head(features) for name, head in zip(self.names, self.heads, strict=True)}


def own_features(table: Table, cache: Path | None = None, steps: int = 300, device: str = "cpu") -> Features | None:
    """Features of a classifier trained on `table`'s labels, other integer columns and words of captions.

    None if there are none of these. The classifier is kept under `cache`, so that all runs on these data are measured
    by the same one.
    """
    targets = targets_of(table)
    if not targets:
        return None
    model = Classifier({name: _head_size(target) for name, target in targets.items()})
    path = cache / "features" / f"own-1-{table.key}-{steps}.pt" if cache else None
    if path and path.is_file():
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    else:
        print(f"training a classifier of {', '.join(targets)} whose features serve to compare images", flush=True)
        train_classifier(model, table, targets, steps, device=device)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, lambda file: torch.save(model.state_dict(), file))
    model = model.eval().requires_grad_(False).to(device)
    note = f"a small classifier trained on this data's {', '.join(targets)}: comparable on this data alone"
    return Features(
        "own classifier",
        model.features,
        SIDE,
        scale=lambda x: x / 127.5 - 1,
        note=note,
        fingerprint=weights_hash(model),
        device=device,
    )


def targets_of(table: Table) -> Targets:
    """What a classifier can learn to read: class numbers (N,) of each integer column, else `text`.

    `text` (N, W) says by 0 and 1 which of W words a caption has. Words in nearly all or hardly any captions are left
    out.
    """
    targets = label_columns(table)
    if "text" in table.columns and not targets:
        captions = [text if isinstance(text, str) else text[0] for text in table.columns["text"]]
        words = [set(caption.lower().split()) for caption in captions]
        counts = Counter(word for some in words for word in some)
        n = len(words)
        kept = sorted(word for word, count in counts.items() if max(5, n / 200) <= count <= n * 0.95)[:MOST_CLASSES]
        if kept:
            targets["text"] = torch.tensor([[float(word in some) for word in kept] for some in words])
    return targets


def label_columns(table: Table) -> Targets:
    """The columns of integers, as class numbers (N,) from 0."""
    found: Targets = {}
    for name, column in table.columns.items():
        if name == REPEATS or not isinstance(column, np.ndarray):
            continue
        values = np.asarray(column)
        if values.ndim == 1 and values.dtype.kind in "iu" and len(values):
            kinds, codes = np.unique(values, return_inverse=True)
            if 1 < len(kinds) <= MOST_CLASSES:
                found[name] = torch.from_numpy(codes.astype(np.int64))
    return found


def _head_size(target: Tensor) -> int:
    return target.shape[1] if target.ndim == 2 else int(target.max()) + 1


def train_classifier(
    model: Classifier,
    table: Table,
    targets: Targets,
    steps: int,
    batch_size: int = 64,
    seed: int = 1,
    device: torch.device | str = "cpu",
) -> None:
    """Trains the classifier on plain images without noise, so that its features notice what real images don't have.

    The model is trained on `device` and moved back to the CPU.
    """
    model.to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)):
                module.reset_parameters()
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(steps, 2))
        n = min(table.originals, MOST_IMAGES)
        for _ in range(steps):
            rows = torch.randint(n, (batch_size,)).sort().values
            images = as_bytes(torch.from_numpy(np.ascontiguousarray(table.images[rows.numpy()])))
            logits = model(prepared(send(images, device), SIDE) / 127.5 - 1)
            wanted = {name: send(target[rows], device) for name, target in targets.items()}
            loss = torch.stack([_loss(logits[name], target) for name, target in wanted.items()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.cpu()


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, target) * target.shape[1] / 4
    return F.cross_entropy(logits, target)
