"""Generating for the page: in a thread per request, with previews of unfinished images, until done or cancelled."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ldm.conditioning.text.truncation import sentences
from ldm.images import open_unconverted, to_pil8
from ldm.model.cascade import Cascade
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.ui.generating.models import Models, Traits, traits
from ldm.ui.generating.page_store import PageStore
from ldm.ui.generating.painting import undo_enlarging
from ldm.ui.generating.png_settings import text_chunks
from ldm.ui.generating.settings import Settings, check_image_size, check_settings
from ldm.ui.generating.turns import Turns

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PENDING = 4  # requests that read their images or wait for their turn, beside gradio's queue
PREVIEW_IMAGES = 4


class _Cancelled(Exception):
    """The request was cancelled: nobody waits for its images any more."""


@dataclass(frozen=True)
class Progress:
    """Step `step` of `steps` is done. `preview`, now and then, has what the denoiser predicts of the first images."""

    step: int
    steps: int
    preview: "tuple[Image, ...]" = ()


@dataclass(frozen=True)
class Waiting:
    """Images of other requests are being generated; `ahead` requests come before this one."""

    ahead: int = 1


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image: the file that holds it, the settings that generate it again, and `remarks` on words of its
    prompts that the model didn't read."""

    path: Path
    settings: Settings
    remarks: tuple[str, ...] = ()


class ImageGenerator:
    """Generates one request at a time, in the order in which they came. Thread-safe."""

    def __init__(self, models: Models, store: PageStore, preview_seconds: float = 0.4, batch_size: int = 32):
        self.models, self.store = models, store
        self.preview_seconds, self.batch_size = preview_seconds, batch_size
        self._turns, self._reads = Turns(), Turns()

    def generate(self, settings: Settings) -> Generator[Progress | Waiting | list[GeneratedImage], None, None]:
        """Yields `Waiting` now and then until the request's turn comes, then its progress, and at last the images.

        Closing the iterator ends the work at its next step. Raises UserError for settings that can't be generated.
        """
        closed, events = threading.Event(), queue.Queue[Any]()
        work = (check_settings(settings), closed.is_set, events.put)
        worker = threading.Thread(target=self._work, args=work, daemon=True)
        worker.start()
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, list):
                    return
        finally:
            closed.set()
            worker.join()

    def check(self, settings: Settings) -> None:
        """Raises UserError for settings that can't be generated. Takes the first step of one image and no more."""

        def stop(step: int, steps: int, denoised: Tensor) -> None:
            """Ends sampling at the first step."""
            raise _Cancelled

        with self._turn(settings) as inputs, contextlib.suppress(_Cancelled):
            model, about = self._model(check_settings(settings))
            given = _arguments(replace(settings, n=1), about, inputs) | _apply_adapters(model, settings, inputs)
            model.generate(on_step=stop, output="pt", **given)

    def _model(self, settings: Settings) -> tuple[LatentDiffusion, Traits]:
        loras = [lora[0] for lora in settings.loras]
        controls = [controlnet[0] for controlnet in settings.controlnets]
        model = self.models.get(settings.run, settings.checkpoint, loras, controls)
        about = traits(model)
        check_image_size(settings, about.width, about.height)
        return model, about

    @contextlib.contextmanager
    def _turn(
        self, settings: Settings, on_wait: Callable[[int], None] = lambda ahead: None
    ) -> "Iterator[Mapping[str, Image]]":
        """Holds the turn to generate, and yields the request's input images by name.

        They are read while another request generates, but for one request at a time: those that wait hold no memory.
        """
        with contextlib.ExitStack() as reading:
            inputs: dict[str, Any] = {}
            if names := _input_names(settings):
                reading.enter_context(self._reads.turn(lambda ahead: on_wait(ahead + len(self._turns))))
                inputs = {name: open_unconverted(self.store.input_path(name)) for name in names}
            with self._turns.turn(on_wait):
                reading.close()
                yield inputs

    def _work(self, settings: Settings, is_cancelled: Callable[[], bool], emit: Callable[[Any], None]) -> None:
        def on_wait(ahead: int) -> None:
            """Ends a cancelled request in the queue; reports the others as waiting."""
            if is_cancelled():
                raise _Cancelled
            emit(Waiting(ahead))

        try:
            with self._turn(settings, on_wait) as inputs:
                emit(self._generate(settings, inputs, is_cancelled, emit))
        except BaseException as error:  # raised again by the iterator, in the caller's thread
            emit(error)

    def _generate(
        self,
        settings: Settings,
        inputs: "Mapping[str, Image]",
        is_cancelled: Callable[[], bool],
        emit: Callable[[Any], None],
    ) -> list[GeneratedImage]:
        if is_cancelled():
            raise _Cancelled
        model, about = self._model(settings)
        area = (settings.width or about.width) * (settings.height or about.height)
        batch_size = max(1, self.batch_size * about.width * about.height // area)
        on_step = _StepWatch(
            model,
            batches=-(-len(_per_image(settings)) // batch_size),
            is_cancelled=is_cancelled,
            emit=emit,
            preview_seconds=self.preview_seconds,
        )
        given = _arguments(settings, about, inputs) | _apply_adapters(model, settings, inputs)
        whole = Cascade(model, self.models.get(settings.enlarge)) if settings.enlarge else model
        images = whole.generate(output="pt", batch_size=batch_size, on_step=on_step, **given)
        remarks = tuple(sentences(model.conditioner, filter(None, (settings.prompt, settings.negative))))
        return [
            self._save(image, replace(settings, **changes), about, remarks)
            for image, changes in zip(images, _per_image(settings), strict=True)
        ]

    def _save(self, image: Tensor, settings: Settings, about: Traits, remarks: tuple[str, ...]) -> GeneratedImage:
        pixels = _to_pil(image)
        path = self.store.save_image(pixels, text_chunks(settings, pixels.size, about.sampling), settings.seed)
        return GeneratedImage(path, settings, remarks)


class _StepWatch:
    """`on_step` of `LatentDiffusion.generate`: emits the progress over all batches, ends the work on cancelling."""

    def __init__(
        self,
        model: LatentDiffusion,
        batches: int,
        is_cancelled: Callable[[], bool],
        emit: Callable[[Any], None],
        preview_seconds: float,
    ):
        self.model, self.batches, self.is_cancelled, self.emit = model, batches, is_cancelled, emit
        self.preview_seconds = preview_seconds
        self._batch, self._previewed_at = -1, 0.0

    def __call__(self, step: int, steps: int, denoised: Tensor) -> None:
        if self.is_cancelled():
            raise _Cancelled
        if step == 0:
            self._batch += 1
        self.emit(Progress(self._batch * steps + step + 1, self.batches * steps, self._preview(denoised)))

    def _preview(self, denoised: Tensor) -> "tuple[Image, ...]":
        if time.monotonic() - self._previewed_at < self.preview_seconds:
            return ()
        images = self.model.preview(denoised[:PREVIEW_IMAGES])
        self._previewed_at = time.monotonic()  # after decoding, so that a slow decoder doesn't take all of the time
        return tuple(map(_to_pil, images))


def _to_pil(image: Tensor) -> "Image":
    """An image (C, H, W) in [-1, 1]; of one with two channels, or more than three, the channels that can be shown."""
    return to_pil8(image[: 1 if len(image) < 3 else 3])


def _per_image(settings: Settings) -> list[dict[str, Any]]:
    """For each image, the changes that make a request for it alone: its seed and its label."""
    labels: tuple[Any, ...] = settings.labels or (None,)
    conditions = [label for label in labels for _ in range(settings.n)]
    return [
        {"seed": settings.seed + i, "n": 1, "labels": () if label is None else (label,)}
        for i, label in enumerate(conditions)
    ]


def _input_names(settings: Settings) -> list[str]:
    """The stored inputs of a request: initial image, mask, map and control images."""
    names = (settings.image, settings.mask, settings.map, *(controlnet[-1] for controlnet in settings.controlnets))
    return list(dict.fromkeys(name for name in names if name))


def _arguments(settings: Settings, about: Traits, inputs: "Mapping[str, Image]") -> dict[str, Any]:
    """The arguments of `LatentDiffusion.generate`; `inputs` are the request's images by name."""
    given: dict[str, Any] = {"n": settings.n, "seed": settings.seed, **settings.options()}
    count = max(1, len(settings.labels))
    if settings.prompt:
        given["prompt"] = [settings.prompt] * count
    if settings.negative:
        given["negative"] = settings.negative
    if settings.labels:
        given["labels"] = list(settings.labels)
    if settings.map:
        given["map"] = [inputs[settings.map]] * count
    if settings.height is not None and settings.width is not None:
        given["size"] = (settings.height, settings.width)
    if settings.image:
        size = settings.width or about.width, settings.height or about.height
        given |= {"image": undo_enlarging(inputs[settings.image], size), "strength": settings.strength}
    if settings.mask:
        given |= {"mask": inputs[settings.mask], "feather": settings.feather}
    return given


def _apply_adapters(model: LatentDiffusion, settings: Settings, inputs: "Mapping[str, Image]") -> dict[str, Any]:
    """Sets the scales of the LoRAs; returns the ControlNets' arguments of `LatentDiffusion.generate`."""
    for i, (_, scale) in enumerate(settings.loras):
        model.scale_lora(f"lora_{i}", scale)
    if not settings.controlnets:
        return {}
    control: dict[str, dict[str, Any]] = {"scale": {}, "start": {}, "end": {}, "image": {}}
    for i, (_, weight, start, end, image) in enumerate(settings.controlnets):
        values = {"scale": weight, "start": start, "end": end, "image": inputs[image]}
        for key, value in values.items():
            control[key][f"control_{i}"] = value
    images = control.pop("image")
    sources = {"control": images} if settings.control_ready else {"control_from": images}
    return sources | {f"control_{key}": values for key, values in control.items()}
