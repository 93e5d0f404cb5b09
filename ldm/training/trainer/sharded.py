"""Fully sharded data parallelism: every process holds a part of the weights, their averages and the optimizer's state.

Weights are gathered block by block when a block runs, and released afterwards (Zhao et al. 2023, "PyTorch FSDP"; here
torch's `fully_shard`, FSDP2). Checkpoints and model folders are whole, whatever the number of processes.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.networks import Autoencoder, Cond
from ldm.training.trainer.speed import BLOCKS

NAME = "fsdp"
PRECISIONS = ("32-true", "bf16-mixed", 32, "32")


class FullySharded(ModelParallelStrategy):
    """All processes as one group; the checkpoint is one file, written by the first of them."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Gives the number of processes before Lightning makes the mesh of devices."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def check(config: Mapping[str, Any], precision: Any) -> None:
    """Raises UserError for options that need whole weights in one process."""
    refused = {
        "finetune=": config.get("finetune"),
        "train=decoder": config.get("train") == "decoder",
        "a codebook (vae.class=VQModel)": (config.get("vae") or {}).get("class") == "VQModel",
        "loss.adversarial=": (config.get("loss") or {}).get("adversarial"),
        f"optimizer.name={config['optimizer'].get('name')}": config["optimizer"].get("name") in ("muon", "adamw8bit"),
        f"compile={str(config.get('compile')).lower()}": config.get("compile"),
        f"trainer.precision={precision}": precision not in PRECISIONS,
    }
    unfit = [option for option, given in refused.items() if given]
    if unfit:
        raise UserError(
            f"trainer.strategy={NAME} can't be used with {', '.join(unfit)}: leave it out, or use trainer=ddp."
        )


def shard(network: nn.Module, mesh: Any) -> None:
    """Spreads the parameters of `network` in place: first those of blocks, then the others. Frozen ones stay whole."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    _register_cond()
    network.to(memory_format=torch.contiguous_format)  # parts of a tensor are rows of it
    for root in _roots(network):
        frozen = {p for p in root.parameters() if not p.requires_grad}
        if len(frozen) == len(list(root.parameters())):  # an average, which is spread although none of it trains
            frozen = set()
        for block in reversed([m for m in root.modules() if isinstance(m, BLOCKS) and m is not root]):
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
        fully_shard(root, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
        if hasattr(root, "loss"):
            register_fsdp_forward_method(root, "loss")


def _roots(network: nn.Module) -> Iterator[nn.Module]:
    """The modules that are called from outside and have parameters: an autoencoder's parts, or denoiser and
    conditioner."""
    parts = network.children() if isinstance(network, (Autoencoder, nn.ModuleDict)) else [network]
    return (part for part in parts if any(True for _ in part.parameters()))


@cache
def _register_cond() -> None:
    """Lets FSDP find the tensors inside a `Cond`, on which it puts hooks that gather weights for the backward pass."""
    torch.export.register_dataclass(Cond)


def is_sharded(module: nn.Module) -> bool:
    """Whether weights of the module are spread over processes."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all processes, if it is sharded. All processes call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; all of it, if it isn't sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole_weights(module: nn.Module, keep: bool) -> dict[str, Tensor]:
    """A module's weights gathered one by one, on the CPU, for the process that is to `keep` them.

    All processes call it; the others get {}.
    """
    kept = {}
    for name, tensor in module.state_dict().items():
        together = whole(tensor)
        if keep:
            kept[name] = together.cpu()
    return kept
