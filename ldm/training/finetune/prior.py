"""Prior preservation (Ruiz et al. 2023, DreamBooth): the training data include images that the base itself generates.

Without them, a model that is trained on one object for long starts to generate it for every prompt.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ldm.adapters.adapter import hash_of
from ldm.common.devices import temporarily_on
from ldm.common.errors import UserError
from ldm.data.storage import table as data
from ldm.data.storage.cached import cached_parts
from ldm.data.storage.joining import join_tables
from ldm.data.storage.table import Column, Table
from ldm.model.latent_diffusion import LatentDiffusion

Tables = tuple[Table, Table]
Device = torch.device | str | None


def with_prior(
    tables: Tables,
    model: LatentDiffusion,
    *,
    path: str | None,
    cache: Path,
    seed: int,
    device: Device = None,
    white: Sequence[str] = (),
) -> Tables:
    """Training data with one more image for each line of the text file `path`; validation data stay the same.

    The base generates the images on `device`, unless they are in the cache. In the columns `white`, which are masks of
    the loss, these images are white: their loss counts everywhere.
    """
    if path is None:
        return tables
    prompts = _lines(Path(path).expanduser())
    if "text" not in model.conditioner.inputs:
        raise UserError("prior_path holds prompts, which this base doesn't take: it was trained without captions.")
    train, val = tables
    key = data.hash_of("prior-1", train.key, hash_of(model), prompts, seed, *white)

    def make(folder: Path) -> dict[str, Table]:
        """The training table joined with images that the base generates from `prompts`."""
        print(f"the base generates {len(prompts)} images of {path}", flush=True)
        with temporarily_on(model, device):
            images = model(prompts, seed=seed, output="np").transpose(0, 3, 1, 2)  # (N, C, H, W)
        names = [name for name in ("text", data.REPEATS, *white) if name in train.columns]
        new: dict[str, Column] = {"text": prompts, data.REPEATS: np.ones(len(prompts), np.int64)}
        new |= {name: np.full((len(prompts), *images.shape[2:]), 255, np.uint8) for name in white}
        own = replace(train, columns={name: train.columns[name] for name in names})
        generated = replace(
            own,
            images=images.astype(train.images.dtype),
            columns={name: new[name] for name in names},
            names=prompts,
            frames=None,
        )
        if own.frames is not None:  # the base generates at its own size
            generated = data.made_so(generated)
        rows = [np.arange(len(train)), np.arange(len(prompts))]
        both = join_tables([own, generated], rows, folder / "train", key)
        return {"train": replace(both, classes=train.classes, map_classes=train.map_classes)}

    return cached_parts(cache / "prior", key, make)["train"], val


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prior_path={path} can't be read as text ({error}).") from None
    if not any(lines):
        raise UserError(f"prior_path={path} holds no prompt; write one per line.")
    return [line for line in lines if line]
