"""Autocast for the pretended device: what CUDA computes in the lower precision, and in float32, by its own lists.

https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float16" and "to float32": those of them
that networks and losses here use.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CASTS: Counter[torch.dtype] = Counter()  # calls by the dtype that they were brought to
_LOWER = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention, torch.matmul,
    Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.addmm,
    torch.baddbmm, torch.einsum,
}  # fmt: skip
_FLOAT32 = {
    F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, F.mse_loss, F.l1_loss,
    F.cross_entropy, F.cosine_similarity, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow,
    Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum, torch.norm,
    Tensor.norm, torch.linalg.vector_norm,
}  # fmt: skip


def on_device(device: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """torch.autocast, which on `device` casts; Lightning asks for "cuda" on any accelerator that it doesn't know."""

    def autocast(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **options: Any) -> Any:
        if device_type not in (device, "cuda"):
            return real(device_type, dtype=dtype, enabled=enabled, **options)
        return _Casting(device, dtype or torch.bfloat16, enabled)

    return autocast


class _Casting(TorchFunctionMode):
    """One `with torch.autocast(...)`; of nested ones the innermost counts."""

    active: list["_Casting"] = []  # noqa: RUF012

    def __init__(self, device: str, dtype: torch.dtype, enabled: bool):
        super().__init__()
        self.device, self.dtype, self.enabled = device, dtype, enabled

    def __enter__(self) -> Any:
        self.active.append(self)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.active.pop()
        super().__exit__(*raised)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = self.dtype if function in _LOWER else torch.float32 if function in _FLOAT32 else None
        if self is not self.active[-1] or not self.enabled or dtype is None:
            return function(*args, **(kwargs or {}))

        def cast(value: Any) -> Any:
            floats = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            if not floats or value.device.type != self.device or value.dtype == dtype:
                return value
            CASTS[dtype] += 1
            return value.to(dtype)

        return function(*tree_map(cast, args), **tree_map(cast, kwargs or {}))
