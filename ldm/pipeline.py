"""The trained model as its user sees it."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning import Conditioner
from ldm.diffusion import Denoiser, get_sampler, guided
from ldm.diffusion.inpainting import keeping
from ldm.editing import Start, read_images, read_masks
from ldm.errors import UserError
from ldm.images import Preprocess
from ldm.networks import AutoencoderKL, Identity
from ldm.networks.autoencoder import check_size
from ldm.registry import register

DEFAULTS: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 20, "guidance": 1.0, "spacing": None, "shift": 1.0}


@register
class LatentDiffusion(nn.Module):
    """First stage, denoiser and conditioner in one: prompts in, pictures out.

    `model("a cat above a rocket", n=4, seed=0)` gives PIL images. Latents are whitened per channel for the denoiser:
    z = (latent - latent_mean) / latent_std.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        first_stage: AutoencoderKL | Identity,
        denoiser: Denoiser,
        conditioner: Conditioner,
        preprocess: Preprocess,
        sampling: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.first_stage, self.denoiser, self.conditioner = first_stage, denoiser, conditioner
        self.preprocess = preprocess
        self.sampling = DEFAULTS | dict(sampling or {})
        self.register_buffer("latent_mean", torch.zeros(first_stage.latent_channels))
        self.register_buffer("latent_std", torch.ones(first_stage.latent_channels))

    def __call__(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Any:
        """See `generate`."""
        return self.generate(prompt, **options)

    @torch.inference_mode()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        labels: Sequence[int | str] | None = None,
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
        batch_size: int = 32,
        output: str = "pil",
        on_step: Callable[[int, int, Tensor], None] | None = None,
        **sampler_options: Any,
    ) -> Any:
        """`n` pictures of each prompt or label.

        Picture i draws its start and every step's noise from a generator of its own, seeded with seed + i (or seed[i]):
        it is the same picture whatever the batch. `guidance` 1 is off; each guided step costs two network evaluations.
        `negative` takes the place of the null condition.

        `image` (a picture, a file, an array or tensor, or a list of them: one, or one each) is changed by `strength`,
        from 0, the autoencoder's reconstruction, to 1, which ignores it: the share of the steps that is run. With a
        `mask`, white where something new shall be drawn, all else is kept exactly, over `feather` pixels blended;
        strength is then 1 unless given.

        `output` is "pil", "pt" (B, C, H, W) in [-1, 1] or "np" (B, H,
        W, C) uint8.
        """
        given = {k: _as_list(v) for k, v in {"text": prompt, "label": labels}.items() if v is not None}
        chosen = {"sampler": sampler, "steps": steps, "guidance": guidance, **sampler_options}
        start = self.start(image, strength, mask, feather)
        images = self.draw(given, n, negative, seed, size, batch_size, on_step, start, **chosen)
        return _as_output(images, output, self.preprocess)

    @torch.inference_mode()
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
        **options: Any,
    ) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] for conditions given by column, `{"text": [...]}`; see `generate`."""
        batch, count = self._conditions(given, n)
        null = self._negatives(negative, count)
        if start is not None:
            start, size = start.repeated(count), (start.image.shape[2], start.image.shape[3])
        seeds, size = _seeds(seed, count), self._latent_size(size)
        options = self._options(options)
        pictures = []
        for rows in torch.arange(count).split(batch_size):
            some = [seeds[i] for i in rows.tolist()]
            begun = start and start.take(rows)
            pictures.append(self._sample(_take(batch, rows), _take(null, rows), some, size, options, on_step, begun))
        return torch.cat(pictures)

    def start(self, image: Any, strength: float | None = None, mask: Any = None, feather: int = 0) -> Start | None:
        """What `generate` shall begin from, read and checked; None without an image."""
        if image is None:
            if strength is not None or mask is not None:
                raise UserError("strength and mask need an image to start from.")
            return None
        device = self.latent_mean.device
        images = read_images(image, self.preprocess).to(device)
        masks = None if mask is None else read_masks(mask, self.preprocess).to(device)
        return Start(images, masks, (0.8 if mask is None else 1.0) if strength is None else strength, feather)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to whitened latents (the posterior's mean)."""
        return self.whiten(self.first_stage.encode(images).mode())

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Whitened latents to images (B, C, H, W), clamped to [-1, 1]."""
        return self.first_stage.decode(self.unwhiten(latents)).clamp(-1, 1)

    def export(self, out: str | Path, to: str = "diffusers") -> Any:
        """Writes the model to the folder `out` for other tools; the report says which parts are stock classes there.

        `to` is "diffusers", or "ldm": a model folder with a frozen text encoder's files in it.
        """
        from ldm.interop.export import export

        return export(self, out, to)

    def whiten(self, latents: Tensor) -> Tensor:
        return (latents - _spread(self.latent_mean)) / _spread(self.latent_std)

    def unwhiten(self, latents: Tensor) -> Tensor:
        return latents * _spread(self.latent_std) + _spread(self.latent_mean)

    def _conditions(self, given: Mapping[str, list], n: int) -> tuple[dict[str, Any], int]:
        """The batch of all pictures' conditions, each `n` times, and how many there are."""
        lengths = {len(values) for values in given.values()}
        if len(lengths) > 1:
            raise UserError(f"the conditions differ in number: { {k: len(v) for k, v in given.items()} }.")
        batch = self.conditioner.parse(given)
        count = n * (lengths.pop() if lengths else 1)
        if count < 1:
            raise UserError("nothing to draw: give n of at least 1 and at least one prompt or label.")
        return _take(batch, torch.arange(count // n).repeat_interleave(n)), count

    def _negatives(self, negative: str | Sequence[str] | None, count: int) -> dict[str, Any]:
        """The batch of what guidance leads away from: the null condition, or the negative prompt."""
        null = _take(self.conditioner.parse({}), torch.zeros(count, dtype=torch.long))
        if negative is None:
            return null
        texts = _as_list(negative)
        if len(texts) not in (1, count):
            raise UserError(f"{len(texts)} negative prompts for {count} pictures; give one, or one a picture.")
        parsed = self.conditioner.parse({"text": texts * (count // len(texts))})
        return null | {"text": parsed["text"]}

    def _options(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The model's own way of sampling, changed as chosen. The whole table is left where other steps are asked
        for."""
        chosen = {k: v for k, v in chosen.items() if v is not None}
        own = self.sampling
        if chosen.get("sampler", own["sampler"]) != own["sampler"]:  # whose own options another sampler doesn't know
            own = {k: v for k, v in own.items() if k in (*DEFAULTS, "interval", "rescale")}
        options = own | chosen
        if "spacing" not in chosen and options["spacing"] == "table" and options["steps"] != self.sampling["steps"]:
            options["spacing"] = None
        return options

    def _latent_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        height, width = (
            (size, size) if isinstance(size, int) else size or (self.preprocess.height, self.preprocess.width)
        )
        check_size(height, width, self.first_stage.factor)
        return height // self.first_stage.factor, width // self.first_stage.factor

    def _sample(
        self,
        batch: dict[str, Any],
        null: dict[str, Any],
        seeds: list[int],
        size: tuple[int, int],
        options: dict[str, Any],
        on_step: Callable[[int, int, Tensor], None] | None,
        start: Start | None = None,
    ) -> Tensor:
        """One batch from noise, or from `start`, to images (B, C, H, W)."""
        noise = PictureNoise(seeds, (self.first_stage.latent_channels, *size), self.latent_mean.device)
        options = dict(options)
        name, steps, spacing = options.pop("sampler"), options.pop("steps"), options.pop("spacing")
        sigmas = self.denoiser.parameterization.grid(steps, spacing, shift=options.pop("shift"))
        denoise = guided(
            self.denoiser,
            self.conditioner(batch),
            self.conditioner(null),
            options.pop("guidance"),
            interval=options.pop("interval", None),
            rescale=options.pop("rescale", 0.0),
        )
        run = get_sampler(name, **options)
        x = noise()
        if start is not None:
            known = self.encode(start.image)
            sigmas = sigmas[round((1 - start.strength) * steps) :]
            x = x * sigmas[0].item() + (known if start.strength < 1 else 0)
            if start.mask is not None:
                denoise = keeping(denoise, known, start.kept_latents(known.shape[2:]), noise())
        else:
            x = x * sigmas[0].item()
        denoised = run(denoise, x, sigmas, noise=lambda _: noise(), on_step=on_step) if len(sigmas) > 1 else x
        images = self.decode(denoised)
        return images if start is None else start.paste(images)


class PictureNoise:
    """Standard normal noise (B, *shape) where row i comes from a CPU generator of its own, on any device the same."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device):
        self.generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


@torch.inference_mode()
def sample_prior(vae: AutoencoderKL, n: int, size: tuple[int, int], seed: int = 0, batch_size: int = 64) -> Tensor:
    """`n` images (n, C, H, W) decoded from z ~ N(0, I), which is what the VAE alone generates."""
    check_size(*size, vae.factor)
    shape = (vae.latent_channels, size[0] // vae.factor, size[1] // vae.factor)
    device, seeds = next(vae.parameters()).device, _seeds(seed, n)
    batches = [seeds[i : i + batch_size] for i in range(0, n, batch_size)]
    return torch.cat([vae.decode(PictureNoise(some, shape, device)()).clamp(-1, 1) for some in batches])


def _as_list(value: Any) -> list:
    if isinstance(value, (str, Integral)):
        return [value]
    return value.tolist() if isinstance(value, Tensor) else list(value)


def _seeds(seed: int | Sequence[int], n: int) -> list[int]:
    if isinstance(seed, (int, Integral)):
        return [int(seed) + i for i in range(n)]
    if len(seed) != n:
        raise UserError(f"{len(seed)} seeds for {n} pictures; give one number, or one a picture.")
    return list(seed)


def _take(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The given rows of every column."""
    return {
        k: v[rows.to(v.device)] if isinstance(v, Tensor) else [v[i] for i in rows.tolist()] for k, v in batch.items()
    }


def _as_output(images: Tensor, output: str, preprocess: Preprocess) -> Any:
    if output == "pt":
        return images
    if output == "np":
        return preprocess.to_uint(images).permute(0, 2, 3, 1).cpu().numpy()
    if output == "pil":
        return [preprocess.to_pil(image) for image in images]
    raise UserError(f"output='{output}' isn't one of pil, pt, np.")


def _spread(channels: Tensor) -> Tensor:
    return channels[:, None, None]  # (C, 1, 1)
