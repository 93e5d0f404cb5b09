"""What is shown while requests are generated: the status with its progress, previews, finished images."""

import html
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ldm.ui.generating.image_generator import GeneratedImage, ImageGenerator, Waiting
from ldm.ui.generating.settings import Settings
from ldm.ui.page.messages import error_message

if TYPE_CHECKING:
    from PIL.Image import Image


def bar(text: str, share: float = 0.0, state: str = "") -> str:
    """A progress bar with text; `share` is from 0 to 1, `state` empty, done or stopped.

    Screen readers announce what isn't hidden from them: the start and the end, not each of many steps.
    """
    percent = round(100 * min(max(share, 0.0), 1.0))
    hidden = ' aria-hidden="true"' if share > 0 and not state else ""
    progress = (
        f'<div role="progressbar" aria-label="Progress" aria-valuenow="{percent}" style="width:{percent}%"></div>'
    )
    return f'<div class="ldm-bar {state}">{progress}<span{hidden}>{html.escape(text)}</span></div>'


WAITING = f"() => {json.dumps(bar('Waiting…'))}"  # shown by the browser, since the server may be busy
STOPPED = bar("Stopped: unfinished images aren't saved", 1, "stopped")
# After an error or a cancelled request; an error's own status stays.
ENDED = f"(status) => (status ?? '').includes('Failed') ? status : {json.dumps(STOPPED)}"


@dataclass
class Shown:
    """The status of requests, previews of the images in progress, and all images that are finished; `last` is whether
    that is all."""

    status: str
    previews: "tuple[Image, ...]" = ()
    finished: list[GeneratedImage] = field(default_factory=list)
    last: bool = False


def generate_all(generator: ImageGenerator, requests: Sequence[Settings]) -> Iterator[Shown]:
    """Generates one request after the other; closing the iterator ends the work."""
    finished: list[GeneratedImage] = []
    clock = _TimeLeft()
    for i, request in enumerate(requests):
        of = f", {i + 1} of {len(requests)}" if len(requests) > 1 else ""
        with closing(generator.generate(request)) as generating:
            for event in generating:
                if isinstance(event, list):
                    finished = [*finished, *event]
                    yield Shown(
                        bar(f"Saved{of}", (i + 1) / len(requests)), finished=finished, last=i + 1 == len(requests)
                    )
                elif isinstance(event, Waiting):
                    before = "1 request" if event.ahead <= 1 else f"{event.ahead} requests"
                    yield Shown(bar(f"Waiting for {before} before yours{of}", i / len(requests)), finished=finished)
                else:
                    share = (i + event.step / event.steps) / len(requests)
                    text = f"Step {event.step} of {event.steps}{of}{clock.left(share)}"
                    yield Shown(bar(text, share), event.preview, finished)


class _TimeLeft:
    """The time left, from the time that the work has taken since its first step."""

    def __init__(self) -> None:
        self.start: tuple[float, float] | None = None

    def left(self, share: float) -> str:
        """`, 12 s left` for a share of the work that is done; empty while that isn't known."""
        now = time.monotonic()
        if self.start is None:
            self.start = now, share
        began, first = self.start
        if share <= first or now - began < 1:
            return ""
        seconds = round((1 - share) * (now - began) / (share - first))
        return f", {seconds // 60} min {seconds % 60} s left" if seconds >= 60 else f", {seconds} s left"


def reporting(status: Any, function: Callable[..., Iterator[dict[Any, Any]]]) -> Callable[..., Iterator[Any]]:
    """A generator function of updates by component, with its error in `status` and as a message."""

    def stream(*args: Any) -> Iterator[Any]:
        """The updates of `function`; its error ends them."""
        try:
            yield from function(*args)
        except Exception as error:
            message = error_message(error)
            yield {status: bar(f"Failed: {html.unescape(message.message)}", 1, "stopped")}
            raise message from error

    return stream
