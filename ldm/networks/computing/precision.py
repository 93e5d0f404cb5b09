"""The precision in which weights are kept, which is float32, and the one in which a network computes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError, did_you_mean

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
Network = TypeVar("Network", bound=nn.Module)


class KeepsFloat32:
    """Mixin: a module that moves to any device, but refuses another precision. It has to come before nn.Module.

    Noise levels, whitening and merged adapters would lose too much in half precision, so a `lowered` copy computes.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> Any:
        """Called by `to`, `cuda`, `half`, `bfloat16` and `double`, where `fn` converts one tensor."""
        after = fn(torch.zeros(1))
        if after.dtype != torch.float32:
            half = torch.float16 if after.dtype == torch.float16 else torch.bfloat16
            raise UserError(
                f"a {type(self).__name__}'s weights stay in float32, not {after.dtype}: for half precision set its "
                f'precision="{name_of(half)}", or call it under `with torch.autocast("{after.device.type}", {half})`.'
            )
        return super()._apply(fn, *args, **options)  # type: ignore[misc]


def check_precision(precision: Any) -> str:
    """The name of a precision, given by name or as a torch.dtype. Raises UserError for an unknown one."""
    name = name_of(precision)
    if name not in PRECISIONS:
        raise UserError(f"precision={name} is unknown.{did_you_mean(name, PRECISIONS)}")
    return name


def name_of(dtype: Any) -> str:
    """The name of a torch.dtype without "torch.", as "bfloat16"; a name stays as it is."""
    return str(dtype).removeprefix("torch.")


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The type in which networks on `device` compute.

    `auto` is bfloat16 on a CUDA GPU that supports it, and float32 elsewhere: CPUs without bfloat16 units are 10 to 40
    times slower in it.
    """
    if precision != "auto":
        return getattr(torch, precision)
    fits = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fits else torch.float32


def lowered(network: Network, dtype: torch.dtype) -> Network:
    """A twin of `network` with copies of its weights in `dtype` and everything else shared; in float32 the network
    itself.

    The network doesn't change, so another thread may use it at the same time. LoRAs, their scales and hooks on it are
    on the twin too. The twin costs a copy of the weights, and is valid until the network changes. Norms of torch
    compute their statistics in float32 all the same.
    """
    return network if dtype == torch.float32 else twin(network, dtype)


def twin(network: Network, dtype: torch.dtype) -> Network:
    """A twin as `lowered` makes it, but in float32 too, where it shares the network's own weights."""
    return _twin(network, dtype, {})


def _twin(module: Any, dtype: torch.dtype, made: dict[int, Any]) -> Any:
    if id(module) not in made:
        twin = made[id(module)] = object.__new__(type(module))
        own = {key: value for key, value in vars(module).items() if key not in ("forward", "_compiled_call_impl")}
        vars(twin).update(own)  # without the functions that are bound to the module itself
        for kind in ("_parameters", "_buffers"):
            vars(twin)[kind] = {name: _cast(t, dtype, made) for name, t in own[kind].items()}
        vars(twin)["_modules"] = {n: m if m is None else _twin(m, dtype, made) for n, m in own["_modules"].items()}
    return made[id(module)]


def _cast(tensor: Tensor | None, dtype: torch.dtype, made: dict[int, Any]) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    if id(tensor) not in made:
        made[id(tensor)] = tensor.detach().to(dtype)
    return made[id(tensor)]
