"""The trained model as its user sees it."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters import Adaptable, Steering, steering
from ldm.common.annotations import argument, check_guidance, held
from ldm.common.describe import Described, millions
from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.conditioning import Asked, ClassLabel, Conditioner, ask, classes_line
from ldm.diffusion import Denoiser, get_sampler, mixed, resolution_shift
from ldm.diffusion.inpainting import keeping
from ldm.diffusion.options import sampling_kinds
from ldm.images import Pictures, Preprocess
from ldm.model.autoguidance import Autoguided
from ldm.model.distilled import check_few, conditions, tell_negative
from ldm.model.editing import ReadsPictures, Start, resized
from ldm.model.interpolation import Interpolating
from ldm.model.latent_space import InLatents, finite
from ldm.networks import AutoencoderKL, Identity
from ldm.networks.autoencoder import check_size
from ldm.networks.computing.coding import Coding
from ldm.networks.computing.precision import KeepsFloat32
from ldm.networks.layers import constant_contexts

DEFAULTS: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 20, "guidance": 1.0, "spacing": None, "shift": 1.0}

OUTPUTS = ("pil", "pt", "np")


@register
class LatentDiffusion(
    KeepsFloat32, InLatents, ReadsPictures, Described, Adaptable, Autoguided, Interpolating, nn.Module
):
    """First stage, denoiser and conditioner in one: prompts in, pictures out.

    `model("a cat above a rocket", n=4, seed=0)` gives PIL images, computed in `model.precision`.
    """

    def __init__(
        self,
        first_stage: AutoencoderKL | Identity,
        denoiser: Denoiser,
        conditioner: Conditioner,
        preprocess: Preprocess,
        sampling: Mapping[str, Any] | None = None,
        scheduler: str | None = None,
        distilled: Mapping[str, Any] | None = None,
    ):
        """`scheduler` names the class of diffusers in whose place our nearest sampler stands, for whoever reads it;
        `distilled` is what a model of `finetune=distill` says of itself: {"steps": how many it takes at most}."""
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
        own = {key: value for key, value in self.sampling.items() if value not in (None, 1.0)}
        size, given = self.preprocess, ", ".join(self.conditioner.parts) or "nothing"
        return {
            "draws": f"{size.height}x{size.width}, {size.channels} channels, from {given}",
            "first stage": f"{type(self.first_stage).__name__}, {millions(self.first_stage.parameters())}",
            "network": f"{type(self.denoiser.network).__name__}, {millions(self.denoiser.network.parameters())}",
            "predicts": type(self.denoiser.parameterization).__name__,
            **({"labels": classes_line(self.labels)} if self.labels else {}),
            **self.coding.facts(self.latent_mean.device),
            "sampled by": ", ".join(f"{key} {value}" for key, value in own.items()),
            **({"in place of": self.scheduler} if self.scheduler else {}),
            **({"adapters": ", ".join(map(str, self.adapters))} if self.adapters else {}),
        }

    def __call__(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Any:
        """See `generate`."""
        return self.generate(prompt, **options)

    @held
    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        labels: int | str | Sequence[int | str] | None = None,
        map: Any = None,
        embed_image: Any = None,
        negative: str | Sequence[str] | None = None,
        n: int = 1,
        steps: int | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | None = None,
        seed: int | Sequence[int] = 0,
        size: int | tuple[int, int] | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        feather: int = 0,
        pad: int | Sequence[int] | None = None,
        noise_level: float | None = None,
        control: Any = None,
        control_from: Any = None,
        control_scale: float | Mapping[str, float] | None = None,
        control_start: float | Mapping[str, float] | None = None,
        control_end: float | Mapping[str, float] | None = None,
        guess_mode: bool = False,
        batch_size: int = 32,
        output: str = "pil",
        on_step: Callable[[int, int, Tensor], None] | None = None,
        **sampler_options: Any,
    ) -> Any:
        """`n` pictures of each prompt, label or map.

        Picture i draws its start and every step's noise from a generator of its own, seeded with seed + i (or seed[i]):
        it is the same picture whatever the batch. `guidance` 1 is off; each guided step costs two network evaluations.
        It may be a scale for each condition, `{"text": 3, "map": 1.5}`: see `Asked.weighted`. `negative` takes the
        place of the null caption.

        `map` is an image or array of class ids, `embed_image` a picture whose meaning is to be drawn: for models that
        were trained with them, as are `labels`: names of classes, or their numbers in `model.labels` where no class is
        called so.

        `image` (a picture, a file, an array or tensor, or a list of them: one, or one each) is changed by `strength`,
        from 0, the autoencoder's reconstruction, to 1, which ignores it: the share of the way from noise to image that
        is gone, in as large a share of the steps, from exactly the noise level that is there (for flow at t = strength,
        whatever the steps). With a
        `mask`, white where something new shall be drawn, all else is kept exactly, over `feather` pixels blended;
        strength is then 1 unless given. `pad` adds a margin to be drawn: pixels, or (left, top, right, bottom). For a
        model of super-resolution `image` is the low resolution, which gets noise of `noise_level`.

        `control` is what a ControlNet (`load_controlnet`) reads, or `control_from` a picture that it's made from: one
        for all, one each, or of several ControlNets by name; see `ldm.adapters.steering`.

        What is to lie over each other, image, mask, map and control images, must have one aspect: each is cropped to
        the model's. Images are turned as their EXIF says and converted to sRGB by their colour profile.

        `output` is "pil", "pt" (B, C, H, W) in [-1, 1] or "np" (B, H, W, C) uint8.
        """
        check_output(output)
        given = {k: _as_list(v) for k, v in {"text": prompt, "label": labels}.items() if v is not None}
        chosen = {"sampler": sampler, "steps": steps, "guidance": guidance, **sampler_options}
        shown = {"image": image, "strength": strength, "mask": mask, "feather": feather, "pad": pad}
        over = {"map": map, "control": control, "control_from": control_from}
        self.check_pictures(image=image, mask=mask, pad=pad, **over)
        start, pictures = self.read(**shown, map=map, embed_image=embed_image, noise_level=noise_level, size=size)
        given |= pictures
        asked = {"control": control, "made_from": control_from, "guess": guess_mode}
        shares = {"scale": control_scale, "begin": control_start, "end": control_end}
        after = self.steering(given, start, size, **asked, **shares)
        images = self.draw(given, n, negative, seed, size, batch_size, on_step, start, after, **chosen)
        return as_output(images, output, self.preprocess)

    @torch.no_grad()
    def draw(
        self,
        given: Mapping[str, list],
        n: int = 1,
        negative: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        on_step: Callable[[int, int, Tensor], None] | None = None,
        start: Start | None = None,
        steering: Steering | None = None,
        **options: Any,
    ) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] for conditions given by column, `{"text": [...]}`; see `generate`. Raises
        UserError for values that aren't finite."""
        height, width = self._size(given, start, size)
        asked = ask(self.conditioner, given, n, negative, (height, width))
        count = asked.count
        if start is not None:
            start = start.repeated(count)
            if start.mask is not None and self.fills:
                asked = asked.to_fill(start.image, start.mask)
        guide = self.asked_of_guide(given, n, (height, width))
        if guide is not None and start is not None and start.mask is not None and self.guide[0].fills:
            guide = guide.to_fill(start.image, start.mask)
        steering = steering and steering.repeated(count)
        seeds, options = _seeds(seed, count), self._options(options)
        tell_negative(self.denoiser.network, self.distilled, options["guidance"], negative)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: has to be at least 1.")
        latent_size = height // self.first_stage.factor, width // self.first_stage.factor
        pictures = []
        for rows in torch.arange(count).split(batch_size):
            some = [seeds[i] for i in rows.tolist()]
            begun = start and start.take(rows)
            after = steering and steering.take(rows)
            worse = guide and guide.take(rows)
            pictures.append(self._sample(asked.take(rows), some, latent_size, options, on_step, begun, after, worse))
        return finite(torch.cat(pictures))

    def steering(
        self,
        given: Mapping[str, list],
        start: Start | None = None,
        size: int | tuple[int, int] | None = None,
        **options: Any,
    ) -> Steering | None:
        """What ControlNets are told, for `draw`, read and checked at the pictures' size: `ldm.adapters.steering`."""
        return steering(self, preprocess=resized(self.preprocess, *self._size(given, start, size)), **options)

    def export(self, out: str | Path, to: str = "diffusers", dtype: str | None = None) -> Any:
        """Writes the model to the folder `out` for other tools; the report says which parts are stock classes there.

        `to` is "diffusers", or "ldm": a model folder with a frozen text encoder's files in it. A ControlNet that is on
        it goes to diffusers with it, if the model is a StableDiffusionPipeline there. "single_file" writes the file
        `out` that ComfyUI and A1111 open. `dtype` is "float16", "bfloat16" or "float32".
        """
        from ldm.interop.export import export

        return export(self, out, to, dtype=dtype)

    def as_output(self, images: Tensor, output: str = "pil") -> Any:
        """Images (B, C, H, W) in [-1, 1] as "pil", "pt" or "np"."""
        return as_output(images, output, self.preprocess)

    def _options(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The model's own way of sampling, changed as chosen. The whole table is left where other steps are asked
        for."""
        chosen = {k: v for k, v in chosen.items() if v is not None}
        kinds = sampling_kinds() | {"autoguidance": float}
        for key, value in chosen.items():
            argument(value, kinds.get(key, Any), key)
            if key in ("guidance", "autoguidance"):
                check_guidance(value, key)
        own = self.sampling
        if chosen.get("sampler", own["sampler"]) != own["sampler"]:  # whose own options another sampler doesn't know
            own = {k: v for k, v in own.items() if k in (*DEFAULTS, "interval", "rescale", "autoguidance")}
        if self.guide:  # in place of classifier-free guidance, unless that is asked for
            own = own | {"guidance": 1.0}
        options = own | chosen
        if "spacing" not in chosen and options["spacing"] == "table" and options["steps"] != self.sampling["steps"]:
            options["spacing"] = None
        check_few(self.distilled, options)
        return options

    def _sample(
        self,
        asked: Asked,
        seeds: list[int],
        size: tuple[int, int],
        options: dict[str, Any],
        on_step: Callable[[int, int, Tensor], None] | None,
        start: Start | None = None,
        steering: Steering | None = None,
        guide: Asked | None = None,
    ) -> Tensor:
        """One batch from noise, or from `start`, to images (B, C, H, W)."""
        noise = PictureNoise(seeds, (self.first_stage.latent_channels, *size), self.latent_mean.device)
        options = dict(options)
        name, steps, spacing = options.pop("sampler"), options.pop("steps"), options.pop("spacing")
        shift = options.pop("shift")
        if shift == "auto":  # from the size that it was trained at
            trained = self.preprocess.height * self.preprocess.width
            shift = resolution_shift(size[0] * size[1] * self.first_stage.factor**2, trained)
        strength = 1.0 if start is None else start.strength
        sigmas = self.denoiser.parameterization.grid(steps, spacing, shift, strength)
        denoiser: Any = self.denoiser.around(self.coding.network(self.denoiser.network), self.dtype)
        guidance = options.pop("guidance")
        conds, weights = conditions(self.denoiser.network, asked, guidance, self.encode, seeds)
        if steering is not None:
            denoiser, conds, weights = steering.steer(denoiser, conds, weights, sigmas, guidance)
        interval, rescale = options.pop("interval", None), options.pop("rescale", 0.0)
        if interval is not None and not interval[0] < interval[1]:
            raise UserError(f"interval={list(interval)}: guidance lies between a lower and a higher noise level.")
        conds = [cond.lowered(self.dtype) for cond in conds]
        denoise = mixed(denoiser, conds, weights, interval=interval, rescale=rescale)
        denoise = self.autoguided(denoise, guide, options.pop("autoguidance", None), interval, seeds)
        run = get_sampler(name, **options)
        x = noise() * sigmas[0].item()
        if start is not None:
            known = self.encode(start.image)
            x = x + (known if strength < 1 else 0)
            if start.mask is not None and not self.fills:
                denoise = keeping(denoise, known, start.kept_latents(known.shape[2:]), noise())
        with constant_contexts():
            denoised = run(denoise, x, sigmas, noise=lambda _: noise(), on_step=on_step) if len(sigmas) > 1 else x
        images = self.decode(denoised)
        return images if start is None else start.paste(images)


class PictureNoise:
    """Standard normal noise (B, *shape) where row i comes from a CPU generator of its own, on any device the same."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device):
        self.generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        return send(noise, self.device)


@held
@torch.no_grad()
def sample_prior(vae: AutoencoderKL, n: int, size: tuple[int, int], seed: int = 0, batch_size: int = 64) -> Tensor:
    """`n` images (n, C, H, W) decoded from z ~ N(0, I), which is what the VAE alone generates."""
    check_size(*size, vae.factor)
    shape = (vae.latent_channels, size[0] // vae.factor, size[1] // vae.factor)
    device, seeds = next(vae.parameters()).device, _seeds(seed, n)
    batches = [seeds[i : i + batch_size] for i in range(0, n, batch_size)]
    return torch.cat([finite(vae.decode(PictureNoise(some, shape, device)())).clamp(-1, 1) for some in batches])


def _as_list(value: Any) -> list:
    if isinstance(value, (str, Integral)):
        return [value]
    return value.tolist() if isinstance(value, Tensor) else list(value)


def _seeds(seed: int | Sequence[int], n: int) -> list[int]:
    seed = seed.tolist() if isinstance(seed, Tensor) else seed
    given = list(seed) if isinstance(seed, Sequence) else [seed]
    if not all(isinstance(one, Integral) for one in given):
        raise UserError(f"seed={seed}: give a whole number, or one a picture.")
    seeds = [int(seed) + i for i in range(n)] if isinstance(seed, Integral) else [int(one) for one in given]
    if len(seeds) != n:
        raise UserError(f"{len(seeds)} seeds for {n} pictures; give one number, or one a picture.")
    if seeds and (min(seeds) < -(2**63) or max(seeds) >= 2**63):
        raise UserError(f"seed={seed} is too large: a seed has at most 63 bits.")
    return seeds


def as_output(images: Tensor, output: str, preprocess: Preprocess) -> Any:
    """Images (B, C, H, W) in [-1, 1] as "pil", "pt" or "np": see `LatentDiffusion.generate`."""
    if output == "pt":
        return images
    if output == "np":
        return preprocess.to_uint(images).permute(0, 2, 3, 1).cpu().numpy()
    check_output(output)
    return Pictures(preprocess.to_pil(image) for image in images)


def check_output(output: str) -> None:
    if output not in OUTPUTS:
        raise UserError(f"output={output!r} isn't one of {', '.join(OUTPUTS)}.")
