"""ControlNets on a model: their model folder, their control images, scales and spans."""

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
    """A ControlNet and the kind of control image that it was trained on.

    Unless given otherwise when generating, its residuals are multiplied by `scale`, in the steps from the share `start`
    to the share `end` of all.
    """

    scale, start, end = 1.0, 0.0, 1.0

    def __init__(self, network: AnyControlNet, hint: Hint, base: Mapping[str, str] | None = None):
        super().__init__(base)
        self.network, self.hint = network, hint

    def attach(self, model: Any, name: str, scale: float) -> None:
        """Puts the ControlNet on the network of `model`. Raises UserError if it doesn't fit."""
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
        kind = type(adapter).__name__
        raise UserError(f"{path} holds a {kind}, not a ControlNet: name a run that trained one, or its folder.")
    return adapter


@dataclass(frozen=True)
class ControlImages:
    """Control images (B, C, H, W) in [0, 1] by the names of their ControlNets, with scales and spans.

    `scales` multiply the residuals. `spans` are the first and last share of the steps in which a ControlNet acts.
    `guess` is guess mode: see `control_images`.
    """

    images: dict[str, Tensor]
    scales: dict[str, float]
    spans: dict[str, tuple[float, float]]
    guess: bool = False

    def repeated(self, n: int) -> "ControlImages":
        """One control image for each of `n` images."""
        return replace(self, images={name: _repeated(image, n, name) for name, image in self.images.items()})

    def take(self, rows: Tensor) -> "ControlImages":
        """The control images of some of the images, by their indices `rows`."""
        return replace(self, images={name: image[send(rows, image.device)] for name, image in self.images.items()})

    def put_on(self, denoiser: Any, terms: Terms, sigmas: Tensor, guidance: Any) -> tuple[Any, Terms]:
        """Denoiser and terms with the ControlNets, each acting in its span.

        As in diffusers, a span includes a step only if it includes all of it; `sigmas` (N + 1,) are the noise levels of
        the steps.
        """
        if self.guess and not terms.others and isinstance(guidance, (int, float)) and guidance != 1:
            terms = classifier_free(terms.full, terms.full, float(guidance))  # away from the prediction without control
        names, networks = denoiser.network.names, denoiser.network.controlnets
        outputs = {name: net.outputs for name, net in zip(names, networks, strict=True) if name in self.images}
        share = 0.0 if self.guess else 1.0
        others = tuple((self._added(cond, outputs, share), weight) for cond, weight in terms.others)
        return self._within_spans(denoiser, sigmas), Terms(self._added(terms.full, outputs, 1.0), others)

    def _added(self, cond: Cond, outputs: Mapping[str, int], share: float) -> Cond:
        """`cond` with the control images and the weights of their residuals, which are `share` times the scales.

        `outputs` has the number of residuals of each ControlNet. In guess mode weights rise from a tenth to 1.
        """
        control, weights = dict(cond.control), dict(cond.control_weights)
        for name, n in outputs.items():
            profile = torch.logspace(-1, 0, n) if self.guess and n > 1 else torch.ones(n)
            image = self.images[name]
            control[name] = image
            weights[name] = send(share * self.scales[name] * profile, image.device).expand(len(image), n)
        return replace(cond, control=control, control_weights=weights)

    def _within_spans(self, denoiser: Any, sigmas: Tensor) -> Any:
        """`denoiser`, which at each step now leaves out the ControlNets whose span doesn't include the step."""
        if all(span == (0.0, 1.0) for span in self.spans.values()):
            return denoiser
        levels = {name: _levels(span, sigmas) for name, span in self.spans.items()}

        def within(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            """`x` (B, C, H, W) at `sigma` (B,), all the same -> x0 (B, C, H, W)."""
            now = sigma[0].item()
            off = {name for name, (low, high) in levels.items() if not low <= now <= high}
            return denoiser(x, sigma, cond.without_control(off))

        return within


def control_images(
    model: Any,
    control: Any,
    preprocess: Preprocess,
    scale: Settings = None,
    start: Settings = None,
    end: Settings = None,
    guess: bool = False,
    control_from: Any = None,
) -> ControlImages | None:
    """The control images for `model`, read and checked; None if none is given.

    `control` is a control image or a list of them, or several by the names of their ControlNets. Instead,
    `control_from` are images from which control images are made. `scale`, `start` and `end` replace those with which
    the ControlNets were loaded.

    In guess mode, as in diffusers, only the conditional prediction uses the control image, and its finer residuals
    count less, down to a tenth. The content is then guessed from the control image without a prompt, best with a
    guidance scale of 3 to 5.
    """
    controls = {name: a for name, (a, _) in model.adapters.items() if isinstance(a, Control)}
    if control is None and control_from is None:
        if guess or scale is not None or start is not None or end is not None:
            raise UserError("a ControlNet's scale, start, end and guess mode need a control image: give control=.")
        return None
    if control is not None and control_from is not None:
        raise UserError("give control images or images to make them from, not both.")
    given = _by_name(control_from if control is None else control, controls)
    read_or_make = _made if control is None else _read
    device = model.latent_mean.device
    images = {name: send(read_or_make(controls[name], image, preprocess), device) for name, image in given.items()}
    scales: dict[str, float] = {}
    spans: dict[str, tuple[float, float]] = {}
    for name in given:
        own = controls[name]
        first, last = _setting(start, name, own.start), _setting(end, name, own.end)
        check_span(first, last)
        scales[name], spans[name] = _setting(scale, name, own.scale), (first, last)
    return ControlImages(images, scales, spans, guess)


def check_span(start: float, end: float) -> None:
    """Raises UserError unless 0 <= start < end <= 1."""
    if not 0 <= start < end <= 1:
        raise UserError(
            f"a ControlNet's start={start}, end={end}: give shares of the steps between 0 and 1, with start below end."
        )


def _by_name(given: Any, controls: Mapping[str, Control]) -> dict[str, Any]:
    """The images by the names of the ControlNets on the model. Raises UserError for unknown or missing names."""
    if not controls:
        raise UserError("the model has no ControlNet: add one with load_controlnet (sample.py: control=RUN).")
    if not isinstance(given, Mapping):
        if len(controls) > 1:
            raise UserError(
                f"there are several ControlNets: give control={{NAME: image}}, where NAME is one of "
                f"{', '.join(controls)}."
            )
        return {name: given for name in controls}
    if unknown := [name for name in given if name not in controls]:
        raise UserError(f"the model has no ControlNet '{unknown[0]}'.{did_you_mean(unknown[0], controls)}")
    return dict(given)


def _read(control: Control, given: Any, preprocess: Preprocess) -> Tensor:
    """Reads control images that are given ready-made: (B, C, H, W) in [0, 1]."""
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
    """Control images (B, C, H, W) in [0, 1] made from images: their edges, grey values or colours."""
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
    """A tensor of images (C, H, W) or (B, C, H, W) with a batch dimension. Raises UserError if it isn't finite."""
    if not is_finite(given):
        raise UserError("a control image has infinite values or NaN: give finite values.")
    return given[None] if given.ndim == 3 else given


def _setting(value: Settings, name: str, own: float) -> float:
    value = value.get(name) if isinstance(value, Mapping) else value
    return own if value is None else float(value)


def _levels(span: tuple[float, float], sigmas: Tensor) -> tuple[float, float]:
    """The lowest and highest sigma at which steps in the span start."""
    n = len(sigmas) - 1
    steps = [i for i in range(n) if i / n >= span[0] and (i + 1) / n <= span[1]]
    if not steps:
        return float("inf"), 0.0
    return sigmas[steps[-1]].item() * (1 - 1e-6), sigmas[steps[0]].item() * (1 + 1e-6)


def _repeated(hint: Tensor, n: int, name: str) -> Tensor:
    if n % len(hint):
        raise UserError(
            f"{len(hint)} control images of '{name}' for {n} images: give one control image, or one for each."
        )
    return hint.repeat_interleave(n // len(hint), 0)
