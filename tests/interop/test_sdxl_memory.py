"""What fine-tuning a full-size Stable Diffusion XL by LoRA takes of memory: counted on tensors that have shapes alone.

Batch 1 of 1024x1024, bfloat16 autocast over float32 weights, gradient checkpointing, cached latents and states of
captions, so that neither text encoder is there. Not counted: the CUDA context, workspaces and what the allocator leaves
between tensors.
"""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import ldm
from ldm.adapters import lora_layers as loras
from ldm.adapters.lora import chosen
from ldm.common.registry import build
from ldm.interop.parts.unet_config import from_diffusers
from ldm.networks import Cond, attention
from ldm.training.trainer.speed import BLOCKS, checkpoint_blocks
from tests.interop import sdxl

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs" / "interop.md"
RANK = 8
MIXED = 2  # autocast leaves norms and what they keep in float32: as if all were


class Fused(torch.autograd.Function):
    """What attention of a GPU's fused kernel keeps: queries, keys, values, its output, and a float32 number a query."""

    @staticmethod
    def forward(ctx, q, k, v, heads):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(*q.shape[:2], heads, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class Kept:
    """Bytes of the storages that autograd keeps for the backward pass, without `parameters`, each once."""

    def __init__(self, parameters):
        self.seen = {p.untyped_storage()._cdata for p in parameters}
        self.bytes, self.held = 0, []

    def add(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.held.append(tensor)  # so that no later storage has its address
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.add, lambda t: t)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


@pytest.fixture(scope="module")
def network():
    with torch.device("meta"):
        made = build(from_diffusers(sdxl.UNET)).to(torch.bfloat16).requires_grad_(False)
        wanted = chosen(loras.adaptable(made), "attention")
        loras.inject(made, "new", dict.fromkeys(wanted, RANK), dict.fromkeys(wanted, RANK))
    return made.to(torch.bfloat16)


def inputs():
    with torch.device("meta"):
        x, tokens = torch.empty(1, 4, 128, 128), torch.empty(1, 77, 2048)
        return x, torch.empty(1), Cond(tokens=tokens, vector=torch.empty(1, 2816)).map(lambda t: t.bfloat16())


@contextmanager
def noting(blocks, note):
    """Inside, `note` is called with every block and what it is given, which checkpointing keeps."""
    hooks = [block.register_forward_pre_hook(lambda module, args: (note(module, args), None)[1]) for block in blocks]
    yield
    for hook in hooks:
        hook.remove()


def test_memory_of_a_full_size_lora_is_as_the_docs_say(network, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(attention, "attend", lambda q, k, v, heads, mask=None: Fused.apply(q, k, v, heads))
    blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    base = sum(p.numel() for p in network.parameters()) - trained
    with torch.device("meta"):
        vae = ldm.AutoencoderKL(3, 4, channels=128, multipliers=[1, 2, 4, 4], blocks=2, attention=True)
    decoder = sum(p.numel() for p in vae.parameters())

    x, t, cond = inputs()
    given: dict[int, tuple] = {}
    with noting(blocks, lambda block, args: given.update({id(block): args})):
        network(x.bfloat16(), t, cond)
    inside = {}
    for block in blocks:
        args = [a.detach().requires_grad_(a.is_floating_point()) if torch.is_tensor(a) else a for a in given[id(block)]]
        with Kept([*block.parameters(), *(a for a in args if torch.is_tensor(a))]) as kept:
            block(*args)
        weights = sum(p.numel() for p in block.parameters())
        inside[block] = 2 * MIXED * kept.bytes + 2 * weights  # gradients too; weights are copied into bfloat16

    stored = Kept(network.parameters())
    checkpoint_blocks(network)
    with stored, noting(blocks, lambda block, args: [stored.add(a) for a in args if torch.is_tensor(a)]):
        network(x.bfloat16(), t, cond)
    within = {id(p) for block in blocks for p in block.parameters()}
    copies = 2 * sum(p.numel() for p in network.parameters() if id(p) not in within)

    figures = {
        "U-Net": 4 * base,
        "autoencoder": 4 * decoder,
        "LoRA": (4 + 4 + 4 + 8) * trained,  # weights, average, gradients, AdamW's two moments
        "kept between blocks": MIXED * stored.bytes + copies,
        "inside the largest block": max(inside.values()),
    }
    figures["together"] = sum(figures.values())
    print(figures, trained)
    text = DOCS.read_text("utf-8")
    for what, count in figures.items():
        assert f"| {what} | {count:,} |" in text, (what, count)
