"""What a kind of fine-tuning defines: what trains, what it reads, and what is saved."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel
from ldm.data.datamodule import Read
from ldm.data.storage.lazy import Lazy
from ldm.data.storage.table import FRAME, Table
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Cond

Tables = tuple[Table, Table]


class Finetune:
    """A kind of fine-tuning: subclass, `@register`, and name the class in a conf/finetune/NAME.yaml.

    `ldm.training.finetune.run` loads the base, makes latents with the base's own first stage, preprocessing and
    whitening, and calls in this order:

    - `tables(tables)`: the data as they are trained on, with a trigger word, say. The tables' keys stay the same, since
      the images do;
    - `check(model, tables)`: raises UserError before any work, if base and data don't fit together;
    - `prepare(model)`: changes the loaded base in place so that it trains: puts new modules in, and sets
      `requires_grad` on exactly what trains (all weights are frozen before). It must lie under `model.denoiser` or
      `model.conditioner` (a ControlNet wraps `model.denoiser.network`). At step 0 the model's outputs must be the
      base's. Torch's generator has been seeded. Frozen parameters are shared with the average model, not copied, and
      kept out of checkpoints;
    - `condition(cond, batch, seed, training)` at each step: adds what the kind reads in addition to the base's own
      conditions. `needs` names the columns of `batch` that it reads (`image` gives the pixels). Random numbers come
      from `ldm.common.randomness` with (seed, batch["position"]);
    - `reader(read, preprocess)`: a function that adds to a batch on the host; it calls `read`, the conditioner's own;
    - `task`, for another loss than the base's: the LightningModule, made of (model, kind, base, options);
    - `sample_function(val, n, seed)`: a function of the model that gives the images shown while training;
    - `saved(model, base)`: what the model folder holds, given the assembled average model: an `Adapter` with tensors of
      `model` itself, not copies, or the model. `base` is what an adapter records (`ldm.adapters.base_of`);
    - `weight_names(model)`: where an adapter is saved, for each of its weights, as named in the adapter, the name in
      `model`'s state: a checkpoint holds them once and is loaded by these names.
    """

    suffix = "finetune"  # of the run's name, BASE-suffix
    needs: tuple[str, ...] = ()
    changes_text: bool = False  # whether a frozen text encoder's states change while it trains
    task: Any = None  # a subclass of FinetuneTask; None: FinetuneTask itself

    def check(self, model: LatentDiffusion, tables: Tables) -> None:
        """Raises UserError for data that lack a condition of the base, or have a class that it doesn't know."""
        columns = tables[0].columns
        for key in model.conditioner.needs:
            if key == FRAME:
                tables[0].check_frames("the base")
            if not tables[0].gives(key):
                raise UserError(
                    f"the base is conditioned on '{key}', which the data don't have (they have "
                    f"{', '.join(columns) or 'images alone'}); give that column, or for captions a trigger=WORD."
                )
        for part in model.conditioner.parts.values():
            if isinstance(part, ClassLabel) and (most := int(np.max(columns["label"]))) >= part.classes:
                raise UserError(f"the base knows {part.classes} classes, and the data goes up to class {most}.")
        for key in self.needs:
            if key != "image" and key not in columns:
                raise UserError(f"this fine-tuning reads '{key}', which the data don't have ({', '.join(columns)}).")

    def tables(self, tables: Tables) -> Tables:
        """The data as they are trained on; see above."""
        return tables

    def prepare(self, model: LatentDiffusion) -> None:
        """Changes the loaded base in place so that it trains; see above."""
        raise NotImplementedError

    def condition(self, cond: Cond, batch: Mapping[str, Any], seed: int, training: bool) -> Cond:
        """`cond` with what this kind adds to it; see above."""
        return cond

    def reader(self, read: Read, preprocess: Preprocess) -> Read:
        """A function that adds to a batch on the host; see above."""
        return read

    def sample_function(self, val: Table, n: int, seed: int) -> Callable[[LatentDiffusion], Tensor]:
        """A function of a model that generates `n` images of the first validation conditions, from the same noise."""

        def sample(model: LatentDiffusion) -> Tensor:
            """Images of the first validation conditions, (N, C, H, W) in [-1, 1] on the CPU."""
            batch = val.batch(np.arange(min(n, len(val))), model.conditioner.needs)
            conditions = model.conditioner.examples(batch, seed)
            steps = min(model.sampling["steps"], 50)
            return model.generate_for(conditions, 1 if conditions else n, seed=seed, steps=steps).cpu()

        return sample

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """What the model folder holds; see above."""
        raise NotImplementedError

    def weight_names(self, model: LatentDiffusion) -> dict[str, str]:
        """For each weight of `saved`, by name, its name in `model`'s state; see above."""
        return {name: name for name in model.state_dict()}


def with_word(tables: Tables, word: str | None) -> Tables:
    """The tables with `word` in every caption: put in front of captions without it, and alone if there are no
    captions."""
    return (_with_word(tables[0], word), _with_word(tables[1], word)) if word else tables


def _with_word(table: Table, word: str) -> Table:
    return replace(table, columns={**table.columns, "text": Worded(table.columns.get("text"), word, len(table))})


class Worded(Lazy):
    """`n` captions, or lists of captions, each with `word`; `word` alone if there are no captions."""

    def __init__(self, captions: Sequence[Any] | np.ndarray | None, word: str, n: int):
        self.captions, self.word, self.n = captions, word, n

    def __len__(self) -> int:
        return self.n

    def row(self, i: int) -> Any:
        """The captions of row `i`, each with the word."""
        captions = "" if self.captions is None else self.captions[i]
        return self._worded(captions) if isinstance(captions, str) else [self._worded(one) for one in captions]

    def _worded(self, caption: str) -> str:
        has_word = re.search(rf"(?<!\w){re.escape(self.word)}(?!\w)", caption)
        return caption if has_word else f"{self.word} {caption}".strip()


def drop_captions(model: LatentDiffusion, share: float | None) -> None:
    """Sets the probability with which training drops a caption; None keeps the base's."""
    if share is None:
        return
    if not 0 <= share <= 1:
        raise UserError(f"caption_dropout={share} is a share: 0 to 1.")
    for part in model.conditioner.parts.values():
        if part.column == "text":
            part.drop_prob = share
