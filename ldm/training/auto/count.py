"""The operations of a training step, counted on the network itself without computing anything."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm.common.registry import build
from ldm.networks import Cond

CONTEXT_TOKENS = 24  # counted for a network that attends to text


def vae_flops(spec: Mapping[str, Any], channels: int, size: tuple[int, int], decoder_only: bool = False) -> float:
    """Operations of a training step per image of `size` (height, width): three times those of encoding and decoding it.

    Where only the decoder is trained, encoding counts once instead of three times.
    """
    with _counted() as counter:
        vae = build(spec, "vae", in_channels=channels)
        latents = vae.encode(torch.empty(2, channels, *size)).mode()
        encoding = counter.get_total_flops()
        vae.decode(latents)
    return 1.5 * counter.get_total_flops() - (encoding if decoder_only else 0.0)


def network_flops(spec: Mapping[str, Any], latent_size: tuple[int, int], inputs: Mapping[str, Any]) -> float:
    """Operations of a training step per latent of `latent_size` (height, width): three times those of a forward pass.

    `inputs` are the arguments with which the network is built in addition to its spec: its channels and the sizes of
    its conditions. All blocks of a Transformer cost the same, so networks of one and two blocks are enough to count any
    depth.
    """
    depth = spec.get("depth", 8)
    if spec["class"] == "DiT" and depth > 2:
        one = network_flops({**spec, "depth": 1}, latent_size, inputs)
        two = network_flops({**spec, "depth": 2}, latent_size, inputs)
        return one + (depth - 1) * (two - one)
    with _counted() as counter:
        network = build(spec, "network", **inputs)
        x = torch.empty(2, inputs["in_channels"], *latent_size)
        network(x, torch.empty(2), _some_cond(inputs, latent_size))
    return 1.5 * counter.get_total_flops()


@contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """Counts operations on tensors that have a shape but no values.

    Callers count two images and halve the result, because norms refuse a single value. The process's random numbers
    are left as they are.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"), FlopCounterMode(display=False) as counter:
        yield counter


def _some_cond(inputs: Mapping[str, Any], latent_size: tuple[int, int]) -> Cond:
    context, vector, concat = (inputs.get(key) for key in ("context_dim", "vector_dim", "concat_channels"))
    return Cond(
        vector=torch.empty(2, vector) if vector else None,
        tokens=torch.empty(2, CONTEXT_TOKENS, context) if context else None,
        concat=torch.empty(2, concat, *latent_size) if concat else None,
    )
