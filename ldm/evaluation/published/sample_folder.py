"""A folder of generated images, written once: sample i is a function of the model, the settings and i, so a call that
was cut off is continued, and one that asks for more adds the rest."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ldm.common.errors import UserError
from ldm.common.files import atomic_write, make_folder
from ldm.data.storage.table import Table, hash_of
from ldm.evaluation.measures.features import weights_hash
from ldm.evaluation.measures.image_set import to_bytes
from ldm.evaluation.published.embedders import SHOW_PROGRESS
from ldm.evaluation.published.images import Images, rgb
from ldm.images import save_png
from ldm.model.computing import computed_in
from ldm.model.latent_diffusion import LatentDiffusion

IN_A_FOLDER = 1000
SEEDS = 10**6  # sample i of seed s is generated from seed s * SEEDS + i: sets of two seeds share no sample


@dataclass
class SampleFolder:
    """The samples of `model` for rows of `table`, as often as needed in turn; `options` are those of sampling."""

    root: Path
    model: LatentDiffusion
    table: Table
    rows: np.ndarray
    seed: int
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.settings = {
            "weights": weights_hash(self.model),
            "conditions": hash_of(self.table.key, self.rows.tolist()) if self.model.conditioner.needs else "none",
            "seed": self.seed,
            **self.model.sampling,
            **self.options,
            **computed_in(self.model),
        }
        self.folder = self.root / f"samples-{hash_of(json.dumps(self.settings, sort_keys=True, default=str))[:10]}"

    def path(self, i: int) -> Path:
        """The file of sample i."""
        return self.folder / f"{i // IN_A_FOLDER:03d}" / f"{i:06d}.png"

    def fill(self, n: int, batch_size: int) -> Images:
        """Generates those of the first `n` samples that aren't there, and gives all `n`."""
        missing = [i for i in range(n) if not self.path(i).is_file()]
        if missing:
            self._check_space(len(missing))
            make_folder(self.folder)
            atomic_write(self.folder / "samples.json", json.dumps(self.settings, indent=1, default=str))
            print(f"{n - len(missing)} of {n} samples are in {self.folder}; generating the others", flush=True)
        bar = tqdm(desc="generating", total=len(missing), disable=len(missing) < SHOW_PROGRESS, mininterval=1)
        with bar:
            for start in range(0, len(missing), batch_size):
                some = missing[start : start + batch_size]
                self._generate(some)
                bar.update(len(some))
        texts = self._describe(n, batch_size)
        images = Images.of_files([self.path(i) for i in range(n)], f"{n} samples", texts)
        return replace(images, about={**self.settings, "folder": str(self.folder)})

    def _generate(self, numbers: list[int]) -> None:
        given = self._conditions(numbers)
        seeds = [self.seed * SEEDS + i for i in numbers]
        n = 1 if given else len(numbers)
        images = self.model.generate_for(given, n, seed=seeds, batch_size=len(numbers), **self.options)
        for i, image in zip(numbers, rgb(to_bytes(images).cpu()), strict=True):
            save_png(_pil(image), self.path(i))

    def _conditions(self, numbers: list[int]) -> dict[str, list]:
        """The conditions of samples as a user would give them; choices in them depend on the sample's number only."""
        rows = self.rows[np.array(numbers) % len(self.rows)]
        batch = self.table.batch(rows, self.model.conditioner.needs) | {"position": torch.tensor(numbers)}
        return self.model.conditioner.examples(batch, self.seed) if self.model.conditioner.needs else {}

    def _describe(self, n: int, batch_size: int) -> list[str] | None:
        """Writes metadata.jsonl: captions and labels by file. Returns the captions."""
        lines: list[dict[str, Any]] = []
        texts: list[str] = []
        for start in range(0, n, batch_size):
            numbers = list(range(start, min(start + batch_size, n)))
            given = self._conditions(numbers)
            for k, i in enumerate(numbers):
                row = {key: _first(values[k]) for key, values in given.items()}
                plain = {key: value for key, value in row.items() if isinstance(value, (str, int))}
                lines.append({"file_name": self.path(i).relative_to(self.folder).as_posix(), **plain})
                texts += [str(plain["text"])] if "text" in plain else []
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic_write(self.folder / "metadata.jsonl", content.encode("utf-8", "surrogatepass"))
        return texts if texts else None

    def _check_space(self, count: int) -> None:
        """Raises UserError if the images would hardly fit. PNG takes about half of the pixels' bytes in photographs."""
        preprocess = self.model.preprocess
        most = count * 3 * preprocess.height * preprocess.width
        place = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        if (free := shutil.disk_usage(place).free) < most / 2:
            raise UserError(
                f"{count} samples may take up to {most / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free: make "
                "room, or lower n=."
            )


def _pil(image: torch.Tensor) -> Any:
    """(3, H, W) uint8 as an image of Pillow."""
    from PIL import Image

    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _first(value: Any) -> Any:
    """The prompt itself, or the first of a pair for two encoders."""
    value = value[0] if isinstance(value, tuple) else value
    return value.item() if isinstance(value, (torch.Tensor, np.generic)) and np.ndim(value) == 0 else value
