"""Random models of the installed diffusers, and text encoders and tokenizers that need no network."""

import functools
import json
from pathlib import Path

import diffusers
import torch
import transformers

__all__ = ["clip_config", "diffusers", "randomised", "transformers", "write_tokenizer", "write_two_encoders"]


def randomised(module, scale: float = 0.1):
    """No weight is zero any more, and every residual block matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


@functools.cache
def _byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level BPE."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write_tokenizer(folder: Path, length: int = 16) -> Path:
    """A CLIP tokenizer of letters without merges."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_two_encoders(root: Path, length: int = 16) -> Path:
    """`text_encoder`, `text_encoder_2` with a projection, and their tokenizers, as Stable Diffusion XL has them: the
    second pads with another token."""
    torch.manual_seed(0)
    first, second = clip_config(16, 3, length), clip_config(24, 2, length)
    first.hidden_act, second.hidden_act, second.projection_dim = "quick_gelu", "gelu", 20
    for suffix, config, cls in (("", first, "CLIPTextModel"), ("_2", second, "CLIPTextModelWithProjection")):
        randomised(getattr(transformers, cls)(config)).save_pretrained(root / f"text_encoder{suffix}")
        write_tokenizer(root / f"tokenizer{suffix}", length)
    words = transformers.CLIPTokenizer.from_pretrained(root / "tokenizer_2", pad_token="!")
    words.save_pretrained(root / "tokenizer_2")
    return root


def clip_config(dim: int = 16, layers: int = 2, length: int = 16):
    return transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
