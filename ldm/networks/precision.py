"""Modules whose weights stay in float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError


class KeepsFloat32:
    """Moves to any device, and refuses what would change its precision; to be named before nn.Module among the bases.

    Noise levels, whitening and decoders don't survive half precision: what computes in it is autocast's affair.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> Any:
        """What `to`, `cuda`, `half`, `bfloat16` and `double` call with the change of a tensor."""
        after = fn(torch.zeros(1))
        if after.dtype != torch.float32:
            half = torch.float16 if after.dtype == torch.float16 else torch.bfloat16
            raise UserError(
                f"a {type(self).__name__}'s weights stay in float32, not {after.dtype}: for half precision call it "
                f'under `with torch.autocast("{after.device.type}", {half}):`.'
            )
        return super()._apply(fn, *args, **options)  # type: ignore[misc]
