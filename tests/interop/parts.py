"""One part of a model beside its counterpart in diffusers: their inputs and their weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def assert_same_weights(a: Path, b: Path):
    one, two = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def unet_inputs(config):
    torch.manual_seed(3)
    x, tokens, t = torch.randn(2, config.in_channels, 8, 8), torch.randn(2, 7, 12), torch.tensor([3.0, 711.0])
    vector = labels = None
    if config.num_class_embeds:
        labels = torch.tensor([1, 4])
        vector = torch.nn.functional.one_hot(labels, config.num_class_embeds).float()
    elif config.class_embed_type:
        vector = labels = torch.randn(2, config.projection_class_embeddings_input_dim)
    return x, t, tokens, vector, labels
