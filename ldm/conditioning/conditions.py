"""The conditions of images, their unconditional counterpart, and the guidance scale of each condition."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

    `batch` has their columns before `Conditioner.prepare`, and `null` those of the unconditional or negative
    counterpart after it. `conditional` are the columns in which the two differ.
    """

    conditioner: Conditioner
    batch: dict[str, Any]
    null: dict[str, Any]
    conditional: frozenset[str]
    count: int

    def take(self, rows: Tensor) -> "Conditions":
        """The conditions of some of the images, by their indices `rows`."""
        return replace(self, batch=take(self.batch, rows), null=take(self.null, rows), count=len(rows))

    def to_fill(self, image: Tensor, mask: Tensor) -> "Conditions":
        """The same with an `image` (N, C, H, W) whose `mask` (N, 1, H, W) is 1 where it is to be filled in.

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
        position = send(torch.tensor([int(seed) % 2**62 for seed in seeds]), self.conditioner.device)
        batch = self.conditioner.prepare(self.batch | {"position": position}, encode, 0)
        scales = self._scales(guidance)
        levels = sorted({scale for scale in scales.values() if scale != 0})
        if not levels:
            return Terms(self._cond(batch, set()))
        others = [(self._cond(batch, set()), 1 - levels[0])] if levels[0] != 1 else []
        for level, after in itertools.pairwise(levels):
            others.append((self._cond(batch, _up_to(level, scales)), level - after))
        return Terms(self._cond(batch, _up_to(levels[-1], scales)), tuple(others))

    def _scales(self, guidance: Scale) -> dict[str, float]:
        """The scale of each column that is conditional."""
        check_guidance(guidance)
        guided = {part.column: part.follows_guidance for part in self.conditioner.parts.values()}
        if not isinstance(guidance, Mapping):
            scales = {column: float(guidance) if is_guided else 1.0 for column, is_guided in guided.items()}
        else:
            scales = dict.fromkeys(guided, 1.0)
            for name, scale in guidance.items():
                scales |= dict.fromkeys(self.conditioner.columns(name), float(scale))
        return {column: scale for column, scale in scales.items() if column in self.conditional}

    def _cond(self, batch: Mapping[str, Any], conditional: set[str]) -> Cond:
        """The condition with the columns `conditional`, and the null values of the others."""
        columns = {part.column for part in self.conditioner.parts.values()}
        return self.conditioner({c: batch[c] if c in conditional else self.null[c] for c in columns})


def _up_to(level: float, scales: Mapping[str, float]) -> set[str]:
    """The columns whose scale is at most `level`, without those of scale 0."""
    return {column for column, scale in scales.items() if scale != 0 and scale <= level}


def conditions_of(
    conditioner: Conditioner,
    given: Mapping[str, list],
    n: int = 1,
    negative: str | Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Conditions:
    """The conditions of `n` images for each entry of the lists in `given`, by name. `size` is (height, width).

    `negative` replaces the null caption. Raises UserError for a condition that the model doesn't have, and for lists of
    different lengths. Words that the text encoder doesn't read are listed in a warning.
    """
    conditioner.check(given)
    most = max(map(len, given.values()), default=1)
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
    if negative is not None:
        null |= {"text": _negatives(conditioner, negative, count, size)}
        conditional.add("text")
    prompts = [*given.get("text", ()), *(null["text"] if negative is not None else ())]
    for sentence in sentences(conditioner, (replace_surrogates(str(prompt)) for prompt in prompts)):
        log.warning(sentence)
    return Conditions(conditioner, batch, null, conditional=frozenset(conditional), count=count)


def take(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The given rows of every column."""
    return {
        k: v[send(rows, v.device)] if isinstance(v, Tensor) else [v[i] for i in rows.tolist()] for k, v in batch.items()
    }


def _negatives(
    conditioner: Conditioner, negative: str | Sequence[str], count: int, size: tuple[int, int] | None
) -> list[str]:
    texts = [negative] if isinstance(negative, str) else list(negative)
    if len(texts) not in (1, count):
        raise UserError(f"{len(texts)} negative prompts for {count} images: give one, or one for each image.")
    return conditioner.parse({"text": texts * (count // len(texts))}, size)["text"]
