"""A model folder that includes the files of its frozen text encoders, to be copied to another machine."""

from pathlib import Path
from typing import Any

from ldm import artifact
from ldm.conditioning import FrozenText
from ldm.interop.exporting.export_report import Report


def bundle(model: Any, out: Path) -> Report:
    """Writes the model folder `out`, including the files of the model's frozen text encoders."""
    for part in frozen_in(model):
        part.bundle(out)
    artifact.save(model, out)
    for part in frozen_in(model):
        part.locate(out)
    return Report({"model": "stock"})


def frozen_in(model: Any) -> list[FrozenText]:
    """The frozen text encoders of a model."""
    return [part for part in model.modules() if isinstance(part, FrozenText)]
