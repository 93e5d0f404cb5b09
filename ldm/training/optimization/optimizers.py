"""AdamW, AdamW with its state in 8 bits, and Muon for matrices with AdamW for the rest."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError, did_you_mean

NAMES = ("adamw", "adamw8bit", "muon")
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic, steep at 0 (Jordan et al. 2024)
# First and last layers: their rows are colours or latent channels, whose scales differ and mean something.
ENDS = ("conv_in", "conv_out", "linear_out", "class_embedding", "shortcut_in", "shortcut_out")


def check_name(name: str) -> str:
    """`name`. Raises UserError for an unknown optimizer, and for one whose package isn't installed."""
    if name not in NAMES:
        raise UserError(f"optimizer.name={name} isn't known.{did_you_mean(name, NAMES)}")
    if name == "adamw8bit":
        _eight_bit()
    return name


def groups_of(name: str, module: nn.Module) -> list[dict[str, Any]]:
    """The optimizer's groups of the parameters of `module` that train; those that Muon orthogonalises are a group."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if name != "muon":
        return [{"params": trained}]
    hidden = {id(p) for p in matrices(module)}
    groups = [
        {"params": [p for p in trained if id(p) in hidden], "matrix": True},
        {"params": [p for p in trained if id(p) not in hidden], "matrix": False},
    ]
    return [group for group in groups if group["params"]]


def matrices(module: nn.Module) -> list[Tensor]:
    """The weights of hidden linear layers and convolutions: no norms, biases, embeddings, first and last layers."""
    return [
        layer.weight
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        and path.rpartition(".")[2] not in ENDS
        and min(layer.weight.flatten(1).shape) > 1
    ]


def build_optimizer(
    name: str,
    groups: Iterable[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimizer, fused in every precision so that `found_inf` can have it skip a step; see
    `gradients.obeys_found_inf`.

    On MPS it isn't fused, because that kernel ignores both `found_inf` and the scale.
    """
    groups = list(groups)
    if check_name(name) == "adamw8bit":
        return _eight_bit()(_contiguous(groups), lr=lr, betas=betas, weight_decay=weight_decay)
    kind = Muon if name == "muon" else torch.optim.AdamW
    fused = not any(parameter.device.type == "mps" for group in groups for parameter in group["params"])
    optimizer = kind(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
    optimizer.register_load_state_dict_pre_hook(partial(_as_made, fused))
    optimizer.register_load_state_dict_post_hook(_laid_out)
    return optimizer


def _eight_bit() -> Any:
    """AdamW with its two averages in 8 bits and a scale for every 256 values (Dettmers et al. 2022, arXiv 2110.02861).

    It takes a quarter of the state's memory. Tensors of less than 4096 values keep float32 averages.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "optimizer.name=adamw8bit needs bitsandbytes: pip install 'ldm[adamw8bit]', or use optimizer.name=adamw."
        ) from None
    return AdamW8bit


def _contiguous(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups, with their parameters laid out in memory as bitsandbytes would lay them out in its first step: a
    later change would make networks compile again."""
    for group in groups:
        for parameter in group["params"]:
            parameter.data = parameter.data.contiguous()
    return groups


def _as_made(fused: bool, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of another optimizer, fused or not, converted for this one."""
    return state | {"param_groups": [group | {"fused": fused, "foreach": None} for group in state["param_groups"]]}


def _laid_out(optimizer: torch.optim.Optimizer) -> None:
    """Lays each state out in memory like its parameter: fused kernels assume the same layout of both, and a run with
    another strategy may have saved another."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if type(value) is Tensor and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Muon(torch.optim.AdamW):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024, "Muon") for groups with `matrix` set; else AdamW.

    A matrix's step is U V^T of its Nesterov momentum U S V^T, so all directions move by the same amount, times
    0.2 sqrt(max(m, n)). That is the size of AdamW's steps, so one learning rate and weight decay serve both (Liu et al.
    2025, arXiv 2502.16982, eq. 4). Convolutions count as matrices of (out, in * height * width). A step costs 15
    products of an m x n by an m x m matrix.

    Like torch's fused optimizers it obeys `found_inf` and `grad_scale`, tensors () that a `GradScaler` or the run's
    guard sets: where `found_inf` is 1, the step changes nothing.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float = 0.95, **options: Any):
        super().__init__([{"matrix": False, "momentum": momentum, **group} for group in groups], **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step: matrices by orthogonalised momentum, the other parameters by AdamW."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        for group in every:
            if group["matrix"]:
                self._step_matrices(group)
        self.param_groups = [group for group in every if not group["matrix"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        decay = 1 - group["lr"] * group["weight_decay"]
        for shape, parameters in alike.items():
            steps = orthogonalised(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
            scale = 0.2 * max(steps.shape[1:]) ** 0.5
            for parameter, step in zip(parameters, self._unless_skipped(steps, torch.zeros_like(steps)), strict=True):
                parameter.mul_(self._unless_skipped(decay, 1.0))
                parameter.add_(step.view(shape), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's momentum of a gradient, as a matrix (m, n)."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW looks for one when it is restored
        assert parameter.grad is not None
        scale = getattr(self, "grad_scale", None)
        gradient = parameter.grad if scale is None else parameter.grad / scale
        gradient = self._unless_skipped(
            gradient, state["momentum"]
        )  # which leaves the momentum as it is in a skipped step
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum).flatten(1)

    def _unless_skipped(self, value: Any, other: Any) -> Any:
        """`value`, or in a skipped step `other`; the host doesn't know which."""
        found = getattr(self, "found_inf", None)
        return value if found is None else torch.where(found > 0, other, value)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately U V^T of each `matrix` (B, m, n) = U S V^T: singular values come to lie between 0.7 and 1.2.

    x <- a x + (b A + c A^2) x with A = x x^T, on x scaled to a Frobenius norm of 1, is an odd polynomial of the
    singular values and leaves U and V alone. In bfloat16 on a GPU, as published.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16) if matrix.device.type == "cuda" else matrix
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the smaller side squared
    for _ in range(steps):
        square = x @ x.mT  # (B, m, m)
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    return (x.mT if tall else x).to(matrix.dtype)
