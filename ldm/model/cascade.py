"""A small model and models that enlarge its images, in one call (Ho et al. 2021; Saharia et al. 2022, Imagen)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.annotations import check_arguments
from ldm.common.errors import UserError
from ldm.model.latent_diffusion import LatentDiffusion, as_output, check_output


class Cascade(nn.Module):
    """`Cascade(base, larger, ...)("a cat", n=4)`: the base generates images, and each further model enlarges them.

    Prompts and labels go to every model that was trained with them. Image i has seed + i in every model.
    """

    def __init__(self, base: LatentDiffusion, *enlargers: LatentDiffusion):
        super().__init__()
        if not enlargers:
            raise UserError("a cascade needs a base and at least one model for super-resolution after it.")
        before = base
        for model in enlargers:
            check_fit(before, model)
            before = model
        self.stages = nn.ModuleList([base, *enlargers])

    def __call__(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Any:
        """See `generate`."""
        return self.generate(prompt, **options)

    @check_arguments
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        guidance: float | Mapping[str, float] | None = None,
        steps: int | None = None,
        noise_level: float | None = None,
        output: str = "pil",
        on_step: Any = None,
        **options: Any,
    ) -> Any:
        """Images of the last model's size, from the options of `LatentDiffusion.generate`.

        `guidance`, `steps` and the other options of sampling are those of the base. The enlarging models are sampled
        with their own defaults, with noise of `noise_level` added to the images they enlarge.
        """
        check_output(output)
        base: Any = self.stages[0]
        images = base.generate(prompt, guidance=guidance, steps=steps, output="pt", on_step=on_step, **options)
        kept = {key: options[key] for key in ("seed", "batch_size") if key in options}
        enlargers: Any = self.stages[1:]
        for stage in enlargers:
            conditions = self._conditions(stage, prompt, options, len(images))
            images = enlarge(stage, images, conditions, noise_level, **kept)
        last: Any = self.stages[-1]
        return as_output(images, output, last.preprocess)

    def _conditions(self, stage: Any, prompt: Any, options: dict[str, Any], count: int) -> dict[str, list]:
        """The conditions of the base that the model `stage` was trained with too, one for each image."""
        conditions = {}
        for key, value in {"text": prompt, "label": options.get("labels")}.items():
            if value is not None and key in stage.conditioner.inputs:
                values = [value] if isinstance(value, (str, int)) else list(value)
                conditions[key] = [v for v in values for _ in range(count // len(values))]
        return conditions


def enlarge(
    model: LatentDiffusion,
    images: Tensor,
    conditions: dict[str, list],
    noise_level: float | None = None,
    **options: Any,
) -> Tensor:
    """Images (B, C, h, w) in [-1, 1], enlarged by a model for super-resolution: (B, C, scale h, scale w)."""
    given = {**conditions, "low_res": list(images.to(model.latent_mean.device))}
    if noise_level is not None:
        given["noise_level"] = [noise_level]
    return model.generate_for(given, **options)


def check_fit(before: LatentDiffusion, after: LatentDiffusion) -> None:
    """Raises UserError if the model `after` doesn't enlarge, or enlarges images of another size than `before`'s."""
    if after.scale == 1:
        raise UserError("a cascade's models after the first must have been trained to enlarge (conditioner=low_res).")
    made, wanted = before.preprocess.shape, after.preprocess.shape
    if (made[0], made[1] * after.scale, made[2] * after.scale) != wanted:
        small = tuple(side // after.scale for side in wanted[1:])
        raise UserError(
            f"the model before generates {made[0]} x {made[1]} x {made[2]} (channels, height, width); this one "
            f"enlarges {wanted[0]} x {small[0]} x {small[1]}."
        )


def cascade(models: Sequence[Any], device: str | torch.device) -> Cascade:
    """The cascade of loaded models, the smallest first. Raises UserError for adapters and autoencoders."""
    for model in models:
        if not isinstance(model, LatentDiffusion):
            raise UserError(f"a {type(model).__name__} can't be part of a cascade; name runs of train_ldm.py.")
    return Cascade(*models).to(device)
