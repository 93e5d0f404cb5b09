"""The device and the precision in which the model of a command computes."""

from collections.abc import Mapping
from typing import Any

import torch

from ldm.common.devices import device_of, fast_products
from ldm.common.errors import UserError
from ldm.networks.computing.precision import name_of


def coding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command that say how networks compute, for `load`."""
    return {key: config[key] for key in ("precision", "tile", "tile_statistics", "compile")}


def computed_in(model: Any) -> dict[str, str]:
    """The precision to record with a model's images and figures; nothing for float32."""
    dtype = model.coding.dtype(device_of(model))
    return {} if dtype == torch.float32 else {"precision": name_of(dtype)}


def device(name: str) -> str:
    """The torch device called `name`; "auto" is a GPU if there is one. It also sets `fast_products` for the process."""
    if name != "auto":
        try:
            found = str(torch.empty(0, device=name).device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"device={name} can't be used ({str(error).splitlines()[0]}); device=auto finds one."
            ) from None
    else:
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    fast_products(found)
    return found
