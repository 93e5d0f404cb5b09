"""ControlNets on a model: their model folder, their control images, and how much each of them counts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.adapters.adapter import Adapter, read
from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.diffusion import Terms, classifier_free
from ldm.images.hints import ColumnHint, Hint
from ldm.images.preprocess import Preprocess
from ldm.networks import Cond, Controlled, ControlNet
from ldm.networks.computing.finite import is_finite
from ldm.networks.controlnet import AnyControlNet

Settings = float | Mapping[str, float] | None  # for all ControlNets, or by name; None: as loaded


@register
class Control(Adapter):
    """A ControlNet and the kind of control image that it was trained on. It counts `scale`, in the steps from the share
    `start` to the share `end` of all, unless given otherwise for an image."""

    scale, start, end = 1.0, 0.0, 1.0

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
class ControlImages:
    """What ControlNets are given for some images, by the ControlNet's name: control images (B, C, H, W) in [0, 1], how
    much each counts (`scales`), and from which to which share of the steps (`spans`). `guess`: see `control_images`."""

    images: dict[str, Tensor]
    scales: dict[str, float]
    spans: dict[str, tuple[float, float]]
    guess: bool = False

    def repeated(self, n: int) -> "ControlImages":
        """One control image for each of `n` images."""
        return replace(self, images={name: _repeated(image, n, name) for name, image in self.images.items()})

    def take(self, rows: Tensor) -> "ControlImages":
        """Those of some of the images."""
        return replace(self, images={name: image[send(rows, image.device)] for name, image in self.images.items()})

    def put_on(self, denoiser: Any, terms: Terms, sigmas: Tensor, guidance: Any) -> tuple[Any, Terms]:
        """Denoiser and terms with the ControlNets taking part, each in its span.

        A span holds a step, as in diffusers, if it holds all of it; the steps' noise levels are `sigmas` (N + 1,).
        """
        if self.guess and not terms.others and isinstance(guidance, (int, float)) and guidance != 1:
            terms = classifier_free(terms.full, terms.full, float(guidance))  # away from what nothing controls
        names, networks = denoiser.network.names, denoiser.network.controlnets
        outputs = {name: net.outputs for name, net in zip(names, networks, strict=True) if name in self.images}
        elsewhere = 0.0 if self.guess else 1.0
        others = tuple((self._added(cond, outputs, elsewhere), weight) for cond, weight in terms.others)
        return self._within_spans(denoiser, sigmas), Terms(self._added(terms.full, outputs, 1.0), others)

    def _added(self, cond: Cond, outputs: Mapping[str, int], share: float) -> Cond:
        """`cond` with the control images, whose residuals count `share` times their scales."""
        control, weights = dict(cond.control), dict(cond.control_weights)
        for name, n in outputs.items():
            even = torch.logspace(-1, 0, n) if self.guess and n > 1 else torch.ones(n)
            image = self.images[name]
            control[name] = image
            weights[name] = send(share * self.scales[name] * even, image.device).expand(len(image), n)
        return replace(cond, control=control, control_weights=weights)

    def _within_spans(self, denoiser: Any, sigmas: Tensor) -> Any:
        """`denoiser` without the ControlNets whose span doesn't hold the step."""
        if all(span == (0.0, 1.0) for span in self.spans.values()):
            return denoiser
        levels = {name: _levels(span, sigmas) for name, span in self.spans.items()}

        def within(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            now = sigma[0].item()
            off = {name for name, (low, high) in levels.items() if not low <= now <= high}
            return denoiser(x, sigma, cond.without_control(off))

        return within


def control_images(
    model: Any,
    control: Any,
    preprocess: Preprocess,
    scale: Settings = None,
    begin: Settings = None,
    end: Settings = None,
    guess: bool = False,
    made_from: Any = None,
) -> ControlImages | None:
    """The control images for `model`, read and checked; None where none is given.

    `control` is a control image or a list of them, or several by the names of their ControlNets; in its place
    `made_from` are images that control images are made from.

    With `guess`, diffusers' guess mode, the control image counts for the conditional prediction alone, and its finer
    residuals less, down to a tenth: what is there is guessed from it without a prompt, best with a guidance of 3 to 5.
    """
    controls = {name: a for name, (a, _) in model.adapters.items() if isinstance(a, Control)}
    if control is None and made_from is None:
        if guess or scale is not None or begin is not None or end is not None:
            raise UserError("a ControlNet's scale, start, end and guess mode need a control image: give control=.")
        return None
    if control is not None and made_from is not None:
        raise UserError("give control images or images to make them from, not both.")
    given = _by_name(made_from if control is None else control, controls)
    take = _made if control is None else _read
    device = model.latent_mean.device
    hints = {name: send(take(controls[name], image, preprocess), device) for name, image in given.items()}
    spans = {}
    for name in given:
        first, last = _setting(begin, name, controls[name].start), _setting(end, name, controls[name].end)
        check_span(first, last)
        spans[name] = (first, last)
    return ControlImages(hints, {name: _setting(scale, name, controls[name].scale) for name in given}, spans, guess)


def check_span(start: float, end: float) -> None:
    """Raises UserError for shares of the steps that aren't rising from 0 to 1."""
    if not 0 <= start < end <= 1:
        raise UserError(f"a ControlNet acts from start={start} to end={end}: shares of the steps, 0 to 1, rising.")


def _by_name(given: Any, controls: Mapping[str, Control]) -> dict[str, Any]:
    if not controls:
        raise UserError("the model has no ControlNet: put one on with load_controlnet (sample.py: control=RUN).")
    if not isinstance(given, Mapping):
        if len(controls) > 1:
            raise UserError(
                f"there are several ControlNets: give control={{NAME: image}}, by the names {', '.join(controls)}."
            )
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
    """Control images (B, C, H, W) of the edges, greys or colours of images."""
    if control.hint.column != "image":
        raise UserError(
            f"this ControlNet's control images are made from a {control.hint.column}, not from an image: give control=."
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
        raise UserError(f"{len(hint)} control images of '{name}' for {n} images: give one, or one each.")
    return hint.repeat_interleave(n // len(hint), 0)
