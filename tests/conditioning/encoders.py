"""Small text encoders that need no network: ByT5's tokenizer, which has no files, a random T5, and a random CLIP."""

from pathlib import Path

import torch


def write_t5(folder: Path, seed: int = 0) -> Path:
    """A T5 encoder, 16 wide, over bytes."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5EncoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def write_clip(folder: Path, layers: int = 2) -> Path:
    """A CLIP text encoder, 16 wide, with a row for each token of ByT5's tokenizer."""
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder
