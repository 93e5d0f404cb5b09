"""A pretended accelerator, on which faults of a GPU show on a machine without one.

Its tensors say that they are on `lazy:0`; their numbers lie on the CPU and are computed there. Operations that mix the
device with the host raise, as on a GPU, and what makes the host wait for the device is counted in `WAITS` with the line
of the package that did it:

- reading numbers: item, tolist, bool(tensor), equal, nonzero, boolean indexing, unique, bincount, repeat_interleave
  without a size, copies to the host;
- copies to the device that aren't non-blocking, or not out of pinned memory, indices on the host among them.

A non-blocking copy into pinned memory is no wait, and reading it is none from the next `tick` on, which training gives
at each batch: a device is at most one step behind. `lazy` is chosen since autograd runs its backward pass in the
thread of the caller, and since code that asks for `device.type == "cpu"` takes it for an accelerator.

Autocast casts what CUDA's casts (`autocast.py`). Not pretended: compilation, gradient scaling by float16's scaler,
data workers (PyTorch's thread that pins what they make asks for a driver), and kernels of its own: a fused optimizer's
is the CPU's.
"""

import collections
import contextlib
import traceback
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretend import autocast

DEVICE = "lazy"
WAITS: collections.Counter[str] = collections.Counter()
aten = torch.ops.aten
READS = (  # their result, or its size, depends on the numbers
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten.allclose,
    aten.nonzero,
    aten.masked_select,
    aten.unique_consecutive,
    aten._unique2,
    aten.unique_dim,
    aten.bincount,
)
_ticks = 0


class OnDevice(Tensor):
    """A tensor of the pretended device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{DEVICE}:0",
            requires_grad=False,
        )

    def __init__(self, inner: Tensor):
        self.inner = inner

    def tolist(self) -> Any:  # torch refuses it for subclasses
        _waited("tolist")
        return self.inner.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = _deepcopied(self)
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Inside, operations with device="lazy" give tensors of the pretended device, and reads of the host's are seen."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # operations that are made of others, which arrive whole in inference mode
            result = op.decompose(*args, **kwargs)
        return _run(op, args, kwargs) if result is NotImplemented else result


class Event:
    """torch.Event for the pretended device."""

    def __init__(self, device: Any = None, **options: Any):
        self.at = _ticks

    def record(self, stream: Any = None) -> None:
        self.at = _ticks

    def synchronize(self) -> None:
        if self.at == _ticks:
            _waited("Event.synchronize")


@contextlib.contextmanager
def pretended(monkeypatch: Any) -> Iterator[collections.Counter[str]]:
    """Inside, the pretended device is there; yields the waits as they are counted."""
    from torch.optim import adam, optimizer

    fused = optimizer._get_fused_kernels_supported_devices

    def supported() -> list[str]:
        return [*fused(), DEVICE]

    def pinned(tensor: Tensor, device: Any = None) -> Tensor:
        copy = tensor.clone()
        copy.is_pinned_here = True  # type: ignore[attr-defined]
        return copy

    with monkeypatch.context() as patch:
        patch.setattr(torch, "autocast", autocast.on_device(DEVICE, torch.autocast))
        patch.setattr(torch.inference_mode, "__enter__", _enter_no_grad)
        patch.setattr(torch.inference_mode, "__exit__", _exit_no_grad)
        patch.setattr(torch, "Event", Event)
        patch.setattr(torch, DEVICE, types.SimpleNamespace(device_count=lambda: 0), raising=False)  # none to seed
        patch.setattr(Tensor, "pin_memory", pinned)
        patch.setattr(torch.accelerator, "is_available", lambda *_, **__: True)
        patch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device(DEVICE))
        for module in (optimizer, adam):
            if hasattr(module, "_get_fused_kernels_supported_devices"):
                patch.setattr(module, "_get_fused_kernels_supported_devices", supported)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="lazy") is made on the CPU and moved
        WAITS.clear()
        try:
            with _Mode():
                yield WAITS
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


def _enter_no_grad(mode: Any) -> None:
    """Inference mode as no_grad: a tensor of a class of one's own has no views in it."""
    mode.in_its_place = torch.no_grad()
    mode.in_its_place.__enter__()


def _exit_no_grad(mode: Any, *raised: Any) -> None:
    mode.in_its_place.__exit__(*raised)


def tick() -> None:
    """The device has caught up with what was queued before."""
    global _ticks
    _ticks += 1


def moved(module: torch.nn.Module, device: Any = None) -> torch.nn.Module:
    """The module with its parameters and buffers on the pretended device; shared ones stay shared."""
    memo: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and not isinstance(parameter, OnDevice):
                if id(parameter) not in memo:
                    on = OnDevice(parameter.detach())
                    memo[id(parameter)] = torch.nn.Parameter(on, requires_grad=parameter.requires_grad)
                part._parameters[name] = memo[id(parameter)]
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and not isinstance(buffer, OnDevice):
                part._buffers[name] = OnDevice(buffer)
    return module


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on = [x for x in leaves if isinstance(x, OnDevice)]
    off = [x for x in leaves if not isinstance(x, OnDevice)]
    wanted = kwargs.get("device")
    to_device = wanted is not None and torch.device(wanted).type == DEVICE
    _look(op.overloadpacket, args, kwargs, on, off, wanted, to_device)
    plain_args, plain_kwargs = tree_map(_inner, (args, dict(kwargs)))
    if wanted is not None:
        plain_kwargs["device"] = torch.device("cpu")
        plain_kwargs.pop("pin_memory", None)
    result = op(*plain_args, **plain_kwargs)
    to_host = op.overloadpacket is aten._to_copy and on and wanted is not None and not to_device
    if to_host and kwargs.get("non_blocking"):
        result.arrives_after = _ticks
    stays = to_device or (bool(on) and wanted is None)
    owners = {id(x.inner): x for x in on}  # what an in-place operation returns is its own argument

    def wrapped(x: Any) -> Any:
        if not (isinstance(x, Tensor) and stays):
            return x
        return owners[id(x)] if id(x) in owners else OnDevice(x)

    return tree_map(wrapped, result)


def _look(name: Any, args: Any, kwargs: dict[str, Any], on: list, off: list, wanted: Any, to_device: bool) -> None:
    """Counts what the operation waits for, and raises where it mixes device and host."""
    for x in off:
        if getattr(x, "arrives_after", None) == _ticks and name is not aten.copy_:
            _waited("a copy that is still on its way")
    if name is aten._to_copy and wanted is not None:
        if on and not to_device and not kwargs.get("non_blocking"):
            _waited("copy to the host")
        if off and to_device:
            _look_at_copy(off[0], kwargs.get("non_blocking"))
    elif name is aten.copy_ and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if isinstance(args[0], OnDevice):
            _look_at_copy(args[1], non_blocking)
        elif non_blocking and getattr(args[0], "is_pinned_here", False):
            args[0].arrives_after = _ticks
        else:
            _waited("copy to the host")
    elif on and (name in READS or (name is aten.repeat_interleave and kwargs.get("output_size") is None)):
        _waited(str(name))
    elif on and name in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_):
        _look_at_index(name, args)
    elif on and any(x.dim() for x in off):
        raise RuntimeError(f"{name} mixes tensors of the device and of the host, at {_where()}")


def _look_at_copy(source: Tensor, non_blocking: Any) -> None:
    if not non_blocking:
        _waited("blocking copy to the device")
    elif not getattr(source, "is_pinned_here", False):
        _waited("copy to the device out of memory that isn't pinned")


def _look_at_index(name: Any, args: Any) -> None:
    """An index on the host is copied to the device, and one of booleans is counted first: except where one number is
    put everywhere, which is a masked fill."""
    if not isinstance(args[0], OnDevice):
        raise RuntimeError(f"{name}: a tensor of the host is indexed by one of the device, at {_where()}")
    fills = name is not aten.index and name is not aten._unsafe_index and args[2].numel() == 1
    for index in args[1]:
        if isinstance(index, Tensor) and not isinstance(index, OnDevice):
            _waited("index on the host")
        elif isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) and not fills:
            _waited("boolean index")
    if len(args) > 2 and not isinstance(args[2], OnDevice) and args[2].dim():
        raise RuntimeError(f"{name} mixes tensors of the device and of the host, at {_where()}")


def _deepcopied(tensor: "OnDevice") -> Tensor:
    copy: Tensor = OnDevice(tensor.inner.clone())
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(copy, tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnDevice) else x


def _waited(what: str) -> None:
    WAITS[f"{what}, at {_where()}"] += 1


def _where() -> str:
    """The innermost line of the package that led here, else of Lightning or torch."""
    frames = [frame for frame in traceback.extract_stack() if "pretend/device.py" not in frame.filename]
    ours = [frame for frame in frames if "/ldm/" in frame.filename and "/tests/" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{frame.filename.rpartition('/ldm/')[2].rpartition('/site-packages/')[2]}:{frame.lineno}"
