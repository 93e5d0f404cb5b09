"""The trained model as its user sees it."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.adapters import Adaptable, ControlImages, control_images
from ldm.common.annotations import check_arguments
from ldm.common.describe import Described, millions
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.conditioning import ClassLabel, Conditioner, classes_line
from ldm.diffusion import Denoiser
from ldm.images import ImageList, Preprocess
from ldm.interop.exportable import Exportable
from ldm.model.autoguidance import load_autoguide
from ldm.model.generate import OnStep, generate
from ldm.model.initial_image import InitialImage
from ldm.model.inputs import Size, check_images, fills, initial_image, prompts_of, read, resized, scale_of, size_of
from ldm.model.interpolation import interpolate, variations
from ldm.model.latent_space import InLatents
from ldm.model.request import DEFAULTS, request_of
from ldm.networks import Autoencoder, Identity
from ldm.networks.computing.coding import Coding
from ldm.networks.computing.precision import KeepsFloat32

OUTPUTS = ("pil", "pt", "np")


@register
class LatentDiffusion(KeepsFloat32, InLatents, Described, Adaptable, Exportable, nn.Module):
    """First stage, denoiser and conditioner in one model: from prompts to images.

    `model("a cat above a rocket", n=4, seed=0)` gives PIL images, computed in `model.precision`. A call takes the
    options of `generate`:

    Each image has its own generator of noise, seeded with seed + i (or seed[i]), so it is the same image in any batch.
    `guidance` is the guidance scale, 1 is off; each guided step costs two evaluations of the network. It may also be a
    scale for each condition, `{"text": 3, "map": 1.5}`: see `Conditions.terms`. `negative` replaces the null
    caption; or it is a mapping, `{"prompt": "blurry", "original_size": (64, 64)}`, with `prompt`, `prompt_2`,
    `original_size`, `crop` and `target_size`. For models with two text encoders `prompt_2` is what the second one
    reads; by default both read `prompt`.

    `labels` are names of classes, or their numbers in `model.labels` if no class has that name. `map` is an image or
    array of class ids, and `embed_image` an image whose embedding is the condition. These are for models that were
    trained with them.

    `image` is the initial image: a PIL image, a file, an array or tensor, or a list of them, one for all or one for
    each. `strength` says how much of it is changed, from 0, the autoencoder's reconstruction, to 1, which ignores it.
    It is the share of the way from noise to image that is sampled, in that share of the steps, starting from exactly
    the noise level there (for flow at t = strength). With a `mask`, white where something new is generated, all else is
    kept exactly, and the edge is blended over `feather` pixels; strength is then 1 unless given. `pad` adds a margin to
    be generated: a number of pixels, or (left, top, right, bottom). For a model for super-resolution `image` is the low
    resolution, to which noise of `noise_level` is added.

    For models that were trained with images' own sizes, `original_size` and `target_size` are (height, width), and
    `crop` is (top, left). By default the image is as large as it is generated, and uncropped.

    `control` is the control image of a ControlNet (`load_controlnet`), or `control_from` an image from which it is
    made: one for all, one for each, or by name for several ControlNets. See `ldm.adapters.control_images`.

    Initial image, mask, map and control images must have the same aspect ratio; they are cropped to the model's. Images
    are turned as their EXIF says, and converted to sRGB by their colour profile.
    """

    guide: tuple[Any, ...] = ()  # the worse model of autoguidance; in a tuple, so that its weights aren't part of this

    def __init__(
        self,
        first_stage: Autoencoder | Identity,
        denoiser: Denoiser,
        conditioner: Conditioner,
        preprocess: Preprocess,
        sampling: Mapping[str, Any] | None = None,
        scheduler: str | None = None,
        distilled: Mapping[str, Any] | None = None,
    ):
        """`scheduler` is the class of diffusers that the default sampler replaces, recorded for information.

        `distilled` describes a model of `finetune=distill`: {"steps": the most steps that it was trained for}.
        """
        super().__init__()
        self.scheduler = scheduler
        self.first_stage, self.denoiser, self.conditioner = first_stage, denoiser, conditioner
        self.preprocess, self.adapters = preprocess, {}
        self.distilled = dict(distilled or {})
        self.sampling = DEFAULTS | dict(sampling or {})
        self.coding = Coding()
        self.register_buffer("latent_mean", torch.zeros(first_stage.latent_channels))
        self.register_buffer("latent_std", torch.ones(first_stage.latent_channels))

    @property
    def labels(self) -> dict[str, int]:
        """The number of each class by its name; empty for a model that isn't conditioned on classes."""
        return next((dict(p.table) for p in self.conditioner.parts.values() if isinstance(p, ClassLabel)), {})

    def facts(self) -> dict[str, Any]:
        """Size, conditions, networks and sampling of the model, for `Described`."""
        own = {key: value for key, value in self.sampling.items() if value not in (None, 1.0)}
        size, given = self.preprocess, ", ".join(self.conditioner.parts) or "nothing"
        return {
            "generates": f"{size.height}x{size.width}, {size.channels} channels, from {given}",
            "first stage": f"{type(self.first_stage).__name__}, {millions(self.first_stage.parameters())}",
            "network": f"{type(self.denoiser.network).__name__}, {millions(self.denoiser.network.parameters())}",
            "predicts": type(self.denoiser.parameterization).__name__,
            **({"labels": classes_line(self.labels)} if self.labels else {}),
            **self.coding.facts(self.latent_mean.device),
            "sampled by": ", ".join(f"{key} {value}" for key, value in own.items()),
            **({"from": self.origin} if self.origin else {}),
            **({"in place of": self.scheduler} if self.scheduler else {}),
            **({"adapters": ", ".join(map(str, self.adapters))} if self.adapters else {}),
        }

    def __call__(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Any:
        """See `generate`."""
        return self.generate(prompt, **options)

    @check_arguments
    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str | tuple[str, ...]] | None = None,
        *,
        prompt_2: str | Sequence[str] | None = None,
        labels: int | str | Sequence[int | str] | None = None,
        map: Any = None,
        embed_image: Any = None,
        negative: str | Sequence[str] | Mapping[str, Any] | None = None,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        size: Size = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        feather: int = 0,
        pad: int | Sequence[int] | None = None,
        noise_level: float | None = None,
        original_size: Size = None,
        crop: Size = None,
        target_size: Size = None,
        control: Any = None,
        control_from: Any = None,
        control_scale: float | Mapping[str, float] | None = None,
        control_start: float | Mapping[str, float] | None = None,
        control_end: float | Mapping[str, float] | None = None,
        guess_mode: bool = False,
        batch_size: int = 32,
        output: str = "pil",
        on_step: OnStep | None = None,
        **sampling: Any,
    ) -> Any:
        """`n` images of each prompt, label or map, as the class describes; `sampling` are the sampler's options."""
        check_output(output)
        given = words_of(self, prompt, prompt_2, labels)
        images = {"image": image, "mask": mask, "pad": pad, "map": map}
        self.check_images(**images, control=control, control_from=control_from)
        images |= {"strength": strength, "feather": feather, "embed_image": embed_image, "noise_level": noise_level}
        images |= {"original_size": original_size, "crop": crop, "target_size": target_size}
        initial, conditions = self.read(**images, size=size)
        given |= conditions
        spans = {"scale": control_scale, "start": control_start, "end": control_end, "guess": guess_mode}
        controls = self.control_images(given, initial, size, control=control, control_from=control_from, **spans)
        counts: dict[str, Any] = {"n": n, "negative": negative, "seed": seed, "size": size}
        request = request_of(self, given, sampling, **counts, initial=initial, control=controls)
        return as_output(generate(self, request, batch_size, on_step), output, self.preprocess)

    def generate_for(
        self,
        given: Mapping[str, list],
        n: int = 1,
        negative: str | Sequence[str] | Mapping[str, Any] | None = None,
        seed: int | Sequence[int] = 0,
        size: Size = None,
        batch_size: int = 32,
        on_step: OnStep | None = None,
        initial: InitialImage | None = None,
        control: ControlImages | None = None,
        **sampling: Any,
    ) -> Tensor:
        """`n` images (B, C, H, W) in [-1, 1] for each of the conditions in `given`, lists by column: `{"text": [...]}`.

        `initial` comes from `read`, `control` from `control_images`. Raises UserError for values that aren't finite.
        """
        options: dict[str, Any] = {"n": n, "negative": negative, "seed": seed, "size": size}
        request = request_of(self, given, sampling, **options, initial=initial, control=control)
        return generate(self, request, batch_size, on_step)

    check_images = check_images
    read = read
    initial_image = initial_image
    interpolate = interpolate
    variations = variations
    load_autoguide = load_autoguide

    @property
    def fills(self) -> bool:
        """Whether it was trained to fill in a masked image."""
        return fills(self)

    @property
    def scale(self) -> int:
        """The factor by which it enlarges the sides of an image; 1 if it isn't a model for super-resolution."""
        return scale_of(self)

    def control_images(
        self,
        given: Mapping[str, list],
        initial: InitialImage | None = None,
        size: Size = None,
        **options: Any,
    ) -> ControlImages | None:
        """Control images for `generate_for`, read and checked at the size of the images: see
        `ldm.adapters.control_images`."""
        preprocess = resized(self.preprocess, *size_of(self, given, initial, size))
        return control_images(self, preprocess=preprocess, **options)

    # Earlier names, which keep working.
    check_pictures = check_images
    start = initial_image

    def draw(
        self,
        given: Mapping[str, list],
        n: int = 1,
        negative: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        *,
        start: InitialImage | None = None,
        steering: ControlImages | None = None,
        **options: Any,
    ) -> Tensor:
        """The earlier name of `generate_for`, with its earlier keywords."""
        return self.generate_for(given, n, negative, seed, initial=start, control=steering, **options)

    def steering(
        self,
        given: Mapping[str, list],
        start: InitialImage | None = None,
        size: Size = None,
        *,
        begin: Any = None,
        made_from: Any = None,
        **options: Any,
    ) -> ControlImages | None:
        """The earlier name of `control_images`, with its earlier keywords."""
        return self.control_images(given, start, size, start=begin, control_from=made_from, **options)

    def as_output(self, images: Tensor, output: str = "pil") -> Any:
        """Images (B, C, H, W) in [-1, 1] as "pil", "pt" or "np"."""
        return as_output(images, output, self.preprocess)


def words_of(model: Any, prompt: Any, prompt_2: Any = None, labels: Any = None) -> dict[str, list]:
    """The conditions that are given as words and numbers, by column."""
    given = {} if prompt is None and prompt_2 is None else {"text": prompts_of(model, prompt, prompt_2)}
    return given if labels is None else given | {"label": _as_list(labels)}


def _as_list(value: Any) -> list:
    if isinstance(value, (str, Integral)):
        return [value]
    return value.tolist() if isinstance(value, Tensor) else list(value)


def as_output(images: Tensor, output: str, preprocess: Preprocess) -> Any:
    """Images (B, C, H, W) in [-1, 1] as "pil", "pt" or "np": see `LatentDiffusion.generate`."""
    if output == "pt":
        return images
    if output == "np":
        return rearrange(preprocess.to_uint(images), "b c h w -> b h w c").cpu().numpy()
    check_output(output)
    return ImageList(preprocess.to_pil(image) for image in images)


def check_output(output: str) -> None:
    """Raises UserError unless `output` is one of OUTPUTS."""
    if output not in OUTPUTS:
        raise UserError(f"output={output!r} isn't one of {', '.join(OUTPUTS)}.")
