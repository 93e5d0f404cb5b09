"""A report in a folder of its own: report.html, the images it shows, and evaluation.json with every figure."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ldm.artifact import to_json
from ldm.common.files import atomic_write
from ldm.images import grid, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: left }
td + td, th + th { font-variant-numeric: tabular-nums } img { max-width: 100%; image-rendering: pixelated }
img.plot { image-rendering: auto; max-width: 42em } .pass { color: #176b2c } .fail { color: #a11 } .note { color: #555 }
"""


class HtmlReport:
    """Collects headings, tables, sentences and images in order; `save` writes them. With `embeds` the page holds its
    images itself, so that it is one file."""

    def __init__(self, folder: Path, title: str, embeds: bool = False):
        self.folder, self.title, self.embeds = folder, title, embeds
        self.parts: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def heading(self, text: str) -> None:
        """Begins a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def say(self, text: str, kind: str = "") -> None:
        """A sentence; `kind` is its style: pass, fail or note."""
        self.parts.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def table(self, figures: Mapping[str, Any]) -> None:
        """A table of names and values."""
        rows = (f"<tr><td>{html.escape(k)}</td><td>{html.escape(shown(v))}</td></tr>" for k, v in figures.items())
        self.parts.append(f"<table>{''.join(rows)}</table>")

    def rows(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of several columns."""
        top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(shown(value))}</td>' for value in row)}</tr>" for row in rows)
        self.parts.append(f"<table><tr>{top}</tr>{body}</table>")

    def images(self, name: str, images: Tensor, columns: int, caption: str) -> None:
        """A grid of images (N, C, H, W) in [-1, 1], saved as NAME.png; a small one is enlarged by a whole number."""
        image = grid(images, columns)
        width = image.width * max(1, 640 // image.width)
        self.parts.append(f'<p>{html.escape(caption)}</p><img src="{self._source(name, image)}" width="{width}">')

    def plot(self, name: str, figure: "Figure", caption: str) -> None:
        """A figure of matplotlib, saved as NAME.png."""
        figure.savefig(self.folder / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        self.parts.append(f'<p>{html.escape(caption)}</p><img class="plot" src="{name}.png">')

    def _source(self, name: str, image: "Image") -> str:
        """The address of an image: a file beside the page, or the image itself."""
        if not self.embeds:
            save_png(image, self.folder / f"{name}.png")
            return f"{name}.png"
        content = io.BytesIO()
        image.save(content, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"

    def save(self, figures: Mapping[str, Any], page: str = "report.html", numbers: str = "evaluation.json") -> None:
        """Writes the page, and `figures` as JSON."""
        body = "\n".join(self.parts)
        head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        text = f"{head}\n<h1>{html.escape(self.title)}</h1>\n{body}\n"
        atomic_write(self.folder / page, text.encode("utf-8", "backslashreplace"))  # a file's name may not be UTF-8
        atomic_write(self.folder / numbers, to_json(plain(figures)))


def new_figure(width: float = 5.0, height: float = 3.2) -> "Figure":
    """A figure of matplotlib without a window and without global state."""
    from matplotlib.figure import Figure

    return Figure((width, height))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (over n - 1) of the same figure at several seeds."""
    n = len(values)
    mean = sum(values) / n
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    return {"mean": mean, "std": std, "each": list(values)}


def plain(value: Any) -> Any:
    """The value in types that JSON has; numbers that it doesn't have become words."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def shown(value: Any) -> str:
    """A figure as text for people."""
    if isinstance(value, Mapping) and "mean" in value:
        return _number(value["mean"]) + (f" ± {_number(value['std'])}" if value.get("std") is not None else "")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(shown(v) for v in value)
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if 0.1 <= abs(value) < 100 or value == 0 else f"{value:.4g}"
