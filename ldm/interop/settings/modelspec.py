"""The metadata of a single file, by Stability AI's ModelSpec 1.0.0 (https://github.com/Stability-AI/ModelSpec)."""

import datetime
import re
from collections.abc import Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.diffusion import V

_WIDEST = 65_536
_SERIES = {"1": "stable-diffusion-v1", "2": "stable-diffusion-v2", "XL": "stable-diffusion-xl"}
_IMPLEMENTATIONS = {
    "1": "https://github.com/CompVis/stable-diffusion",
    "2": "https://github.com/Stability-AI/stablediffusion",
    "XL": "https://github.com/Stability-AI/generative-models",
}


def metadata(model: Any, version: str, stock: bool, title: str, about: Mapping[str, Any]) -> dict[str, str]:
    """What the file declares about a whole model: kind, name, size, prediction, sampling, licence and date.

    `stock`: its sizes are Stable Diffusion's too. A model of other sizes gets an architecture name of its own.
    """
    predicts_v = isinstance(model.denoiser.parameterization, V)
    declared = {
        "sai_model_spec": "1.0.0",
        "architecture": _architecture(model, version, predicts_v) if stock else f"ldm-{_SERIES[version]}",
        "implementation": _IMPLEMENTATIONS[version],
        "title": title,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "resolution": f"{model.preprocess.width}x{model.preprocess.height}",
        "prediction_type": "v" if predicts_v else "epsilon",
        "usage_hint": _hint(model.sampling),
        "license": about.get("licence"),
    }
    return {"format": "pt", **{f"modelspec.{key}": str(value) for key, value in declared.items() if value}}


def resolution(declared: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """The height and width of generated images by a file's metadata; None if these have no entry."""
    text = declared.get("modelspec.resolution")
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*x\s*(\d{1,5})\s*", str(text))
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    if not 1 <= min(width, height) <= max(width, height) <= _WIDEST:
        raise UserError(f"{where}: modelspec.resolution is {str(text)[:40]!r}, where WIDTHxHEIGHT belongs: give size.")
    return height, width


def _architecture(model: Any, version: str, predicts_v: bool) -> str:
    """The identifier of the architecture. Stable Diffusion 2 has three: by what is predicted, and for inpainting."""
    kinds = {"1": "", "2": "-768-v" if predicts_v else "-512", "XL": "-v1-base"}
    inpaints = bool(model.denoiser.network.concat_channels)
    kinds |= {"1": "-inpainting", "2": "-inpainting"} if inpaints else {}  # of XL there is no identifier of its own
    return _SERIES[version] + kinds[version]


def _hint(sampling: Mapping[str, Any]) -> str:
    known = ("sampler", "steps", "guidance", "rescale")
    return ", ".join(f"{key} {sampling[key]}" for key in known if sampling.get(key) is not None)
