"""LoRAs and embeddings in a pipeline's folder are named, as they aren't loaded with it."""

import torch
from safetensors.torch import save_file

from ldm.interop.files.unread_in_pipeline import warn_of_unread


def test_adapters_and_embeddings_in_a_pipelines_folder_are_named_in_one_line(tmp_path, caplog):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({"model.diffusion_model.out.2.weight": torch.zeros(1)}, tmp_path / "whole.safetensors")
    (tmp_path / "broken.safetensors").write_text("")
    warn_of_unread(tmp_path, ["unet"])
    assert not caplog.records

    (tmp_path / "unet_ema").mkdir()
    (tmp_path / "unet_ema" / "config.json").write_text("{}")
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "unet_ema" / "diffusion_pytorch_model.safetensors")
    warn_of_unread(tmp_path, ["unet"])
    assert "unet_ema isn't loaded, since model_index.json doesn't name it" in caplog.text
    caplog.clear()
    warn_of_unread(tmp_path, ["unet", "unet_ema"])
    assert not caplog.records

    (tmp_path / "unet" / "adapter_config.json").write_text("{}")
    (tmp_path / "learned_embeds.bin").write_bytes(b"")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    save_file({"emb_params": torch.zeros(1)}, tmp_path / "word.safetensors")
    warn_of_unread(tmp_path, ["unet", "unet_ema"])
    [record] = caplog.records
    named = "learned_embeds.bin, style.safetensors, unet/adapter_config.json, word.safetensors aren't loaded"
    assert named in record.getMessage()
