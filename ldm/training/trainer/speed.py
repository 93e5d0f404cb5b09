"""Options that change what a step costs but not what it computes: precision, checkpointing, compilation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.common.errors import UserError
from ldm.networks.attention import TransformerBlock
from ldm.networks.computing.compiled import Compiler, check_tools, compiler_of
from ldm.networks.dit import DiTBlock
from ldm.networks.layers import ResnetBlock

BLOCKS = (ResnetBlock, TransformerBlock, DiTBlock)


SPELLINGS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}  # Lightning's older names


def precision_of(wanted: Any, accelerator: str = "auto") -> Any:
    """The Trainer's precision. `auto` is bf16-mixed on a CUDA GPU that has bfloat16, and 32-true elsewhere: CPUs
    without bfloat16 units are 10 to 40 times slower in it, and on MPS autocast gains little.

    Weights in half precision are refused: an average that moves by thousandths of them would stand still.
    """
    name = SPELLINGS.get(str(wanted), wanted)
    if str(name) in ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"):
        raise UserError(
            f"trainer.precision={wanted} keeps the weights in half precision, which is too coarse for their "
            "average. Take "
            "bf16-mixed, or 16-mixed where the GPU has no bfloat16."
        )
    if str(name) == "64-true":
        raise UserError(
            f"trainer.precision={wanted} isn't supported: images, latents and noise are float32. Use 32-true."
        )
    if name != "auto":
        return name
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def prepare(trained: nn.Module, *, checkpointing: bool = False, compiler: Compiler | None = None) -> None:
    """Changes how the networks in `trained` run: in place, and their state-dict names stay.

    The compiler compiles the denoiser's network with its ControlNets, or the two halves of an autoencoder.
    """
    if checkpointing:
        checkpoint_blocks(trained)
    if compiler is None:
        return
    if isinstance(trained, nn.ModuleDict):
        denoiser: Any = trained["denoiser"]
        compiler.denoiser(denoiser.network)
    else:
        for half in ("encoder", "decoder"):
            compiler(trained.get_submodule(half), half)


def compiler_for(config: Mapping[str, Any], device: torch.device) -> Compiler | None:
    """The compiler that `compile` in a run's config means on `device`. Raises UserError if it can't compile there."""
    compiler = compiler_of(config.get("compile"))
    check_tools(compiler, device)
    return compiler


def checkpoint_blocks(network: nn.Module) -> None:
    """Makes residual and Transformer blocks keep only their inputs and compute again in the backward pass (Chen et al.
    2016): a third more time for a fraction of the memory. Dropout uses the same random numbers again."""
    for module in network.modules():
        if isinstance(module, BLOCKS):
            module.forward = _checkpointed(module.forward)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        """`forward` without keeping activations, where gradients are computed."""
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return run
