"""LoRAs with which a model generates in few steps. While one is on, the model has the LoRA's sampling defaults."""

from typing import Any

from ldm.adapters.lora import LoraAdapter


def set_sampling_defaults(model: Any) -> None:
    """Sets the sampling defaults of `model`: those of the last such LoRA on it, or its own if there is none."""
    few = [a.few for a, _ in model.adapters.values() if isinstance(a, LoraAdapter) and a.few]
    if few:
        own = vars(model).setdefault("_own", (model.sampling, model.distilled, model._spec))
        model.sampling, model.distilled = {**own[0], **few[-1]["sampling"]}, dict(few[-1]["distilled"])
        # A merged model is saved with them too.
        model._spec = {**own[2], "sampling": model.sampling, "distilled": model.distilled}
    elif "_own" in vars(model):
        model.sampling, model.distilled, model._spec = vars(model).pop("_own")
