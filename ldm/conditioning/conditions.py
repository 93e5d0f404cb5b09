"""The conditions of images, their unconditional counterpart, and the guidance scale of each condition."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ldm.common.annotations import check_guidance, replace_surrogates
from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.conditioning.conditioner import Conditioner
from ldm.conditioning.part import EncodeFn
from ldm.conditioning.text.truncation import sentences
from ldm.diffusion.guidance import Terms
from ldm.networks import Cond

# A single value of these may serve for all prompts.
ONE_FOR_ALL = ("map", "low_res", "noise_level", "embed_image", "frame")
log = logging.getLogger("ldm")
Scale = float | Mapping[str, float]


@dataclass(frozen=True)
class Conditions:
    """The conditions of `count` images.

    `batch` has their columns and `null` those of the unconditional or negative counterpart, both before
    `Conditioner.prepare`. `conditional` are the columns in which the two differ, and `guided` are those of them to
    which guidance applies only because they have negative values, such as negative sizes: their condition doesn't
    follow guidance otherwise.
    """

    conditioner: Conditioner
    batch: dict[str, Any]
    null: dict[str, Any]
    conditional: frozenset[str]
    count: int
    guided: frozenset[str] = field(default=frozenset(), kw_only=True)

    def take(self, rows: Tensor) -> "Conditions":
        """The conditions of some of the images, by their indices `rows`."""
        return replace(self, batch=take(self.batch, rows), null=take(self.null, rows), count=len(rows))

    def to_fill(self, image: Tensor, mask: Tensor) -> "Conditions":
        """The same conditions with an `image` (N, C, H, W) whose `mask` (N, 1, H, W) is 1 where it is to be filled in.

        It is for models that were trained for it.
        """
        columns = [part.column for part in self.conditioner.parts.values() if "mask" in part.inputs]
        batch = {key: value for key, value in self.batch.items() if key not in columns}
        return replace(self, batch=batch | {"image": image, "mask": mask}, conditional=self.conditional | set(columns))

    def terms(self, guidance: Scale, encode: EncodeFn, seeds: Sequence[int]) -> Terms:
        """The terms of a denoiser guided with the scale `guidance`, or with a scale for each condition.

        With one number s it is classifier-free guidance, D_0 + s (D_all - D_0), where D_0 keeps the conditions that
        don't follow guidance (an image to fill in, a low resolution). With a scale for each condition, conditions are
        added in the order of their scales, s_1 <= ... <= s_k, each relative to all before it, as InstructPix2Pix does
        for two (Brooks et al. 2023, eq. 3):

            D = D_0 + sum over i of s_i (D_{1..i} - D_{1..i-1}) = (1 - s_1) D_0 + sum of (s_i - s_{i+1}) D_{1..i}

        So conditions with equal scales count as one, scales of 1 mean no guidance, and a condition of scale 0 is left
        out. D_{1..k}, with all conditions together, is evaluated as it was trained. Each different scale costs an
        evaluation of the network, and D_0 another one unless the smallest scale is 1.
        """
        scales = self._scales(guidance)
        levels = sorted({scale for scale in scales.values() if scale != 0})
        known: list[tuple[set[str], float]] = []  # the columns of each further term, and its weight
        if levels and levels[0] != 1:
            known.append((set(), 1 - levels[0]))
        for level, after in itertools.pairwise(levels):
            known.append((_up_to(level, scales), level - after))
        every = _up_to(levels[-1], scales) if levels else set()
        batch, null = self._prepared(encode, seeds, min([*(columns for columns, _ in known), every], key=len))
        others = tuple((self._cond(batch, null, columns), weight) for columns, weight in known)
        return Terms(self._cond(batch, null, every), others)

    def _prepared(self, encode: EncodeFn, seeds: Sequence[int], fewest: set[str]) -> tuple[dict, dict]:
        """Both batches as the conditioner reads them. The null batch is prepared only if a term with at least the
        columns `fewest` needs null values, since these may have to be encoded."""
        position = {"position": send(torch.tensor([int(seed) % 2**62 for seed in seeds]), self.conditioner.device)}
        missing = {part.column for part in self.conditioner.parts.values()} - fewest - self.null.keys()
        null = self.conditioner.prepare(self.null | position, encode, 0) if missing else self.null
        return self.conditioner.prepare(self.batch | position, encode, 0), null

    def _scales(self, guidance: Scale) -> dict[str, float]:
        """The scale of each column that is conditional."""
        check_guidance(guidance)
        parts = self.conditioner.parts.values()
        guided = {part.column: part.follows_guidance or part.column in self.guided for part in parts}
        if not isinstance(guidance, Mapping):
            scales = {column: float(guidance) if is_guided else 1.0 for column, is_guided in guided.items()}
        else:
            scales = dict.fromkeys(guided, 1.0)
            for name, scale in guidance.items():
                scales |= dict.fromkeys(self.conditioner.columns(name), float(scale))
        return {column: scale for column, scale in scales.items() if column in self.conditional}

    def _cond(self, batch: Mapping[str, Any], null: Mapping[str, Any], conditional: set[str]) -> Cond:
        """The `Cond` with the given values of the columns `conditional`, and the null values of the others."""
        columns = {part.column for part in self.conditioner.parts.values()}
        return self.conditioner({c: batch[c] if c in conditional else null[c] for c in columns})


def _up_to(level: float, scales: Mapping[str, float]) -> set[str]:
    """The columns whose scale is at most `level` and not 0."""
    return {column for column, scale in scales.items() if scale != 0 and scale <= level}


def conditions_of(
    conditioner: Conditioner,
    given: Mapping[str, list],
    n: int = 1,
    negative: str | Sequence[str] | Mapping[str, list] | None = None,
    size: tuple[int, int] | None = None,
) -> Conditions:
    """The conditions of `n` images for each entry of the lists in `given`, by name. `size` is (height, width).

    `negative` replaces null values: captions, or lists by column with one entry for all images or one for each. Raises
    UserError for a condition that the model doesn't have, and for lists of different lengths. Words that the text
    encoder doesn't read are listed in a warning.
    """
    conditioner.check(given)
    most = max(map(len, given.values()), default=1)
    _check_prompts(conditioner, given.get("text", ()))
    given = {k: list(v) * most if k in ONE_FOR_ALL and len(v) == 1 else v for k, v in given.items()}
    lengths = {len(values) for values in given.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{len(values)} of {key}" for key, values in given.items())
        raise UserError(f"the conditions differ in number: {counts}; give as many of each.")
    batch = conditioner.parse(given, size)
    count = n * (lengths.pop() if lengths else 1)
    if count < 1:
        raise UserError("nothing to generate: give n of at least 1 and at least one prompt or label.")
    batch = take(batch, torch.arange(count // n).repeat_interleave(n))
    null = conditioner.null_batch(count, size)
    conditional = {part.column for part in conditioner.parts.values() if any(key in given for key in part.inputs)}
    if not isinstance(negative, Mapping):
        texts = [negative] if isinstance(negative, str) else negative
        negative = {} if texts is None else {"text": list(texts)}
    for column, values in negative.items():
        null[column] = _negatives(conditioner, column, values, count=count, size=size)
    prompts = [*given.get("text", ()), *(null["text"] if "text" in negative else ())]
    for sentence in sentences(conditioner, map(replace_surrogates, _texts(prompts))):
        log.warning(sentence)
    columns = frozenset(conditional | negative.keys())
    return Conditions(conditioner, batch, null, conditional=columns, count=count, guided=frozenset(negative))


def take(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The given rows of every column."""
    return {
        k: v[send(rows, v.device)] if isinstance(v, Tensor) else [v[i] for i in rows.tolist()] for k, v in batch.items()
    }


def _negatives(conditioner: Conditioner, column: str, values: list, *, count: int, size: tuple[int, int] | None) -> Any:
    if len(values) not in (1, count):
        what = "prompts" if column == "text" else f"values of {column}"
        raise UserError(f"{len(values)} negative {what} for {count} images; give one, or one per image.")
    return conditioner.parse({column: values * (count // len(values))}, size)[column]


def _check_prompts(conditioner: Conditioner, prompts: Iterable[Any]) -> None:
    """Refuses separate prompts for each text encoder if the model has only one."""
    several = any(part.prompts > 1 for part in conditioner.parts.values())
    if not several and any(isinstance(prompt, tuple) for prompt in prompts):
        raise UserError(
            "a tuple of prompts is for models with several text encoders; this one reads one prompt per image."
        )


def _texts(prompts: Iterable[Any]) -> Iterator[str]:
    """All prompts in one list, including the second ones where each text encoder has its own."""
    for prompt in prompts:
        yield from map(str, prompt) if isinstance(prompt, tuple) else [str(prompt)]
