"""A text encoder that needs no network."""

from pathlib import Path

import pytest
import torch

from tests.interop.models import clip_config, randomised, transformers, write_tokenizer, write_two_encoders


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    """`text_encoder` and `tokenizer`, random and CLIP-shaped, 16 wide, 16 tokens."""
    root = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    randomised(transformers.CLIPTextModel(clip_config())).save_pretrained(root / "text_encoder")
    write_tokenizer(root / "tokenizer")
    return root


@pytest.fixture(scope="session")
def two_folder(tmp_path_factory) -> Path:
    """The two text encoders of Stable Diffusion XL and their tokenizers."""
    return write_two_encoders(tmp_path_factory.mktemp("two"))
