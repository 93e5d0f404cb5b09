"""A model folder that includes the files of its frozen text encoders, to be copied to another machine."""

from pathlib import Path
from typing import Any

from ldm import artifact
from ldm.common.errors import UserError
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


def without_words(model: Any) -> Any:
    """Returns the model unchanged. Raises UserError if its frozen text encoders have learned words, which only our
    format can hold."""
    if words := sorted({word for part in frozen_in(model) for word in part.words}):
        raise UserError(
            f"{', '.join(words)} would be lost with the frozen text encoder's files: export each with "
            "model.export_word(FILE, WORD) and the model before it learns them, or take to=ldm."
        )
    return model


def frozen_in(model: Any) -> list[FrozenText]:
    """The frozen text encoders of a model."""
    return [part for part in model.modules() if isinstance(part, FrozenText)]
