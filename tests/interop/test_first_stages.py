"""VQModel and AutoencoderTiny: what diffusers computes is what ours computes, both ways, and weights come back
bit-equal."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.common.errors import UserError
from ldm.interop import single_file
from ldm.interop.export import export
from ldm.interop.parts import compvis
from ldm.networks import AutoencoderTiny, VQModel
from tests.interop.models import diffusers, randomised
from tests.interop.parts import assert_same_weights

VQS = {
    "f4, codes of their own width": {
        "block_out_channels": (8, 16, 16), "layers_per_block": 2, "latent_channels": 6, "vq_embed_dim": 3,
        "num_vq_embeddings": 40, "norm_num_groups": 4,
    },
    "f2, grey, no attention": {
        "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "latent_channels": 2,
        "num_vq_embeddings": 12, "norm_num_groups": 2, "mid_block_add_attention": False, "scaling_factor": 0.5,
    },
}  # fmt: skip
TINY = {
    "TAESD's shape": {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
    "other widths": {
        "in_channels": 1, "out_channels": 1, "latent_channels": 3, "scaling_factor": 2.0, "shift_factor": 0.25,
        "encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1),
    },
}  # fmt: skip


def vq(name="f4, codes of their own width", scale=0.1):
    options = VQS[name]
    levels = len(options["block_out_channels"])
    types = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    torch.manual_seed(0)
    theirs = randomised(diffusers.VQModel(**options, **types), scale)
    return theirs


def close(a, b):
    assert b.std() > 0.05, "a flat output proves nothing"
    torch.testing.assert_close(a, b, atol=1e-5 * max(1, b.abs().max().item()), rtol=0)


@torch.no_grad()
def assert_alike(ours, theirs):
    x = torch.randn(2, ours.in_channels, 16, 16)
    latents = theirs.encode(x).latents
    close(ours.encode(x).mode(), latents)
    close(ours.decode(latents), theirs.decode(latents).sample)
    if isinstance(ours, VQModel):
        assert ours.indices(latents).unique().numel() > 2
        assert not torch.allclose(theirs.decode(latents, force_not_quantize=True).sample, ours.decode(latents))


@pytest.mark.parametrize("name", VQS)
def test_a_vqmodel_of_diffusers_is_imported_and_exported(name, tmp_path):
    theirs = vq(name)
    theirs.save_pretrained(tmp_path / "in")
    ours = ldm.load(tmp_path / "in")
    assert_alike(ours, theirs)
    assert export(ours, tmp_path / "out").stock
    assert_same_weights(tmp_path / "in", tmp_path / "out")
    again = diffusers.VQModel.from_pretrained(tmp_path / "out")
    assert_alike(ours, again)
    assert again.config.scaling_factor == pytest.approx(theirs.config.scaling_factor)


@pytest.mark.parametrize("name", TINY)
def test_an_autoencodertiny_of_diffusers_is_imported_and_exported(name, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.AutoencoderTiny(**TINY[name]))
    theirs.save_pretrained(tmp_path / "in")
    ours = ldm.load(tmp_path / "in")
    assert isinstance(ours, AutoencoderTiny)
    assert_alike(ours, theirs)
    assert export(ours, tmp_path / "out").stock
    assert_same_weights(tmp_path / "in", tmp_path / "out")
    again = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "out")
    assert_alike(ours, again)
    for key in ("scaling_factor", "shift_factor"):
        assert getattr(again.config, key) == pytest.approx(getattr(theirs.config, key))


@pytest.mark.parametrize("prefix", ["", compvis.VAE])
def test_a_vq_checkpoint_of_compvis_is_read(prefix, tmp_path):
    torch.manual_seed(0)
    ours = randomised(VQModel(3, 3, codes=20, hidden=4, channels=[32, 32, 64], blocks=1, attention=True, groups=32))
    state = {prefix + name: tensor.contiguous() for name, tensor in single_file.to_compvis(ours).items()}
    assert {f"{prefix}quantize.embedding.weight", f"{prefix}encoder.down.0.block.0.conv1.weight"} <= state.keys()
    if prefix:
        read = single_file.load_vae({n.removeprefix(prefix): t for n, t in state.items()}, "file")
    else:
        save_file(state, tmp_path / "vq-f4.safetensors")
        read = ldm.load(tmp_path / "vq-f4.safetensors")
    assert isinstance(read, VQModel)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in read.state_dict().items())
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(read.encode(x).mode(), ours.encode(x).mode())


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("VQModel", "norm_type", "spatial"),
        ("VQModel", "lookup_from_codebook", True),
        ("VQModel", "down_block_types", ["AttnDownEncoderBlock2D"] * 3),
        ("AutoencoderTiny", "act_fn", "gelu"),
        ("AutoencoderTiny", "latent_magnitude", 4),
        ("AutoencoderTiny", "encoder_block_out_channels", [8, 8, 8, 16]),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_name(kind, key, value, tmp_path):
    theirs = vq() if kind == "VQModel" else diffusers.AutoencoderTiny(**TINY["TAESD's shape"])
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=f"the autoencoder can't be represented here: {key}="):
        ldm.load(tmp_path)


def test_another_kind_of_codebook_is_refused():
    state = single_file.to_compvis(VQModel(3, 3, codes=4, channels=[32, 32], groups=32))
    state["quantize.embed.weight"] = state.pop("quantize.embedding.weight")
    with pytest.raises(UserError, match=r"its codebook has no quantize\.embedding\.weight"):
        single_file.load_vae(state, "file")


def test_what_has_no_counterpart_is_written_with_a_class_of_ours(tmp_path):
    torch.manual_seed(0)
    vae = randomised(VQModel(1, 2, codes=8, channels=[8], stem=2, shortcut=True))
    assert "stem=2; shortcut=True" in export(vae, tmp_path / "out").parts["vae"]
    again = ldm.load(tmp_path / "out")
    z = torch.randn(1, 2, 4, 4)
    assert torch.equal(again.decode(z), vae.decode(z))
    spec = importlib.util.spec_from_file_location("ldm_vae_alone", tmp_path / "out" / "ldm_vae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = module.LdmVAE.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(theirs.decode(z).sample, vae.decode(z), atol=1e-5, rtol=1e-5)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(theirs.encode(x).latent_dist.mode(), vae.encode(x).mode(), atol=1e-5, rtol=1e-5)
