"""On which device, and in which precision, a command's model computes."""

from collections.abc import Mapping
from typing import Any

import torch

from ldm.common.devices import device_of, fast_products
from ldm.common.errors import UserError
from ldm.networks.computing.precision import name_of


def coding(config: Mapping[str, Any]) -> dict[str, Any]:
    """How networks are computed, for `load`."""
    return {key: config[key] for key in ("precision", "tile", "tile_statistics", "compile")}


def computed_in(model: Any) -> dict[str, str]:
    """The precision to state beside a model's images and figures; nothing for float32."""
    dtype = model.coding.dtype(device_of(model))
    return {} if dtype == torch.float32 else {"precision": name_of(dtype)}


def device(name: str) -> str:
    """The torch device called `name`; auto: a GPU where there is one. From then on float32 products are fast ones."""
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
