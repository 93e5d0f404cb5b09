"""The model card that goes with an exported model."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.common.registry import spec_of
from ldm.interop.parts import inpainting

_SHOWN = 12


def card(model: Any, report: Any, about: Mapping[str, Any]) -> str:
    """README.md of an export: what the model is, how to use it, its training data, its measures, its licence."""
    licence = about.get("licence") or "unknown"
    head = ["---", f"license: {licence}", "library_name: diffusers", "tags:", "- latent-diffusion", "- ldm", "---"]
    use = _use(model, not report.stock, about.get("address") or "")
    return "\n".join([*head, "", *_body(model, report, about, use)])


def _body(model: Any, report: Any, about: Mapping[str, Any], use: list[str]) -> list[str]:
    """The card below its head: use, parts, settings, data, measures and licence."""
    licence, run = about.get("licence") or "unknown", about.get("run")
    lines = [f"# {type(model).__name__}", "", "Trained with ldm, two-stage latent diffusion.", "", *use]
    if str(report):
        lines += ["", "## Parts", "", *(f"- {line}" for line in str(report).splitlines())]
    lines += ["", "## Settings", "", *_settings(model)]
    lines += ["", "## Data", "", *_data(run), "", "## Measures", "", *_measures(run)]
    return [*lines, "", "## Licence", "", f"{licence}. The data's own licence applies as well.", ""]


def folder_card(model: Any, report: Any, about: Mapping[str, Any], file: str = "") -> str:
    """README.md of a repository with a model folder of ours, or with a single `file`: how it is loaded from there."""
    address = f"{about['address']}/{file}" if file else about["address"]
    call = [f"model({_argument(model, 'mask')})[0]"] if hasattr(model, "denoiser") else []
    options = ', text_encoder="FOLDER-WITH-TOKENIZER"' if file and call else ""
    use = ["```python", "import ldm", "", f'model = ldm.load("{address}"{options})', *call, "```"]
    head = ["---", f"license: {about.get('licence') or 'unknown'}", "library_name: ldm", "tags:", "- latent-diffusion"]
    return "\n".join([*head, "- ldm", "---", "", *_body(model, report, about, use)])


def _use(model: Any, own: bool, address: str) -> list[str]:
    trust = ", trust_remote_code=True" if own else ""
    folder = f'"{address.removeprefix("hf://")}"' if address else "FOLDER"
    if not hasattr(model, "denoiser"):
        ours = f'"{address}"' if address else "FOLDER"
        return [f"Loads with `from_pretrained` of its class in diffusers, and with `ldm.load({ours})`."]
    return [
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({folder}{trust})",
        f"pipe({_argument(model, 'mask_image')}).images[0]",
        "```",
    ]


def _argument(model: Any, mask: str) -> str:
    """An example of a call's arguments; `mask` is the name of the argument for a mask."""
    argument = "labels=[0]" if "label" in model.conditioner.parts else '"a prompt"' if model.conditioner.parts else ""
    return argument + (f", image=IMAGE, {mask}=MASK" if inpainting.part_of(model.conditioner) else "")


def _settings(model: Any) -> list[str]:
    if not hasattr(model, "denoiser"):
        return [f"- {key}: {value}" for key, value in spec_of(model).items()]
    settings = {
        "parameterization": type(model.denoiser.parameterization).__name__,
        "images": f"{model.preprocess.channels} channels of {model.preprocess.height}x{model.preprocess.width}",
        **model.sampling,
    }
    return [f"- {key}: {value}" for key, value in settings.items()]


def _data(run: Path | None) -> list[str]:
    """The data section of the run's config, without paths."""
    file = Path(run) / "config.yaml" if run else None
    if file is None or not file.is_file():
        return ["Not recorded."]
    import yaml

    data = (yaml.safe_load(file.read_text()) or {}).get("data") or {}
    plain = {k: v for k, v in data.items() if not isinstance(v, (dict, list)) and "/" not in str(v)}
    return [f"- {key}: {value}" for key, value in plain.items()] or ["Not recorded."]


def _measures(run: Path | None) -> list[str]:
    """The last value of every measure in the run's metrics.csv."""
    file = Path(run) / "metrics.csv" if run else None
    if file is None or not file.is_file():
        return ["Not recorded."]
    last: dict[str, str] = {}
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            last |= {key: value for key, value in row.items() if key and value}
    shown = [f"- {key}: {value}" for key, value in last.items() if key.startswith("val") or key == "step"]
    return shown[:_SHOWN] or ["Not recorded."]
