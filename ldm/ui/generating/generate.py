"""Drawing for the page: in a thread of its own, with looks at the unfinished pictures, and an end when asked."""

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
from ldm.images import grid, to_pil8, turned
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.ui.generating.models import Models, Traits, traits
from ldm.ui.generating.png_settings import chunks
from ldm.ui.generating.queue import Turns
from ldm.ui.generating.settings import Settings, check_size, checked
from ldm.ui.generating.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

AT_ONCE = 4  # requests whose images are read, or that wait for their turn, beside gradio's queue
PREVIEWED = 4  # pictures in a look at the unfinished


class Cancelled(Exception):
    """Nobody waits for the images any more."""


@dataclass(frozen=True)
class Progress:
    """Step `step` of `steps` is done; `preview`, now and then, is what the denoiser makes of the first pictures."""

    step: int
    steps: int
    preview: "Image | None" = None


@dataclass(frozen=True)
class Waits:
    """Others' images are being generated."""


@dataclass(frozen=True)
class Drawn:
    """A finished picture, the file that keeps it, what draws it again, and what of its prompts wasn't read."""

    path: Path
    settings: Settings
    remarks: tuple[str, ...] = ()


class Painter:
    """Draws one request at a time, whoever asks."""

    def __init__(self, models: Models, store: Store, preview_seconds: float = 0.4, batch_size: int = 32):
        self.models, self.store = models, store
        self.preview_seconds, self.batch_size = preview_seconds, batch_size
        self._turns, self._reads = Turns(), Turns()

    def draw(self, settings: Settings) -> Generator[Progress | Waits | list[Drawn], None, None]:
        """`Waits` now and then until its turn, progress while it lasts, at last the pictures. Raises UserError for what
        can't be.

        When the iterator is closed, the drawing ends at its next step.
        """
        closed, events = threading.Event(), queue.Queue[Any]()
        worker = threading.Thread(target=self._work, args=(checked(settings), closed.is_set, events.put), daemon=True)
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
        """Raises UserError for what can't be drawn: takes the first step of one image, and no more."""

        def stop(step: int, steps: int, denoised: Tensor) -> None:
            raise Cancelled

        with self._turn(settings) as inputs, contextlib.suppress(Cancelled):
            model, about = self._model(checked(settings))
            given = arguments(replace(settings, n=1), about, inputs) | steered(model, settings, inputs)
            model.generate(on_step=stop, output="pt", **given)

    def _model(self, settings: Settings) -> tuple[LatentDiffusion, Traits]:
        loras, controls = ([one[0] for one in some] for some in (settings.loras, settings.controlnets))
        model = self.models.get(settings.run, settings.checkpoint, loras, controls)
        about = traits(model)
        check_size(settings, about.width, about.height)
        return model, about

    @contextlib.contextmanager
    def _turn(self, settings: Settings, waits: Callable[[], None] = lambda: None) -> "Iterator[Mapping[str, Image]]":
        """The turn to generate, with the images that a request begins from, by name. They are read before, beside
        others' generating, and for one request at a time, so that those that wait hold no memory."""
        with contextlib.ExitStack() as reading:
            inputs: dict[str, Any] = {}
            if names := input_names(settings):
                reading.enter_context(self._reads.turn(waits))
                inputs = {name: turned(self.store.input(name)) for name in names}
            with self._turns.turn(waits):
                reading.close()
                yield inputs

    def _work(self, settings: Settings, stop: Callable[[], bool], tell: Callable[[Any], None]) -> None:
        def waits() -> None:
            if stop():
                raise Cancelled
            tell(Waits())

        try:
            with self._turn(settings, waits) as inputs:
                tell(self._draw(settings, inputs, stop, tell))
        except BaseException as error:  # the iterator raises it where the user is
            tell(error)

    def _draw(
        self,
        settings: Settings,
        inputs: "Mapping[str, Image]",
        stop: Callable[[], bool],
        tell: Callable[[Any], None],
    ) -> list[Drawn]:
        if stop():
            raise Cancelled
        model, about = self._model(settings)
        area = (settings.width or about.width) * (settings.height or about.height)
        at_once = max(1, self.batch_size * about.width * about.height // area)
        watch = Watch(model, settings, at_once, stop, tell, self.preview_seconds)
        given = arguments(settings, about, inputs) | steered(model, settings, inputs)
        images = model.generate(output="pt", batch_size=at_once, on_step=watch, **given)
        remarks = tuple(sentences(model.conditioner, filter(None, (settings.prompt, settings.negative))))
        return [
            self._keep(image, replace(settings, **one), about, remarks)
            for image, one in zip(images, each(settings), strict=True)
        ]

    def _keep(self, image: Tensor, settings: Settings, about: Traits, remarks: tuple[str, ...]) -> Drawn:
        picture = to_pil8(image[: 1 if len(image) < 3 else 3])
        path = self.store.save_picture(picture, chunks(settings, picture.size, about.sampling), settings.seed)
        return Drawn(path, settings, remarks)


class Watch:
    """`on_step` of a drawing: tells how far it is, ends it when cancelled."""

    def __init__(
        self,
        model: LatentDiffusion,
        settings: Settings,
        batch_size: int,
        stop: Callable[[], bool],
        tell: Callable[[Any], None],
        preview_seconds: float,
    ):
        self.model, self.stop, self.tell, self.pause = model, stop, tell, preview_seconds
        self.batches = -(-len(each(settings)) // batch_size)
        self._batch, self._shown = -1, 0.0

    def __call__(self, step: int, steps: int, denoised: Tensor) -> None:
        if self.stop():
            raise Cancelled
        self._batch += step == 0
        self.tell(Progress(self._batch * steps + step + 1, self.batches * steps, self._look(denoised)))

    def _look(self, denoised: Tensor) -> "Image | None":
        if time.monotonic() - self._shown < self.pause:
            return None
        images = self.model.decode(denoised[:PREVIEWED])
        self._shown = time.monotonic()  # after decoding: a slow decoder isn't to take all the time there is
        return grid(images, len(images))


def each(settings: Settings) -> list[dict[str, Any]]:
    """What makes each picture of a request a request of its own: its seed, and its label."""
    labels: tuple[Any, ...] = settings.labels or (None,)
    conditions = [label for label in labels for _ in range(settings.n)]
    return [
        {"seed": settings.seed + i, "n": 1, "labels": () if label is None else (label,)}
        for i, label in enumerate(conditions)
    ]


def input_names(settings: Settings) -> list[str]:
    """The kept images that a request begins from."""
    names = (settings.image, settings.mask, settings.map, *(one[-1] for one in settings.controlnets))
    return list(dict.fromkeys(name for name in names if name))


def arguments(settings: Settings, about: Traits, inputs: "Mapping[str, Image]") -> dict[str, Any]:
    """The arguments of `LatentDiffusion.generate`, with the images by their names in the request."""
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
        given |= {"image": plain(inputs[settings.image], about), "strength": settings.strength}
    if settings.mask:
        given |= {"mask": inputs[settings.mask], "feather": settings.feather}
    return given


def plain(picture: "Image", about: Traits) -> "Image":
    """An input; one that was only enlarged for the eye, each pixel to a square, as it was before."""
    import numpy as np
    from PIL import Image

    times = picture.width // about.width
    if times > 1 and picture.size == (times * about.width, times * about.height):
        small = picture.resize((about.width, about.height), Image.Resampling.NEAREST)
        if np.array_equal(np.asarray(enlarged(small, times)), np.asarray(picture)):
            return small
    return picture


def enlarged(picture: "Image", times: int) -> "Image":
    """Each pixel as a square of `times` by `times`."""
    from PIL import Image

    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def steered(model: LatentDiffusion, settings: Settings, inputs: "Mapping[str, Image]") -> dict[str, Any]:
    """Sets the LoRAs' scales; what the ControlNets add to the arguments of `generate`."""
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
    shown = {"control": images} if settings.control_ready else {"control_from": images}
    return shown | {f"control_{key}": values for key, values in control.items()}
