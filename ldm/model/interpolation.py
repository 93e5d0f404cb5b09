"""Interpolation between two images or two prompts, and variations of an image."""

from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ldm.common.annotations import check_arguments
from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.conditioning import Conditions, conditions_of
from ldm.diffusion import Terms, slerp
from ldm.images import IMAGES
from ldm.model.generate import generate
from ldm.model.initial_image import InitialImage
from ldm.model.inputs import negatives_of, read_images, size_of
from ldm.model.latent_space import finite
from ldm.model.request import Request, request_of, sampling_of
from ldm.networks import Cond


@check_arguments
@torch.no_grad()
def interpolate(
    model: Any,
    a: Any,
    b: Any,
    n: int = 8,
    *,
    prompt: str | None = None,
    strength: float = 0.0,
    seed: int = 0,
    negative: str | None = None,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    output: str = "pil",
    **options: Any,
) -> Any:
    """`n` images from `a` to `b`, both included: two prompts, two class labels, or two images.

    Between prompts, the encoded texts are interpolated spherically, and all images start from the noise of `seed`: the
    first and the last are those that `model(a, seed=seed)` and `model(b, seed=seed)` generate. Between images (PIL
    images, files, arrays), the latents are interpolated spherically and decoded. With a `strength` above 0 noise is
    added to them, the same for all, and they are sampled again from there (Ho et al. 2020, section 4.3), under `prompt`
    if it is given; this removes the double exposure in the middle. `options` are those of sampling: steps, guidance,
    sampler, ...
    """
    if n < 2:
        raise UserError(f"n={n}: an interpolation includes both ends, so give at least 2.")
    ends = [_given(end) for end in (a, b)]
    kinds = [None if one is None else set(one) for one in ends]
    if kinds[0] != kinds[1]:
        raise UserError("the ends of an interpolation differ in kind: give two prompts, two labels or two images.")
    t = torch.linspace(0, 1, n, device=model.latent_mean.device)
    if ends[0] is None:
        latents = _latents_between(model, a, b, t)
        sampled = {"prompt": prompt, "strength": strength, "seed": seed, "batch_size": batch_size, **options}
        return model.as_output(_from_latents(model, latents, **sampled), output)
    if strength or prompt is not None:
        raise UserError("strength and prompt are for interpolations between images.")
    pixels = size_of(model, {}, None, size)
    unlike = negatives_of(model, negative, pixels)
    first, last = (
        conditions_of(model.conditioner, one, n, negative=unlike, size=pixels) for one in ends if one is not None
    )
    between = Between(**vars(first), other=last, t=t)
    request = Request(between, (seed,) * n, pixels, sampling_of(model, options))
    return model.as_output(generate(model, request, batch_size), output)


def variations(
    model: Any, image: Any, n: int = 4, strength: float = 0.6, prompt: str | None = None, **options: Any
) -> Any:
    """`n` images similar to `image`: image to image, each with its own seed. See `generate`."""
    return model.generate(prompt, image=image, n=n, strength=strength, **options)


@dataclass(frozen=True)
class Between(Conditions):
    """Conditions interpolated towards those of `other`: for image i at t[i], from 0 to 1."""

    other: Conditions
    t: Tensor

    def take(self, rows: Tensor) -> "Between":
        """The conditions of some of the images, by their indices `rows`."""
        taken = super().take(rows)
        return replace(taken, other=self.other.take(rows), t=self.t[send(rows, self.t.device)])  # type: ignore[return-value, call-arg]

    def terms(self, *arguments: Any) -> Terms:
        """The terms of guidance, interpolated one by one: see `Conditions.terms`."""
        ours, theirs = super().terms(*arguments), self.other.terms(*arguments)
        pairs = zip(ours.others, theirs.others, strict=True)
        others = tuple((between(a, b, self.t), weight) for (a, weight), (b, _) in pairs)
        return Terms(between(ours.full, theirs.full, self.t), others)


def between(a: Cond, b: Cond, t: Tensor) -> Cond:
    """Conditions between those of two batches, at t (B,). Vectors and tokens are interpolated spherically.

    The shorter of two token sequences is extended by repeating its last token, the end token; where t is 0 or 1 the
    repeated ones are masked.
    """
    if a.control or b.control:
        raise UserError("control images can't be interpolated.")
    tokens = mask = None
    if a.tokens is not None and b.tokens is not None:
        length = max(a.tokens.shape[1], b.tokens.shape[1])
        (tokens_a, mask_a), (tokens_b, mask_b) = _lengthened(a, length), _lengthened(b, length)
        tokens = slerp(tokens_a, tokens_b, t[:, None, None])  # (B, L, D)
        at = t[:, None]
        mask = torch.where(at == 0, mask_a, torch.where(at == 1, mask_b, torch.ones_like(mask_a)))
        if a.mask is None and b.mask is None:
            mask = None
    return Cond(
        vector=None if a.vector is None or b.vector is None else slerp(a.vector, b.vector, t[:, None]),
        tokens=tokens,
        mask=mask,
        concat=None if a.concat is None or b.concat is None else torch.lerp(a.concat, b.concat, t[:, None, None, None]),
        base=None if a.base is None or b.base is None else torch.lerp(a.base, b.base, t[:, None, None, None]),
    )


def _lengthened(cond: Cond, length: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, length, D), extended by repeating each row's last one, and the mask (B, length) of the original
    ones."""
    assert cond.tokens is not None
    places = torch.arange(length, device=cond.tokens.device)
    mask = cond.tokens.new_ones(cond.tokens.shape[:2], dtype=torch.bool) if cond.mask is None else cond.mask
    mask = pad(mask, (0, length - mask.shape[1]))  # (B, length)
    last = (mask * places).amax(1, keepdim=True)  # (B, 1)
    rows = torch.minimum(places, last)[..., None].expand(-1, -1, cond.tokens.shape[2])
    return cond.tokens.gather(1, rows), mask


def _latents_between(model: Any, a: Any, b: Any, t: Tensor) -> Tensor:
    """Latents (n, C, h, w) from the image `a` to the image `b`, interpolated spherically."""
    ends = [model.encode(send(read_images(end, model.preprocess), t.device)) for end in (a, b)]
    if any(len(end) != 1 for end in ends):
        raise UserError("an interpolation has one image at each end: give one image, not several.")
    return slerp(ends[0], ends[1], t[:, None, None, None], (1, 2, 3))


def _from_latents(
    model: Any, latents: Tensor, *, prompt: str | None, strength: float, seed: int, batch_size: int, **options: Any
) -> Tensor:
    """Images (n, C, H, W) of `latents`: decoded, and with a `strength` above 0 used as initial images."""
    images = torch.cat([model.decode(some) for some in latents.split(batch_size)])
    if not strength:
        if prompt is not None:
            raise UserError(
                "a prompt has no effect at strength 0, which only decodes: give a larger strength, such as 0.5."
            )
        return finite(images)
    given: dict[str, list] = {} if prompt is None else {"text": [prompt]}
    initial, seeds = InitialImage(images, None, strength), [seed] * len(latents)
    request = request_of(model, given, options, n=len(latents), seed=seeds, initial=initial)
    return generate(model, request, batch_size)


def _given(end: Any) -> dict[str, list] | None:
    """A prompt or label by column; None for an image."""
    if isinstance(end, str) and Path(end).suffix.lower() not in IMAGES:
        return {"text": [end]}
    if isinstance(end, str) and not Path(end).is_file():
        raise UserError(f"there is no file {end} to interpolate from or to.")
    return {"label": [end]} if isinstance(end, Integral) else None
