"""U-Net and autoencoder: what diffusers computes is what ours computes, both ways, and weights come back bit-equal."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm.common.errors import UserError
from ldm.interop.export import export
from ldm.interop.parts import unet_config, vae_config
from ldm.interop.settings import latent_scale
from tests.interop.configs import SDXLS, UNETS, VAES
from tests.interop.models import diffusers, randomised
from tests.interop.parts import assert_same_weights, unet_inputs

WEIGHTS = "diffusion_pytorch_model.safetensors"


def close(a, b):
    assert b.std() > 0.05, "a flat output proves nothing"
    torch.testing.assert_close(a, b, atol=1e-5 * max(1, b.abs().max().item()), rtol=0)


def sdxl_inputs(config):
    """A text's vector and six sizes that vary by sample, as diffusers takes them, and the vector of both."""
    torch.manual_seed(4)
    features = config.addition_time_embed_dim
    text = torch.randn(2, config.projection_class_embeddings_input_dim - 6 * features)
    sizes = torch.tensor([[768, 1365, 0, 170, 1024, 1024], [1024, 1024, 37, 0, 896, 1152]])
    embedded = ldm.networks.layers.timestep_embedding(sizes.flatten(), features).view(2, -1)
    return {"text_embeds": text, "time_ids": sizes.float()}, torch.cat([text, embedded], 1)


def unet_outputs(ours, theirs):
    x, t, tokens, vector, labels = unet_inputs(theirs.config)
    z = ours.in_channels
    cond = ldm.networks.Cond(vector=vector, tokens=tokens, concat=x[:, z:] if x.shape[1] > z else None)
    added = None
    if theirs.config.addition_embed_type:
        added, vector = sdxl_inputs(theirs.config)
        cond = dataclasses.replace(cond, vector=vector)
    with torch.no_grad():
        return ours(x[:, :z], t, cond), theirs(x, t, tokens, class_labels=labels, added_cond_kwargs=added).sample


@pytest.mark.parametrize("name", [*UNETS, *SDXLS])
def test_a_unet_of_diffusers_is_imported_and_exported(name, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.UNet2DConditionModel(**(UNETS | SDXLS)[name]))
    theirs.save_pretrained(tmp_path / "in")
    ours = ldm.load(tmp_path / "in")
    close(*unet_outputs(ours, theirs))

    assert export(ours, tmp_path / "out").stock
    assert_same_weights(tmp_path / "in", tmp_path / "out")
    close(*unet_outputs(ours, diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out")))


@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_of_diffusers_is_imported_and_exported(name, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.AutoencoderKL(**VAES[name]))
    theirs.save_pretrained(tmp_path / "in")
    ours = ldm.load(tmp_path / "in")
    export(ours, tmp_path / "out")
    assert_same_weights(tmp_path / "in", tmp_path / "out")
    for other in (theirs, diffusers.AutoencoderKL.from_pretrained(tmp_path / "out")):
        x = torch.randn(2, other.config.in_channels, 16, 16)
        with torch.no_grad():
            posterior, expected = ours.encode(x), other.encode(x).latent_dist
            close(posterior.mean, expected.mean)
            torch.testing.assert_close(posterior.std, expected.std, atol=0, rtol=1e-4)
            close(ours.decode(expected.mean), other.decode(expected.mean).sample)


OURS = {
    "two layers for the vector": {"vector_dim": 1600, "vector_layers": 2},
    "default": {},
    "patch-free digits": {"channels": 16, "multipliers": [1, 2, 2], "blocks": 2},
    "no scale and shift": {"scale_shift": False, "linear_projection": False},
    "levels": {"channels": [8, 16, 24], "attention": [False, True, True], "depth": [1, 1, 2], "heads": [1, 2, 4]},
    "vector": {"vector_dim": 5},
    "concat": {"concat_channels": 3},
}


@pytest.mark.parametrize("name", OURS)
def test_a_unet_of_ours_is_exported_and_imported(name, tmp_path):
    torch.manual_seed(0)
    options = {"channels": 8, "heads": 2, "context_dim": 12} | OURS[name]
    ours = randomised(ldm.UNet(4, **options))
    export(ours, tmp_path / "out")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out")
    close(*unet_outputs(ours, theirs))
    again = ldm.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


XL = {key: value for key, value in SDXLS["sdxl, attention above"].items() if "addition" in key or "projection" in key}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"addition_embed_type": "text"}, "addition_embed_type='text'"),
        (XL | {"addition_embed_type": "image"}, "addition_embed_type='image'"),
        (XL | {"num_class_embeds": 3}, "addition_embed_type='text_time' beside classes"),
        (XL | {"class_embed_type": "projection"}, "addition_embed_type='text_time' beside classes"),
        (XL | {"projection_class_embeddings_input_dim": 24}, "input_dim=24 leaves a text nothing beside 6 sizes of 4"),
        (XL | {"transformer_layers_per_block": [1, [1, 2]]}, "transformer_layers_per_block"),
        (XL | {"reverse_transformer_layers_per_block": [2, 1]}, "reverse_transformer_layers_per_block"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"cross_attention_dim": (12, 13)}, "cross_attention_dim"),
        ({"layers_per_block": (1, 2)}, "layers_per_block"),
        ({"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}, "way up"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "AttnDownBlock2D"),
        ({"a_setting_of_the_future": 3}, "a_setting_of_the_future"),
    ],
)
def test_a_unet_that_cant_be_represented_is_refused_by_name(setting, message):
    with pytest.raises(UserError, match=message):
        unet_config.from_diffusers(UNETS["two levels"] | setting)


@pytest.mark.parametrize("setting", [{"act_fn": "relu"}, {"out_channels": 1}, {"down_block_types": ["X", "Y"]}])
def test_an_autoencoder_that_cant_be_represented_is_refused_by_name(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        vae_config.from_diffusers(VAES["two levels"] | setting)


SD3 = {"norm_num_groups": 32, "block_out_channels": (32, 32)}


def test_sixteen_channels_without_quantisation_convolutions_go_through_a_folder_and_a_file(tmp_path):
    """As Stable Diffusion 3's and Flux': latents are (z - shift) * scale."""
    torch.manual_seed(0)
    theirs = randomised(diffusers.AutoencoderKL(**VAES["sd3"] | SD3))
    theirs.save_pretrained(tmp_path / "in")
    ours = ldm.load(tmp_path / "in")
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        z = theirs.encode(x).latent_dist.mean
        mean, std = torch.tensor(ours.scaling)[:, :, None, None]
        close((ours.encode(x).mean - mean) / std, (z - 0.06) * 1.5)
        close(ours.decode(z), theirs.decode(z).sample)

    export(ours, tmp_path / "ae.safetensors", "single_file")
    names = set(load_file(tmp_path / "ae.safetensors"))
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    export(ours, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["scaling_factor"] == pytest.approx(1.5) and config["shift_factor"] == 0.06
    assert config["use_quant_conv"] is config["use_post_quant_conv"] is False
    single = diffusers.AutoencoderKL.from_single_file(tmp_path / "ae.safetensors", config=str(tmp_path / "out"))
    for back in (ldm.load(tmp_path / "ae.safetensors"), ldm.load(tmp_path / "out"), single):
        assert back.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(back.state_dict()[n], t) for n, t in theirs.state_dict().items())


def test_without_quantisation_convolutions_whitening_folds_into_new_ones():
    torch.manual_seed(0)
    ours = randomised(ldm.AutoencoderKL(3, 4, channels=8, quant_convs=False))
    mean, std = torch.randn(4), torch.rand(4) + 0.5
    folded = ldm.AutoencoderKL(3, 4, channels=8).eval()
    folded.load_state_dict(vae_config.fold(ours.state_dict(), mean, std))
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        close(folded.decode(z), ours.decode(z * std[:, None, None] + mean[:, None, None]))


def test_statistics_by_channel_go_out_as_they_came_in(tmp_path):
    given = {"latents_mean": [0.5, 1.0], "latents_std": [2.0, 3.0], "scaling_factor": 0.5}
    diffusers.AutoencoderKL(**VAES["one level"] | {"latent_channels": 2} | given).save_pretrained(tmp_path / "in")
    export(ldm.load(tmp_path / "in"), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["latents_mean"], config["latents_std"], config["scaling_factor"]) == ([0.5, 1.0], [4.0, 6.0], 1.0)


def test_a_file_that_lacks_one_convolution_only_is_refused(tmp_path):

    export(ldm.AutoencoderKL(3, 4, channels=32), tmp_path / "one.safetensors", "single_file")
    state = load_file(tmp_path / "one.safetensors")
    for name, message in (
        ("quant_conv", "quant_conv.weight is missing"),
        ("post_quant_conv", "missing post_quant_conv"),
    ):
        kept = {n: t for n, t in state.items() if not n.startswith(f"{name}.")}
        save_file(kept, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=message):
            ldm.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("absent", ["use_quant_conv", "use_post_quant_conv"])
def test_a_convolution_that_isnt_there_is_the_identity(absent, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.AutoencoderKL(**VAES["two levels"], **{absent: False}))
    theirs.save_pretrained(tmp_path)
    ours, x = ldm.load(tmp_path), torch.randn(1, 3, 16, 16)
    close(ours.encode(x).mean, theirs.encode(x).latent_dist.mean)


def test_whitening_folds_into_the_autoencoder():
    torch.manual_seed(0)
    ours = randomised(ldm.AutoencoderKL(3, 4, channels=8))
    mean, std = torch.randn(4), torch.rand(4) + 0.5
    folded = ldm.AutoencoderKL(3, 4, channels=8).eval()
    folded.load_state_dict(vae_config.fold(ours.state_dict(), mean, std))
    x, z = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        one, two = ours.encode(x), folded.encode(x)
        close(two.mean, (one.mean - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(two.std, one.std / std[:, None, None], rtol=1e-4, atol=0)
        close(folded.decode(z), ours.decode(z * std[:, None, None] + mean[:, None, None]))


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [
        ({}, [0.0, 0.0], [1 / 0.18215] * 2),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, [0.25, 0.25], [2.0, 2.0]),
        ({"scaling_factor": 0.5, "shift_factor": None, "latents_mean": [1, 2], "latents_std": [3, 4]}, [1, 2], [6, 8]),
        ({"scaling_factor": 0.5, "shift_factor": 0, "latents_mean": [1, 2]}, [1, 2], [2.0, 2.0]),
    ],
)
def test_a_config_says_how_latents_are_scaled_and_shifted(given, mean, std):
    assert latent_scale.of_config({"latent_channels": 2} | given, "here") == (mean, std)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"scaling_factor": None}, "scaling_factor is 'None'"),
        ({"scaling_factor": "0.2a"}, "scaling_factor is '0.2a'"),
        ({"scaling_factor": float("inf")}, "scaling_factor is inf"),
        ({"shift_factor": [0.1]}, "shift_factor is"),
        ({"shift_factor": 0.1, "latents_mean": [1, 2]}, "a shift_factor and a latents_mean"),
        ({"latents_mean": [1]}, "latents_mean has 1 numbers, where there are 2 latent channels"),
        ({"latents_mean": 1.0}, "latents_mean has no list of numbers"),
        ({"latents_std": [1, -1]}, "latents_std is -1"),
        ({"latents_std": [1, "x"]}, r"latents_std\[1\] is 'x'"),
    ],
)
def test_a_config_that_makes_no_sense_of_latents_is_refused_by_name(given, message):
    with pytest.raises(UserError, match=f"here.*{message}"):
        latent_scale.of_config({"latent_channels": 2} | given, "here")


def test_missing_and_unexpected_weights_are_named(tmp_path):

    diffusers.AutoencoderKL(**VAES["one level"]).save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    state["encoder.surprise"] = state.pop("quant_conv.bias")
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"missing quant_conv.bias.*unexpected encoder.surprise"):
        ldm.load(tmp_path)


def test_half_precision_and_shards_are_read(tmp_path):
    theirs = randomised(diffusers.AutoencoderKL(**VAES["sd"]))
    theirs.half().save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / f"{WEIGHTS}.index.json").is_file()
    ours = ldm.load(tmp_path)
    assert torch.equal(ours.quant_conv.weight, theirs.quant_conv.weight.float())
    assert {p.dtype for p in ours.parameters()} == {torch.float32}


@pytest.mark.parametrize("index", ["bin.index.json", "safetensors.index.fp16.json"])
def test_pieces_of_another_kind_are_read_by_their_index(index, tmp_path):
    """Pickled ones, and those of a variant alone."""
    theirs = randomised(diffusers.AutoencoderKL(**VAES["one level"]))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    stem, pickled, table = WEIGHTS.removesuffix(".safetensors"), index.startswith("bin"), {}
    for i, names in enumerate((sorted(state)[:9], sorted(state)[9:])):
        name = f"{stem}-0000{i + 1}-of-00002.bin" if pickled else f"{stem}.fp16-0000{i + 1}-of-00002.safetensors"
        (torch.save if pickled else save_file)({n: state[n] for n in names}, tmp_path / name)
        table |= dict.fromkeys(names, name)
    with pytest.raises(UserError, match="one part of the weights, and the index of the parts is missing"):
        ldm.load(tmp_path)
    (tmp_path / f"{stem}.{index}").write_text(json.dumps({"weight_map": table}))
    ours = ldm.load(tmp_path)
    assert torch.equal(ours.quant_conv.weight, theirs.quant_conv.weight)
    (tmp_path / f"{stem}.{index}").write_text(json.dumps({"weight_map": {"x": "../x.bin"}}))
    with pytest.raises(UserError, match="which isn't a file beside it"):
        ldm.load(tmp_path)


def test_averaged_weights_of_a_training_script_are_a_unet(tmp_path):
    theirs = randomised(diffusers.UNet2DConditionModel(**UNETS["two levels"]))
    averages = diffusers.training_utils.EMAModel(
        theirs.parameters(), model_cls=type(theirs), model_config=theirs.config
    )
    averages.save_pretrained(tmp_path)
    assert "decay" in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(ldm.load(tmp_path).conv_in.weight, theirs.conv_in.weight)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"block_out_channels": 32}, "config.json isn't a whole config of UNet2DConditionModel"),
        ([1], "manifest.json is missing|holds a list"),
    ],
)
def test_a_broken_config_is_named(broken, message, tmp_path):
    diffusers.UNet2DConditionModel(**UNETS["two levels"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | broken if isinstance(broken, dict) else broken))
    with pytest.raises(UserError, match=message):
        ldm.load(tmp_path)


def test_an_export_never_writes_over_what_is_there(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="isn't empty"):
        export(ldm.AutoencoderKL(channels=8), tmp_path)


def test_a_part_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AsymmetricAutoencoderKL"}))
    with pytest.raises(UserError, match="AsymmetricAutoencoderKL"):
        ldm.load(tmp_path)
