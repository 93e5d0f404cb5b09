"""`finetune=distill`: a student of a trained model that generates in one to four evaluations."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from ldm.adapters import lora
from ldm.common.errors import UserError
from ldm.common.registry import build, parameters, register, spec_of
from ldm.diffusion import Denoiser
from ldm.diffusion.consistency import check_solver
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.training.averages import ema
from ldm.training.finetune.distill_task import DistillTask, Recipe
from ldm.training.finetune.kind import Finetune, Tables

NEW = "new"  # name of the LoRA that is trained
GUIDANCE_DIM = 256  # features of a guidance scale as a condition, as in diffusers


@register
class DistillFinetune(Finetune):
    """Consistency distillation (`ldm.diffusion.consistency`) of the base, including its guidance.

    `guidance` is the guidance scale of the base's steps. A number, by default the base's own, becomes fixed in the
    student; [least, most] makes the scale a condition of the student, so that users still choose it. With one segment
    the student is sampled by `lcm`, in 4 steps by default and at most `levels`, the number of noise levels that it is
    trained on; with several segments by `euler`, one step for each.

    One `solver` step of the base (heun, or euler at half the cost) covers `skip` levels. An average of the student's
    weights with `target_decay` gives the targets; with 0 the student itself does. `huber_c` is the error at which the
    loss turns from d^2 to |d|. With `lora` only a LoRA of `rank`, `alpha` and `targets` is trained, which also makes
    other fine-tunings of the base fast.
    """

    suffix = "fast"
    task = DistillTask

    def __init__(
        self,
        guidance: float | Sequence[float] | None = None,
        segments: int = 4,
        levels: int = 20,
        skip: int = 1,
        solver: str = "euler",
        target_decay: float = 0.9,
        huber_c: float = 1e-3,
        lora: bool = False,
        rank: int = 64,
        alpha: float | None = None,
        targets: str | Sequence[str] = "all",
    ):
        _check_levels(segments, levels, skip)
        _check_numbers(guidance, target_decay, huber_c)
        self.guidance, self.segments, self.levels, self.skip = guidance, segments, levels, skip
        self.solver, self.target_decay, self.huber_c = check_solver(solver), target_decay, huber_c
        self.lora, self.rank, self.alpha, self.targets = lora, rank, alpha, targets

    def check(self, model: LatentDiffusion, tables: Tables) -> None:
        """Raises UserError for a base that is itself distilled, and for a guidance scale that the student can't
        have."""
        if model.distilled:
            raise UserError("the base is itself distilled: give the model that it was made from as base=.")
        if self.lora and not isinstance(self.guidance, (int, float, type(None))):
            raise UserError(
                "lora=true needs one guidance scale, since a LoRA can't take the scale as a "
                "condition: give guidance= one number."
            )
        if "guidance_dim" not in parameters(spec_of(model.denoiser.network)["class"]) and self._is_slider:
            name = type(model.denoiser.network).__name__
            raise UserError(f"a {name} can't take the guidance scale as a condition: give guidance= one number.")
        self.scale = self._scale(model)
        super().check(model, tables)

    def _scale(self, model: LatentDiffusion) -> tuple[float, float]:
        """The smallest and largest guidance scale of the base's steps."""
        given = model.sampling["guidance"] if self.guidance is None else self.guidance
        if isinstance(given, Mapping):
            raise UserError(f"the base is guided by {dict(given)}, one scale per condition: give guidance= one number.")
        if not any(part.follows_guidance for part in model.conditioner.parts.values()):
            if self.guidance is not None and given != 1:
                raise UserError("the base has no condition for guidance: leave guidance= out.")
            return 1.0, 1.0
        least, most = given if isinstance(given, Sequence) else (given, given)
        return float(least), float(most)

    @property
    def _is_slider(self) -> bool:
        return isinstance(self.guidance, Sequence)

    def prepare(self, model: LatentDiffusion) -> None:
        """Puts the student in the base's place, and keeps the base as its teacher."""
        own = model.sampling
        self.recipe = Recipe(
            teacher=model.denoiser,
            scale=self.scale,
            interval=own.get("interval"),
            rescale=own.get("rescale") or 0.0,
            shift=own["shift"] if isinstance(own["shift"], (int, float)) else 1.0,
            levels=self.levels,
            segments=self.segments,
            skip=self.skip,
            solver=self.solver,
            target_decay=self.target_decay,
            huber_c=self.huber_c,
        )
        model.denoiser = self._student(model)
        usual = min(max(own["guidance"], self.scale[0]), self.scale[1]) if self._is_slider else 1.0
        many = {"sampler": "lcm", "steps": 4} if self.segments == 1 else {"sampler": "euler", "steps": self.segments}
        spacing = "beta" if "uniform" in model.denoiser.parameterization.to_sigma_min else None
        model.sampling = {**many, "guidance": usual, "spacing": spacing, "shift": own["shift"]}
        model.distilled = {"steps": self.levels if self.segments == 1 else self.segments}

    def _student(self, model: LatentDiffusion) -> Denoiser:
        if self.lora:
            self.recipe.teacher = ema.clone(model.denoiser)  # everything is frozen, and so shared
            lora.start(model, NEW, rank=self.rank, alpha=self.alpha, wanted=self.targets)
            return model.denoiser
        network = with_guidance(model.denoiser.network) if self._is_slider else deepcopy(model.denoiser.network)
        denoiser = with_network(model.denoiser, network)
        denoiser.network.train().requires_grad_(True)
        return denoiser

    def saved(self, model: LatentDiffusion, base: dict[str, str]) -> nn.Module:
        """The whole student, or with `lora` the LoRA alone, with its sampling defaults."""
        if not self.lora:
            return model
        few = {"sampling": dict(model.sampling), "distilled": dict(model.distilled)}
        return lora.trained(model, NEW, trigger=None, base=base, few=few)

    def weight_names(self, model: LatentDiffusion) -> dict[str, str]:
        """The names of the student's weights, or with `lora` those of the LoRA."""
        return lora.names_in_model(model, NEW) if self.lora else super().weight_names(model)


def with_guidance(network: Any) -> Any:
    """The same network with the guidance scale as a further condition, which has no effect yet."""
    wider = build({**spec_of(network), "guidance_dim": GUIDANCE_DIM})
    wider.load_state_dict(network.state_dict(), strict=False)
    return wider


def with_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    """A denoiser like `denoiser` around another network, which its spec then names."""
    options = {key: value for key, value in denoiser._spec.items() if key not in ("class", "network")}  # type: ignore
    return Denoiser(network, **options)


def _check_levels(segments: int, levels: int, skip: int) -> None:
    if levels < 2 or not 1 <= skip < levels:
        raise UserError(f"levels={levels}, skip={skip}: give at least 2 noise levels, and steps over at least 1 level.")
    if segments < 1 or levels % segments:
        raise UserError(f"segments={segments}, levels={levels}: the levels have to be a multiple of the segments.")


def _check_numbers(guidance: float | Sequence[float] | None, target_decay: float, huber_c: float) -> None:
    if not 0 <= target_decay < 1 or not huber_c > 0:
        raise UserError(
            f"target_decay={target_decay}, huber_c={huber_c}: the first has to be a share below 1, the second "
            "has to be above 0."
        )
    if isinstance(guidance, Sequence) and not (len(guidance) == 2 and 0 <= guidance[0] < guidance[1]):
        raise UserError(f"guidance={list(guidance)}: give one scale, or [least,most] for a range to choose from.")
