"""Folders of DINOv2 and CLIP with random weights, as transformers writes them, and Inception's weights as a file."""

import json
import string
from pathlib import Path
from typing import Any

import torch

from ldm.evaluation.measures.inception import Inception


def write_dinov2(folder: Path) -> Path:
    """A DINOv2 of one layer with patches of 14 pixels."""
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config)
    torch.nn.init.normal_(model.embeddings.patch_embeddings.projection.weight, std=0.1)
    model.save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """A CLIP of images of 16 pixels and captions of 8 tokens."""
    import transformers

    tokenizer = _tokenizer(folder.parent / "words")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = sizes | tokens | {"vocab_size": len(tokenizer), "max_position_embeddings": 8}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer for small letters alone."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def write_inception(path: Path) -> Path:
    """Random weights under which features differ from image to image, with the classifier that files have."""
    torch.manual_seed(0)
    network = Inception()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**network.state_dict(), **classifier}, path)
    return path
