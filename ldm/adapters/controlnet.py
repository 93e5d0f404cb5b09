"""ControlNets on a model: their model folder, the control images drawn after, and how much each of them counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.adapters.base import Adapter, read
from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.images.hints import ColumnHint, Hint
from ldm.images.preprocess import Preprocess
from ldm.networks import Cond, Controlled, ControlNet
from ldm.networks.computing.finite import is_finite
from ldm.networks.controlnet import AnyControlNet, weights_of

Settings = float | Mapping[str, float] | None  # for all ControlNets, or by name; None: as loaded


@register
class Control(Adapter):
    """A ControlNet and the kind of control image that it was trained on. It counts `scale`, in the steps from the share
    `begin` to the share `end` of all, unless said otherwise for a picture."""

    scale, begin, end = 1.0, 0.0, 1.0

    def __init__(self, network: AnyControlNet, hint: Hint, base: Mapping[str, str] | None = None):
        super().__init__(base)
        self.network, self.hint = network, hint

    def attach(self, model: Any, name: str, scale: float) -> None:
        inner = model.denoiser.network
        base = inner.network if isinstance(inner, Controlled) else inner
        factor = model.first_stage.factor * getattr(base, "patch", 1)
        reasons = self.network.misfits(base)
        if self.network.factor != factor:
            reasons.append(f"control images of {self.network.factor} times the features' size, the model's {factor}")
        if reasons:
            raise UserError(f"the ControlNet '{name}' doesn't fit the model: {'; '.join(reasons)}.")
        self.scale = scale
        if not isinstance(inner, Controlled):
            model.denoiser.network = Controlled(inner)
        model.denoiser.network.add(name, self.network.to(model.latent_mean.device))


def open_control(path: str | Path) -> Control:
    """The ControlNet in a run, a model folder, a folder of diffusers' ControlNetModel or a CompVis checkpoint."""
    from ldm import interop

    path = Path(path).expanduser()
    if not interop.is_diffusers(path) and not (path.is_file() and interop.is_single_file(path)):
        adapter: Any = read(path)
    else:
        adapter = interop.load_single_file(path) if path.is_file() else interop.load_folder(path)
        if isinstance(adapter, ControlNet):
            adapter = Control(adapter, ColumnHint(channels=adapter.hint_channels))
    if not isinstance(adapter, Control):
        raise UserError(f"{path} holds a {type(adapter).__name__}, which is no ControlNet.")
    return adapter


@dataclass(frozen=True)
class Steering:
    """What pictures are drawn after. By ControlNet: `hints` (B, C, H, W) in [0, 1], `scales`, and from which to which
    share of the steps (`spans`). `guess`: see `steering`."""

    hints: dict[str, Tensor]
    scales: dict[str, float]
    spans: dict[str, tuple[float, float]]
    guess: bool = False

    def repeated(self, n: int) -> "Steering":
        """One control image for each of `n` pictures."""
        return replace(self, hints={name: _repeated(hint, n, name) for name, hint in self.hints.items()})

    def take(self, rows: Tensor) -> "Steering":
        return replace(self, hints={name: hint[send(rows, hint.device)] for name, hint in self.hints.items()})

    def steer(
        self, denoiser: Any, conds: Sequence[Cond], weights: Sequence[float], sigmas: Tensor, guidance: Any
    ) -> tuple[Any, list[Cond], list[float]]:
        """Denoiser, conditions (the last says everything) and their weights, with the ControlNets taking part.

        A span holds a step, as in diffusers, if it holds all of it; the steps' noise levels are `sigmas` (N + 1,).
        """
        conds, weights = list(conds), list(weights)
        if self.guess and len(conds) == 1 and isinstance(guidance, (int, float)) and guidance != 1:
            conds, weights = conds * 2, [1.0 - guidance, float(guidance)]  # away from what nothing controls
        shares = [0 if self.guess and i < len(conds) - 1 else 1 for i in range(len(conds))]
        told = [self._told(denoiser, cond, share) for cond, share in zip(conds, shares, strict=True)]
        if all(span == (0.0, 1.0) for span in self.spans.values()):
            return denoiser, told, weights
        levels = {name: _levels(span, sigmas) for name, span in self.spans.items()}

        def within(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            now = sigma[0].item()
            off = {name for name, (low, high) in levels.items() if not low <= now <= high}
            off |= {weights_of(name) for name in off}
            return denoiser(x, sigma, replace(cond, control={k: v for k, v in cond.control.items() if k not in off}))

        return within, told, weights

    def _told(self, denoiser: Any, cond: Cond, share: int) -> Cond:
        control = dict(cond.control)
        network = denoiser.network
        for name, net in zip(network.names, network.controlnets, strict=True):
            if name in self.hints:
                n = net.outputs
                even = torch.logspace(-1, 0, n) if self.guess and n > 1 else torch.ones(n)
                hint = self.hints[name]
                weights = send(share * self.scales[name] * even, hint.device)
                control |= {name: hint, weights_of(name): weights.expand(len(hint), n)}
        return replace(cond, control=control)


def steering(
    model: Any,
    control: Any,
    preprocess: Preprocess,
    scale: Settings = None,
    begin: Settings = None,
    end: Settings = None,
    guess: bool = False,
    made_from: Any = None,
) -> Steering | None:
    """What `model` shall draw after, read and checked; None without a control image.

    `control` is a control image or a list of them, or several by the names of their ControlNets; in its place
    `made_from` are pictures that control images are made of.

    With `guess`, diffusers' guess mode, the control image counts for the conditional prediction alone, and its finer
    residuals less, down to a tenth: what is there is guessed from it without a prompt, best with a guidance of 3 to 5.
    """
    controls = {name: a for name, (a, _) in model.adapters.items() if isinstance(a, Control)}
    if control is None and made_from is None:
        if guess or scale is not None or begin is not None or end is not None:
            raise UserError("a ControlNet's scale, start, end and guess mode need a control image: give control=.")
        return None
    if control is not None and made_from is not None:
        raise UserError("give control images or pictures to make them from, not both.")
    given = _by_name(made_from if control is None else control, controls)
    take = _made if control is None else _read
    device = model.latent_mean.device
    hints = {name: send(take(controls[name], image, preprocess), device) for name, image in given.items()}
    spans = {}
    for name in given:
        first, last = _setting(begin, name, controls[name].begin), _setting(end, name, controls[name].end)
        check_span(first, last)
        spans[name] = (first, last)
    return Steering(hints, {name: _setting(scale, name, controls[name].scale) for name in given}, spans, guess)


def check_span(start: float, end: float) -> None:
    if not 0 <= start < end <= 1:
        raise UserError(f"a ControlNet acts from start={start} to end={end}: shares of the steps, 0 to 1, rising.")


def _by_name(given: Any, controls: Mapping[str, Control]) -> dict[str, Any]:
    if not controls:
        raise UserError("the model has no ControlNet: put one on with load_controlnet (sample.py: control=RUN).")
    if not isinstance(given, Mapping):
        if len(controls) > 1:
            raise UserError(f"there are several ControlNets: say by name which image is whose: {', '.join(controls)}.")
        return {name: given for name in controls}
    if unknown := [name for name in given if name not in controls]:
        raise UserError(f"the model has no ControlNet '{unknown[0]}'.{did_you_mean(unknown[0], controls)}")
    return dict(given)


def _read(control: Control, given: Any, preprocess: Preprocess) -> Tensor:
    """Control images (B, C, H, W) as they are."""
    if isinstance(given, Tensor):
        hints = _finite(given)
    else:
        items = given if isinstance(given, (list, tuple)) else [given]
        hints = torch.stack([control.hint.read(item, preprocess) for item in items])
    wanted = (control.network.hint_channels, preprocess.height, preprocess.width)
    if tuple(hints.shape[1:]) != wanted:
        raise UserError(f"the control image is {tuple(hints.shape[1:])}; the ControlNet takes {wanted} for this size.")
    return hints.float()


def _made(control: Control, given: Any, preprocess: Preprocess) -> Tensor:
    """Control images (B, C, H, W) of the edges, greys or colours of pictures."""
    if control.hint.column != "image":
        raise UserError(
            f"this ControlNet's images aren't made from pictures but from a {control.hint.column}: give it."
        )
    if isinstance(given, Tensor):
        return control.hint(_finite(given))
    items = given if isinstance(given, (list, tuple)) else [given]
    arrays = [torch.from_numpy(preprocess.array(item)) for item in items]
    return control.hint(preprocess.to_tensor(torch.stack(arrays)))


def _finite(given: Tensor) -> Tensor:
    """A tensor of control images, or of those that they are made of, with a batch dimension."""
    if not is_finite(given):
        raise UserError("a control image has values that are infinite or no numbers: give finite ones.")
    return given[None] if given.ndim == 3 else given


def _setting(value: Settings, name: str, own: float) -> float:
    value = value.get(name) if isinstance(value, Mapping) else value
    return own if value is None else float(value)


def _levels(span: tuple[float, float], sigmas: Tensor) -> tuple[float, float]:
    """Lowest and highest sigma at which the steps of a span begin."""
    n = len(sigmas) - 1
    steps = [i for i in range(n) if i / n >= span[0] and (i + 1) / n <= span[1]]
    if not steps:
        return float("inf"), 0.0
    return sigmas[steps[-1]].item() * (1 - 1e-6), sigmas[steps[0]].item() * (1 + 1e-6)


def _repeated(hint: Tensor, n: int, name: str) -> Tensor:
    if n % len(hint):
        raise UserError(f"{len(hint)} control images of '{name}' for {n} pictures: give one, or one each.")
    return hint.repeat_interleave(n // len(hint), 0)
