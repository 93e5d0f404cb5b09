"""The images that a user gives to a model, read and checked: initial image, mask, and images as conditions."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.annotations import check_argument
from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import build, spec_of
from ldm.conditioning import ImageSize, LowRes
from ldm.conditioning.sizes import framed
from ldm.images import CONVERTED, Notes, Preprocess, check_alike, open_map, open_mask
from ldm.model.initial_image import InitialImage, margins
from ldm.networks.computing.finite import is_finite
from ldm.networks.first_stages.base import check_size

_log = logging.getLogger("ldm")
FRAME = ImageSize.column
NEGATIVES = ("prompt", "prompt_2", "original_size", "crop", "target_size")  # what may lead guidance, by name
Size = int | tuple[int, int] | None  # of an image: its side, or (height, width); None: the size of the training data


def fills(model: Any) -> bool:
    """Whether the model was trained to fill in a masked image."""
    return "mask" in model.conditioner.inputs


def scale_of(model: Any) -> int:
    """The factor by which the model enlarges the sides of an image; 1 if it isn't a model for super-resolution."""
    return next((part.scale for part in model.conditioner.parts.values() if isinstance(part, LowRes)), 1)


def check_images(
    model: Any,
    *,
    image: Any = None,
    mask: Any = None,
    pad: int | Sequence[int] | None = None,
    map: Any = None,
    control: Any = None,
    control_from: Any = None,
) -> None:
    """Raises UserError unless all images that have to match each other have the same aspect ratio."""
    fits = model.preprocess.height, model.preprocess.width
    check_alike({"image": image, "mask": mask}, fits)
    over = {"map": map, **_by_name("control image", control), **_by_name("image of the ControlNet", control_from)}
    if pad is not None and image is not None:  # maps and control images of a padded image include its margin
        left, top, right, bottom = margins(pad)
        height, width = image.shape[-2:] if isinstance(image, Tensor) else fits
        padded = torch.empty(1, height + top + bottom, width + left + right, device="meta")
        check_alike({"padded image": padded, **over}, fits)
    else:
        check_alike({"image": image, **over}, fits)


def read(
    model: Any,
    *,
    image: Any = None,
    strength: float | None = None,
    mask: Any = None,
    feather: int = 0,
    pad: int | Sequence[int] | None = None,
    map: Any = None,
    embed_image: Any = None,
    noise_level: float | None = None,
    size: Size = None,
    original_size: Size = None,
    crop: Size = None,
    target_size: Size = None,
) -> tuple[InitialImage | None, dict[str, list]]:
    """The images given to `generate`, read: the initial image, and conditions as lists by column.

    `image` is the initial image, or the low resolution for a model that was trained to enlarge it. It is resized to
    `size`, by default to the size of the training data.
    """
    given: dict[str, list] = {}
    if image is not None and scale_of(model) > 1:
        if strength is not None or mask is not None or pad is not None:
            raise UserError("this model enlarges image=; leave out strength, mask and pad.")
        given["low_res"] = list(read_images(image, _low_resolution(model, size)))
        image = None
    initial = initial_image(model, image, strength=strength, mask=mask, feather=feather, pad=pad, size=size)
    if noise_level is not None:
        given["noise_level"] = [noise_level]
    if embed_image is not None:
        given["embed_image"] = list(read_images(embed_image, model.preprocess))
    if map is not None:
        given["map"] = read_maps(map, resized(model.preprocess, *size_of(model, given, initial, size)))
    sizes = {"original_size": original_size, "crop": crop, "target_size": target_size}
    return initial, given | frame_of(model, sizes, size_of(model, given, initial, size))


def frame_of(model: Any, sizes: Mapping[str, Any], pixels: tuple[int, int], prefix: str = "") -> dict[str, list]:
    """The conditions, by column, that `sizes` give for an image of `pixels` (height, width); empty if all are None.
    `prefix` stands before their names in messages."""
    if not (given := {name: value for name, value in sizes.items() if value is not None}):
        return {}
    if FRAME not in model.conditioner.inputs:
        names = ", ".join(prefix + name for name in given)
        raise UserError(f"{names}: this model was trained without the images' own sizes; leave it out.")
    return {FRAME: [framed(pixels, **given, prefix=prefix)]}


def prompts_of(model: Any, prompt: Any, prompt_2: Any = None, prefix: str = "") -> list:
    """The prompts as a list; with `prompt_2`, a list of pairs, the second for the second of several text encoders.

    Raises UserError for a model that reads one prompt, and unless there is one `prompt_2` for all or one for each.
    """
    first = _listed(prompt)
    if prompt_2 is None:
        return first
    second = _listed(prompt_2)
    name = f"{prefix}prompt_2"
    reads = max((part.prompts for part in model.conditioner.parts.values() if part.column == "text"), default=0)
    if reads != 2:
        raise UserError(
            f"{name}: this model has {'one' if reads == 1 else 'no'} text encoder: leave it out. Models of Stable "
            "Diffusion XL's kind have two."
            if reads < 2
            else f"{name}: this model has {reads} text encoders: give prompt= a tuple of as many prompts."
        )
    if not first:
        raise UserError(f"{name} is for the second text encoder: also give {prefix}prompt for the first one.")
    if len(second) not in (1, len(first)):
        raise UserError(
            f"{len(first)} of {prefix}prompt and {len(second)} of {name}: give one {name} for all, or equally many."
        )
    return list(zip(first, second * (len(first) // len(second)), strict=True))


def negatives_of(model: Any, negative: Any, pixels: tuple[int, int]) -> dict[str, list]:
    """The values that guidance leads away from, by column: a prompt or several, or a mapping with `prompt`,
    `prompt_2`, `original_size`, `crop` and `target_size`. `pixels` is the size (height, width) of what is generated."""
    if not isinstance(negative, Mapping):
        return {} if negative is None else {"text": _listed(negative)}
    if unknown := [key for key in negative if key not in NEGATIVES]:
        near = did_you_mean(str(unknown[0]), NEGATIVES)
        raise UserError(f"negative has no '{unknown[0]}'; it takes {', '.join(NEGATIVES)}.{near}")
    given = {key: value for key, value in negative.items() if value is not None}
    for key in NEGATIVES[:2]:
        check_argument(given.get(key), str | Sequence[str] | None, f"negative {key}")
    texts = prompts_of(model, given.get("prompt"), given.get("prompt_2"), prefix="negative ")
    sizes = {key: given[key] for key in NEGATIVES[2:] if key in given}
    return ({"text": texts} if texts else {}) | frame_of(model, sizes, pixels, prefix="negative ")


def _listed(prompts: Any) -> list:
    return [] if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)


def initial_image(
    model: Any,
    image: Any,
    strength: float | None = None,
    mask: Any = None,
    feather: int = 0,
    pad: int | Sequence[int] | None = None,
    size: Size = None,
) -> InitialImage | None:
    """The initial image, read at `size` and checked; None if `image` is None."""
    if image is None:
        if strength is not None or mask is not None or pad is not None:
            raise UserError("strength, mask and pad need an image to start from.")
        return None
    device, wanted = model.latent_mean.device, preprocess_to(model, size)
    images = send(read_images(image, wanted), device)
    if size is not None and images.shape[2:] != (wanted.height, wanted.width):
        raise UserError(f"the image is a tensor of {tuple(images.shape[2:])}, but size is {size}: leave size out.")
    masks = None if mask is None else send(read_masks(mask, wanted), device)
    if strength is None:
        strength = 0.8 if mask is None and pad is None else 1.0
    return InitialImage(images, masks, strength, feather).padded(pad)


def preprocess_to(model: Any, size: Size) -> Preprocess:
    """The model's preprocessing for images of `size`, by default the size of the training data."""
    if size is None:
        return model.preprocess
    height, width = (size, size) if isinstance(size, int) else size
    check_size(height, width, model.first_stage.factor)
    return resized(model.preprocess, height, width)


def size_of(model: Any, given: Mapping[str, list], initial: InitialImage | None, size: Size) -> tuple[int, int]:
    """Height and width in pixels: those of a given image, else `size`, else the size of the training data."""
    if initial is not None:
        height, width = initial.image.shape[2], initial.image.shape[3]
    elif given.get("low_res"):
        height, width = (scale_of(model) * side for side in given["low_res"][0].shape[1:])
    elif isinstance(size, int):
        height, width = size, size
    else:
        height, width = size or (model.preprocess.height, model.preprocess.width)
    check_size(height, width, model.first_stage.factor)
    return height, width


def _low_resolution(model: Any, size: Size) -> Preprocess:
    """The preprocessing of a low resolution that is enlarged to `size`."""
    wanted, scale = preprocess_to(model, size), scale_of(model)
    return resized(model.preprocess, wanted.height // scale, wanted.width // scale)


def read_images(given: Any, preprocess: Preprocess) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], from PIL images, files, arrays, or a tensor (B, C, H, W) or (C, H, W) in [-1, 1].

    Raises UserError for a tensor of another shape or range.
    """
    if isinstance(given, Tensor):
        images = given[None] if given.ndim == 3 else given
        if images.ndim != 4 or images.shape[1] != preprocess.channels:
            raise UserError(
                f"a tensor {tuple(given.shape)} isn't an image (C, H, W) of {preprocess.channels} channels."
            )
        if not (images.abs() <= 1.5).all():  # a decoder's own overshoot is fine
            raise UserError("a tensor of images has to have values in [-1, 1] and no NaN.")
        return images
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    notes: Notes = []
    arrays = [preprocess.array(item, notes) for item in items]
    for note in dict.fromkeys(notes):
        if not note.startswith(CONVERTED):
            _log.warning("an image that you gave: %s", note.split("; data.")[0])
    return preprocess.to_tensor(np.stack(arrays))


def read_masks(given: Any, preprocess: Preprocess) -> Tensor:
    """Masks (B, 1, H, W) of 0 and 1, from files, PIL images, arrays or a tensor, white or 1 where to generate."""
    if isinstance(given, Tensor):
        mask = given.float()
        if not is_finite(mask):
            raise UserError("a mask has infinite values or NaN: give 1 where to generate and 0 elsewhere.")
        return (mask.view(-1, 1, *mask.shape[-2:]) > 0.5).float()
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    notes: Notes = []
    arrays = [preprocess.resize_map(_mask(item, notes)) for item in items]
    for note in dict.fromkeys(notes):
        _log.warning("a mask that you gave: %s", note.removeprefix("mask "))
    return torch.from_numpy(np.stack(arrays) > 127).float()[:, None]


def read_maps(given: Any, preprocess: Preprocess) -> list[Tensor]:
    """Maps (H, W) int64 of class ids at the size of `preprocess`, from files, grey or palette images, arrays or
    tensors."""
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    arrays: list[np.ndarray] = []
    for item in items:
        values = _ids(item)
        arrays += list(values) if values.ndim == 3 else [values]
    return [torch.from_numpy(preprocess.resize_map(array).astype(np.int64)) for array in arrays]


def resized(preprocess: Preprocess, height: int, width: int) -> Preprocess:
    """The same preprocessing for images of another size."""
    return build({**spec_of(preprocess), "height": height, "width": width})


def _by_name(what: str, given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {f"{what} '{name}'": item for name, item in given.items()}
    return {what: given}


def _ids(item: Any) -> np.ndarray:
    if not isinstance(item, (Tensor, np.ndarray)):
        return open_map(item)
    plain = item.detach().cpu() if isinstance(item, Tensor) else item
    values = np.asarray(plain.float() if isinstance(plain, Tensor) and plain.is_floating_point() else plain)
    if values.dtype.kind not in "bui" and not (values.dtype.kind == "f" and (values == np.rint(values)).all()):
        raise UserError(f"a map of {values.dtype} holds values that aren't class ids: give whole numbers from 0 on.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError("a map has infinite values: give whole numbers from 0 on.")
    return values


def _mask(item: Any, notes: Notes) -> np.ndarray:
    if isinstance(item, np.ndarray) and item.ndim != 2 and item.shape[2:] not in ((1,), (3,), (4,)):
        raise UserError(f"a mask {item.shape} isn't an image (H, W): give one that is white or 1 where to generate.")
    return open_mask(item, notes)
