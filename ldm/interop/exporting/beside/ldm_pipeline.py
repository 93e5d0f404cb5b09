# mypy: disable-error-code="attr-defined"
"""A diffusers pipeline for models of ldm: from prompts, class labels or nothing to images."""

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from ldm.networks.layers import guidance_embedding


class LdmPipeline(DiffusionPipeline):
    """`pipe("a cat", generator=torch.Generator().manual_seed(0)).images`.

    `sampling` holds the model's sampling defaults at the time of export. `latents` is standard normal noise (B, C, h,
    w) for any scheduler: it is scaled to the highest noise level here. Any scheduler of the same prediction type fits.
    """

    model_cpu_offload_seq = "text_encoder->conditioner->unet->vae"
    _optional_components = ["vae", "conditioner", "text_encoder", "tokenizer"]

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        vae: Any = None,
        conditioner: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        sampling: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        shape: list[int] | None = None,
        t_max: float = 0.999,
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            vae=vae,
            conditioner=conditioner,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(sampling=sampling or {}, text=text or {}, shape=shape, t_max=t_max)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        labels: list[int | str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """`output_type` is "pil", "pt" (B, C, H, W) in [0, 1], "np" or "latent"."""
        defaults = self.config.sampling
        scale = defaults.get("guidance", 1.0) if guidance_scale is None else guidance_scale
        inputs = {"text": _list(prompt), "label": _list(labels)}
        given = {k: [x for x in v for _ in range(num_images_per_prompt)] for k, v in inputs.items() if v is not None}
        n = max((len(v) for v in given.values()), default=num_images_per_prompt)
        cond = self._encode(given, n)
        null, embedded = None, self._embedded(scale, n)
        if scale != 1 and not embedded:
            negative = _list(negative_prompt)
            null = self._encode({"text": negative * (n // len(negative))} if negative else {}, n)
        cond |= embedded
        draws = "generator" in inspect.signature(self.scheduler.step).parameters
        own = {"generator": generator} if draws else {}
        x, timesteps = self._start(
            n,
            num_inference_steps or defaults.get("steps", 20),
            height,
            width=width,
            generator=generator,
            latents=latents,
        )
        for t in self.progress_bar(timesteps):
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            raw = self._raw(scaled, t, cond)
            if null is not None:
                without = self._raw(scaled, t, null)
                raw = without + scale * (raw - without)
            x = self.scheduler.step(raw, t, x, **own).prev_sample
        images = x if output_type == "latent" else self._decode(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _embedded(self, scale: float, n: int) -> dict[str, Tensor]:
        """The guidance scale in the form that a distilled U-Net takes as a condition; empty for other U-Nets."""
        config, scales = self.unet.config, torch.full((n,), float(scale), device=self.device)
        if dim := config.get("time_cond_proj_dim"):
            return {"timestep_cond": guidance_embedding(scales, dim)}
        return {"guidance": scales} if (config.get("spec") or {}).get("guidance_dim") else {}

    def _encode(self, given: dict[str, list], n: int) -> dict[str, Tensor]:
        """What the U-Net takes in addition to latents."""
        if self.conditioner is not None:
            cond = self.conditioner(given, n)
            found = {
                "encoder_hidden_states": cond.tokens,
                "class_labels": cond.vector,
                "encoder_attention_mask": cond.mask,
            }
        elif self.text_encoder is not None:
            found = self._frozen(given.get("text", [""] * n))
        else:
            found = {}
        return {k: v for k, v in found.items() if v is not None}

    def _frozen(self, prompts: list[str]) -> dict[str, Tensor]:
        options = self.config.text
        masked = options.get("masked", False)
        batch = self.tokenizer(
            prompts,
            padding="longest" if masked else "max_length",
            max_length=options.get("length") or self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        output = self.text_encoder(input_ids=ids, attention_mask=mask if masked else None)
        found = {"encoder_hidden_states": output.last_hidden_state}
        return found | ({"encoder_attention_mask": mask.bool()} if masked else {})

    def _raw(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.unet(x, t, **({"encoder_hidden_states": None} | cond)).sample

    def _start(
        self, n: int, steps: int, height: int | None, width: int | None, generator: Any, latents: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Noise at the first timestep's level, and the timesteps."""
        if latents is None:
            channels, h, w = self.config.shape
            factor = self._factor()
            shape = (channels, height // factor if height else h, width // factor if width else w)
            generators = generator if isinstance(generator, list) else [generator] * n
            latents = torch.stack([torch.randn(shape, generator=g) for g in generators])
        x = latents.to(self.device, torch.float32)
        if type(self.scheduler).__name__.startswith("FlowMatch"):
            t = [min(1 - i / steps, self.config.t_max) for i in range(steps)]
            self.scheduler.set_timesteps(sigmas=t, device=self.device)
            return x * t[0], self.scheduler.timesteps
        self.scheduler.set_timesteps(steps, device=self.device)
        timesteps = self.scheduler.timesteps
        flow = self.scheduler.config.get("prediction_type") == "flow_prediction"
        if flow or self.scheduler.init_noise_sigma != 1:
            return x * self.scheduler.sigmas[0].to(self.device), timesteps
        abar = self.scheduler.alphas_cumprod[timesteps[0].long().cpu()]
        return x * (1 - abar).sqrt().to(self.device), timesteps

    def _factor(self) -> int:
        if self.vae is None:
            return 1
        return getattr(self.vae, "factor", None) or 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _decode(self, x: Tensor, output_type: str) -> Any:
        if self.vae is not None:
            x = self.vae.decode(x / self.vae.config.scaling_factor).sample
        images = (x.float().clamp(-1, 1) + 1) / 2
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        return arrays if output_type == "np" else self.numpy_to_pil(arrays)


def _list(value: Any) -> list | None:
    return [value] if isinstance(value, (str, int)) else None if value is None else list(value)
