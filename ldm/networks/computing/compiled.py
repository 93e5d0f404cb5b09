"""Networks that run compiled (torch.compile): in place, and with two graphs for all shapes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError, did_you_mean
from ldm.networks.autoencoder import Decoder
from ldm.networks.cond import Cond
from ldm.networks.controlnet import Controlled

TOKENS = 16  # captions are padded to a multiple of this length, and the padding is masked
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Compiler:
    """Compiles networks with torch's `backend`.

    The first shapes with which a network is called get a graph of their own, which is the fastest if no others follow.
    All others share a second graph, in which batch, sides and number of tokens have any size. Since torch treats a size
    of 1 as a constant, a batch of one has a graph of its own.
    """

    backend: str = "inductor"
    first: dict[str, Shapes] = field(default_factory=dict, compare=False, repr=False)  # by the network's name

    def __call__(self, network: nn.Module, name: str) -> None:
        """Makes `network` run compiled, in place: its state dict keeps its names.

        Another network of the same structure, such as a twin in another precision, may have the same `name`, and then
        shares the graphs.
        """
        if isinstance(network, Decoder):
            network.compiled = self._call(type(network).features, name)
        else:
            network._compiled_call_impl = self._call(network._call_impl, name)

    def _call(self, run: Callable[..., Any], name: str) -> "_Call":
        return _Call(torch.compile(run, backend=self.backend), self.first, name)

    def denoiser(self, network: nn.Module, name: str = "denoiser") -> None:
        """Compiles a denoiser's network, and each ControlNet on it separately, because some steps run without it."""
        parts = [network.network, *network.controlnets] if isinstance(network, Controlled) else [network]
        for i, part in enumerate(parts):
            self(part, f"{name} {i}")


@dataclass(frozen=True)
class _Call:
    run: Callable[..., Any]
    first: dict[str, Shapes]
    name: str

    def __call__(self, *args: Any, **options: Any) -> Any:
        args = tuple(arg.padded(TOKENS) if isinstance(arg, Cond) else arg for arg in args)
        tensors = list(_tensors((args, options)))
        shapes = tuple(tuple(t.shape) for t in tensors)
        if shapes != self.first.setdefault(self.name, shapes):
            for t in tensors:
                torch._dynamo.maybe_mark_dynamic(t, varying(t))
        return self.run(*args, **options)


def varying(t: Tensor) -> list[int]:
    """The dimensions that differ between calls: the batch, the sides of maps (B, C, H, W), and the length of tokens
    (B, L, D) and of their mask (B, L)."""
    dims = (0, 2, 3) if t.ndim == 4 else (0, 1) if t.ndim == 3 or t.dtype == torch.bool else (0,)
    return [dim for dim in dims if t.shape[dim] > 1]


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, Cond):
        yield from _tensors(vars(given))
    elif isinstance(given, (list, tuple)):
        for one in given:
            yield from _tensors(one)
    elif isinstance(given, dict):
        yield from _tensors(list(given.values()))


def compiler_of(value: Any) -> Compiler | None:
    """The compiler that `compile=value` stands for: false, true, or the name of a backend of torch.compile.

    Raises UserError for other values.
    """
    if isinstance(value, Compiler):
        return value
    if value in (None, False, "false"):
        return None
    if value in (True, "true"):
        return Compiler()
    if value not in torch.compiler.list_backends(exclude_tags=()):
        known = torch.compiler.list_backends()  # without those for debugging
        raise UserError(
            f"compile={value}: give true, false, or a backend of torch.compile.{did_you_mean(value, known)}"
        )
    return Compiler(str(value))


def check_tools(compiler: Compiler | None, device: torch.device) -> None:
    """Raises UserError if inductor lacks the tools to compile for `device`; torch would fail only at the first step."""
    if compiler is None or compiler.backend != "inductor":
        return
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        missing = "" if has_triton() else "Triton, or a GPU that it supports (compute capability 7.0 or above)"
    else:
        missing = "" if _has_cpp() else "a C++ compiler (g++ or clang++)"
    if missing:
        raise UserError(f"compile=true needs {missing}, which wasn't found: install it, or use compile=false.")


def _has_cpp() -> bool:
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False
