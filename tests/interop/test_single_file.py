"""Single-file CompVis checkpoints, made from random diffusers models."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.common.errors import UserError
from ldm.conditioning import Conditioner
from ldm.diffusion import V
from ldm.interop import single_file
from ldm.interop.files.name_tables import by_prefix, inverse, rename
from ldm.interop.parts import clip_text, compvis, stable_diffusion
from ldm.interop.parts.clip_text import from_open_clip_names
from tests.interop.configs import unet, vae
from tests.interop.models import clip_config, diffusers, randomised, transformers, write_tokenizer

CROSS, PLAIN = "CrossAttn", ""
# GroupNorm of CompVis has 32 groups, whatever the width
UNETS = {
    "two levels": unet(CROSS, PLAIN, block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=8),
    "four levels": unet(
        *(CROSS, CROSS, CROSS, PLAIN),
        block_out_channels=(32, 32, 64, 64),
        norm_num_groups=32,
        attention_head_dim=8,
        layers_per_block=2,
    ),
    "linear": unet(
        *(CROSS, CROSS), block_out_channels=(64, 128), norm_num_groups=32, attention_head_dim=(1, 2),
        use_linear_projection=True, transformer_layers_per_block=(1, 2),
    ),
    "class table": unet(
        *(CROSS, PLAIN), block_out_channels=(32, 32), norm_num_groups=32, attention_head_dim=8, num_class_embeds=3
    ),
    "inpainting": unet(
        *(PLAIN, CROSS), block_out_channels=(32, 32), norm_num_groups=32, attention_head_dim=8, in_channels=9
    ),
}  # fmt: skip
VAES = {
    "two levels": vae(32, 32, norm_num_groups=32),
    "four levels": vae(32, 32, 64, 64, norm_num_groups=32, layers_per_block=2),
    "eight channels": vae(32, 64, norm_num_groups=32, latent_channels=8),
}


def equal_weights(a, b):
    """Whether two state dicts are bit-equal."""
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_goes_to_compvis_and_back(name, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.UNet2DConditionModel(**UNETS[name]), 0.02)
    theirs.save_pretrained(tmp_path / "unet")
    ours = ldm.load(tmp_path / "unet")
    state = single_file.to_compvis(ours)
    assert {n.split(".")[0] for n in state} >= {"input_blocks", "middle_block", "output_blocks", "time_embed", "out"}
    save_file({f"{compvis.UNET}{n}": t.contiguous() for n, t in state.items()}, tmp_path / "one.safetensors")
    back = ldm.load(tmp_path / "one.safetensors")
    assert equal_weights(ours.state_dict(), back.state_dict())
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 600.0]), torch.randn(2, 5, 12)
    vector = torch.eye(3)[:2] if ours.vector_dim else None
    concat = torch.randn(2, 5, 8, 8) if ours.concat_channels else None
    cond = ldm.networks.Cond(vector=vector, tokens=tokens, concat=concat)
    with torch.no_grad():
        torch.testing.assert_close(back(x, t, cond), ours(x, t, cond))  # head counts are guessed right


@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_goes_to_compvis_and_back(name, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.AutoencoderKL(**VAES[name]))
    theirs.save_pretrained(tmp_path / "vae")
    ours = ldm.load(tmp_path / "vae")
    state = single_file.to_compvis(ours)
    assert state["encoder.mid.attn_1.q.weight"].ndim == 4
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "one.safetensors")
    back = ldm.load(tmp_path / "one.safetensors")
    assert equal_weights(ours.state_dict(), back.state_dict())

    # diffusers' own converter reads it the same way
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted = convert_ldm_vae_checkpoint(dict(state), dict(theirs.config))
    assert equal_weights(converted, theirs.state_dict())


def test_diffusers_own_converter_reads_our_unet_the_same_way(tmp_path):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    torch.manual_seed(0)
    theirs = randomised(diffusers.UNet2DConditionModel(**UNETS["four levels"]), 0.02)
    theirs.save_pretrained(tmp_path)
    state = single_file.to_compvis(ldm.load(tmp_path))
    prefixed = {f"{compvis.UNET}{n}": t for n, t in state.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, dict(theirs.config))
    assert equal_weights(converted, theirs.state_dict())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole Stable Diffusion 1 in miniature: the file, its parts in diffusers, and the tokenizer's folder."""
    root = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    unet_model = randomised(diffusers.UNet2DConditionModel(**UNETS["two levels"] | {"cross_attention_dim": 16}), 0.02)
    vae_model = randomised(diffusers.AutoencoderKL(**VAES["two levels"]))
    text = randomised(transformers.CLIPTextModel(clip_config()))
    unet_model.save_pretrained(root / "unet")
    vae_model.save_pretrained(root / "vae")
    text.save_pretrained(root / "text_encoder")
    words = write_tokenizer(root / "tokenizer")
    state = {f"{compvis.UNET}{n}": t for n, t in single_file.to_compvis(ldm.load(root / "unet")).items()}
    state |= {f"{compvis.VAE}{n}": t for n, t in single_file.to_compvis(ldm.load(root / "vae")).items()}
    bare = {n.removeprefix("text_model."): t for n, t in text.state_dict().items()}
    state |= {f"cond_stage_model.transformer.text_model.{n}": t for n, t in bare.items()}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    state["betas"] = ldm.diffusion.Schedule().betas.float()
    state |= {compvis.ema_name(n): t + 1 for n, t in state.items() if n.startswith(compvis.UNET)}
    torch.save({"state_dict": state, "global_step": 7}, root / "sd.ckpt")
    save_file({n: t.contiguous() for n, t in state.items()}, root / "sd.safetensors")
    return root, words


@pytest.mark.parametrize("file", ["sd.ckpt", "sd.safetensors"])
def test_a_whole_checkpoint_generates_what_its_parts_generate(file, checkpoint):
    root, _ = checkpoint
    model = ldm.load(root / file, text_encoder=str(root), size=16)
    assert model.denoiser.parameterization.schedule.betas[0] == pytest.approx(0.00085)
    assert model.latent_std[0] == pytest.approx(1 / 0.18215)
    text = model.conditioner.parts["text"]
    reference = ldm.FrozenText(str(root / "text_encoder"), str(root / "tokenizer"), length=16, masked=False)
    assert torch.equal(text(["a cat"]).tokens, reference(["a cat"]).tokens)
    unet_model = ldm.load(root / "unet")
    assert equal_weights(model.denoiser.network.state_dict(), unet_model.state_dict())
    image = model("a cat", steps=2, output="pt")
    assert image.shape == (1, 3, 16, 16) and image.std() > 0.05


def changed(root, path, metadata=None, settings=None, **tensors):
    """The checkpoint with other tensors in it, or without those that are None."""
    content = torch.load(root / "sd.ckpt", weights_only=True)
    state = {n: t for n, t in content["state_dict"].items() if not n.startswith("model_ema")} | tensors
    state = {n: t for n, t in state.items() if t is not None}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": state, "hyper_parameters": settings or {}}, path)
    else:
        save_file({n: t.contiguous() for n, t in state.items()}, path, metadata)
    return path


T = torch.tensor
WEIGHT = f"{compvis.UNET}time_embed.0.weight"
MEANS, STDS = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 4.0]


@pytest.mark.parametrize(
    ("name", "declared", "options", "mean", "std"),
    [
        ("a.safetensors", {}, {}, 0.0, 1 / 0.18215),
        ("a.safetensors", {"scale_factor": T(0.25)}, {}, 0.0, 4.0),
        ("a.safetensors", {"scale_factor": T([0.25])}, {}, 0.0, 4.0),
        ("a.safetensors", {"scale_factor": T(0.25)}, {"scaling_factor": 0.5}, 0.0, 2.0),
        ("a.safetensors", {"scaling_factor": T(0.25), "shift_factor": T(0.1)}, {}, 0.1, 4.0),
        ("a.safetensors", {"latents_mean": T(MEANS), "latents_std": T(STDS).view(1, 4, 1, 1)}, {}, MEANS, STDS),
        ("a.safetensors", {"latents_mean": T(MEANS), "scale_factor": T(0.5)}, {}, MEANS, 2.0),
        ("a.safetensors", {"metadata": {"scale_factor": "0.25"}}, {}, 0.0, 4.0),
        ("a.ckpt", {"scale_factor": 0.25}, {}, 0.0, 4.0),
        ("a.ckpt", {"settings": {"scale_factor": 0.25, "shift_factor": 0.5}}, {}, 0.5, 4.0),
    ],
)
def test_numbers_that_say_how_latents_are_scaled_are_read(name, declared, options, mean, std, checkpoint, tmp_path):
    model = ldm.load(changed(checkpoint[0], tmp_path / name, **declared), **options)
    for found, wanted in ((model.latent_mean, mean), (model.latent_std, std)):
        torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=torch.float32).expand(4))


@pytest.mark.parametrize(
    ("name", "declared", "message"),
    [
        ("a.safetensors", {"scale_factor": T(0.0)}, "scaling_factor is 0, where a number above 0"),
        ("a.safetensors", {"scale_factor": T(float("nan"))}, "scaling_factor is nan"),
        ("a.safetensors", {"scale_factor": T([0.2, 0.3])}, r"scaling_factor has the shape \(2,\)"),
        (
            "a.safetensors",
            {"scale_factor": T(0.2), "scaling_factor": T(0.3)},
            "scale_factor=0.2 and scaling_factor=0.3",
        ),
        ("a.safetensors", {"scale_factor": T(0.2), "metadata": {"scale_factor": "0.3"}}, "but 0.3 in another place"),
        ("a.safetensors", {"metadata": {"scale_factor": "high"}}, "scaling_factor is 'high'"),
        ("a.safetensors", {"latents_mean": T([1.0])}, "latents_mean has 1 numbers, where there are 4"),
        ("a.safetensors", {"latents_std": T([1.0, 1.0, 0.0, 1.0])}, "latents_std is 0"),
        ("a.safetensors", {"latents_mean": T(MEANS), "shift_factor": T(0.1)}, "a shift_factor and a latents_mean"),
        (
            "a.safetensors",
            {"edm_mean": T(MEANS), "edm_std": T(STDS)},
            "it holds edm_mean, edm_std, which isn't supported",
        ),
        ("a.safetensors", {"denoiser.sigmas": T(MEANS)}, "neither linear nor scaled_linear"),
        ("a.safetensors", {"first_stage_model.scale_factor": T(0.2)}, "unexpected scale_factor"),
        ("a.safetensors", {"metadata": {"modelspec.prediction_type": "x0"}}, "prediction_type=x0: give prediction=eps"),
        ("a.ckpt", {"settings": {"scale_factor": [0.2]}}, "scaling_factor is '.0.2.'"),
        ("a.safetensors", {"_scaling_factor": T(0.5)}, "it holds _scaling_factor"),
        ("a.safetensors", {WEIGHT: torch.ones(128, 32, dtype=torch.int8)}, "linear_1.weight is int8, not real numbers"),
        ("a.safetensors", {WEIGHT: torch.ones(128, 32, dtype=torch.bool)}, "linear_1.weight is bool, not real numbers"),
        ("a.safetensors", {WEIGHT: torch.ones(128, 32, dtype=torch.complex64)}, "is complex64, not real numbers"),
        ("a.safetensors", {WEIGHT: torch.full((128, 32), 1e300, dtype=torch.float64)}, "isn't finite"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_name(name, declared, message, checkpoint, tmp_path):
    with pytest.raises(UserError, match=message):
        ldm.load(changed(checkpoint[0], tmp_path / name, **declared))


def test_what_else_a_checkpoint_holds_is_named(checkpoint, tmp_path, caplog):
    ldm.load(changed(checkpoint[0], tmp_path / "a.safetensors", **{"depth_model.conv.weight": T(MEANS)}))
    assert "1 tensors have no counterpart here and are left out: depth_model.conv.weight" in caplog.text


@pytest.mark.parametrize(
    ("declared", "options", "kind"),
    [
        ({"v_pred": torch.zeros(1)}, {}, "V"),
        ({"metadata": {"modelspec.prediction_type": "v"}}, {}, "V"),
        ({"metadata": {"modelspec.prediction_type": "v"}}, {"prediction": "eps"}, "Eps"),
        ({"metadata": {"modelspec.prediction_type": "epsilon"}}, {}, "Eps"),
        ({"v_pred": torch.zeros(1)}, {"prediction": "eps"}, "Eps"),
        ({"metadata": {"model_type": "rectified_flow"}}, {}, "Flow"),
        ({}, {"prediction": "flow"}, "Flow"),
        ({"metadata": {"config": "scaling_config: {target: sgm.denoiser_scaling.EDMScaling}"}}, {}, "EDM"),
    ],
)
def test_a_checkpoint_may_say_what_it_predicts(declared, options, kind, checkpoint, tmp_path):
    model = ldm.load(changed(checkpoint[0], tmp_path / "a.safetensors", **declared), **options)
    assert type(model.denoiser.parameterization).__name__ == kind


def test_a_prediction_that_contradicts_the_files_own_is_named(checkpoint, tmp_path, caplog):
    both = {"v_pred": torch.zeros(1), "metadata": {"modelspec.prediction_type": "epsilon"}}
    path = changed(checkpoint[0], tmp_path / "a.safetensors", **both)
    with pytest.raises(UserError, match="v_pred=v and modelspec.prediction_type=epsilon: give prediction=eps or"):
        ldm.load(path)
    ldm.load(path, prediction="v")
    assert "prediction=v was given and is used instead of the file's own v_pred=v and modelspec" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 0}, "heads=0: give a whole number above 0"),
        ({"head_dim": -1}, "head_dim=-1: give"),
        ({"head_dim": 48}, "head_dim=48 doesn't divide the U-Net's width 32"),
        ({"heads": 5}, "heads=5 doesn't divide"),
        ({"heads": 8, "head_dim": 4}, "set the same thing"),
        ({"size": 0}, "size=0: give"),
        ({"size": 17}, "17"),
        ({"size": "16"}, "size='16': give a whole number"),
        ({"scaling_factor": "0.5"}, "scaling_factor='0.5': give a number"),
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor=nan: give a finite"),
        ({"ema": "yes"}, "ema='yes': give True or False"),
        ({"prediction": "x0"}, "prediction=x0: a checkpoint predicts eps or v, or flow"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, message, checkpoint):
    with pytest.raises(UserError, match=message):
        ldm.load(checkpoint[0] / "sd.safetensors", **given)


def test_parts_alone_take_their_own_options_and_name_what_is_left_out(checkpoint, tmp_path, caplog):
    root, _ = checkpoint
    state = torch.load(root / "sd.ckpt", weights_only=True)["state_dict"]
    unet_alone = {n: t.contiguous() for n, t in state.items() if n.startswith(compvis.UNET)}
    vae_alone = {n.removeprefix(compvis.VAE): t.contiguous() for n, t in state.items() if n.startswith(compvis.VAE)}
    save_file(unet_alone | {"scale_factor": T(0.5), "v_pred": T([])}, tmp_path / "unet.safetensors")
    save_file(vae_alone, tmp_path / "vae.safetensors", {"scaling_factor": "0.5"})
    (tmp_path / "unet.yaml").write_text("{parameterization: v, linear_end: 0.02, timesteps: 1000, image_size: 96}")
    assert isinstance(ldm.load(tmp_path / "unet.safetensors", heads=8), ldm.UNet)
    assert "holds only a U-Net: its settings for latents and noise aren't used: scale_factor, v_pred, " in caplog.text
    assert "unet.yaml.parameterization=v, unet.yaml.linear_end=0.02, unet.yaml.image_size=96x96\n" in caplog.text
    assert isinstance(ldm.load(tmp_path / "vae.safetensors"), ldm.AutoencoderKL)
    assert "only an autoencoder: its settings for latents and noise aren't used: scaling_factor" in caplog.text
    for name, given in (("unet", {"prediction": "v", "scaling_factor": 0.5}), ("vae", {"ema": True, "size": 64})):
        with pytest.raises(UserError, match=f"holds only .*, which takes no {', '.join(given)}: leave it out"):
            ldm.load(tmp_path / f"{name}.safetensors", **given)


def test_what_else_is_beside_a_part_alone_is_named(checkpoint, tmp_path, caplog):
    state = torch.load(checkpoint[0] / "sd.ckpt", weights_only=True)["state_dict"]
    kept = {n: t.contiguous() for n, t in state.items() if n.startswith((compvis.UNET, compvis.TEXT))}
    save_file(kept | {"embedding_manager.word": T([1.0])}, tmp_path / "a.safetensors")
    assert isinstance(ldm.load(tmp_path / "a.safetensors"), ldm.UNet)
    assert "a U-Net and a text encoder, but no autoencoder" in caplog.text
    assert "1 tensors have no counterpart here and are left out: embedding_manager.word" in caplog.text
    save_file(kept | {"scaled_fp8": T([])}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="scaled_fp8"):
        ldm.load(tmp_path / "b.safetensors")


def test_code_in_a_checkpoint_is_the_reason_whatever_options_are_given(tmp_path):
    torch.save({"state_dict": {}, "callbacks": {SimpleNamespace: 1}}, tmp_path / "sd.ckpt")
    with pytest.raises(UserError, match="hold code, which isn't run.*as .safetensors"):
        ldm.load(tmp_path / "sd.ckpt", size=16)
    with pytest.raises(UserError, match="there is no model"):
        ldm.load(tmp_path / "nowhere.safetensors", size=16)


@pytest.mark.parametrize(("damaged", "said"), [(9, True), (None, False)])
def test_positions_that_a_merge_rounded_wrongly_are_reported_and_not_used(damaged, said, caplog):
    name = "transformer.text_model.embeddings.position_ids"
    ids = torch.arange(77)[None].half()
    if damaged:
        ids[0, damaged] -= 1
    assert clip_text.from_clip_names({name: ids, "transformer.text_model.a": ids}).keys() == {"a"}
    assert ("damaged at 1 of 77 positions (the first is 9)" in caplog.text) is said


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_the_text_encoder_comes_in_under_either_spelling(prefix, checkpoint, tmp_path):
    root, _ = checkpoint
    long = "cond_stage_model.transformer.text_model."
    state = torch.load(root / "sd.ckpt", weights_only=True)["state_dict"]
    texts = {n: t for n, t in state.items() if n.startswith(long)}
    renamed = {f"cond_stage_model.transformer.{prefix}{n.removeprefix(long)}": t for n, t in texts.items()}
    path = changed(root, tmp_path / "a.safetensors", **dict.fromkeys(texts) | renamed)
    part = ldm.load(path, text_encoder=str(root)).conditioner.parts["text"]
    reference = ldm.FrozenText(str(root / "text_encoder"), str(root / "tokenizer"), length=16, masked=False)
    assert torch.equal(part(["a cat"]).tokens, reference(["a cat"]).tokens)


YAML = "model:\n  params:\n    parameterization: v\n    scale_factor: 0.25\n    linear_start: 0.00085\n"


@pytest.mark.parametrize(
    ("name", "metadata", "beside"),
    [
        ("a.safetensors", None, YAML),
        ("a.ckpt", None, YAML),
        ("a.safetensors", {"config": YAML}, None),
        ("a.safetensors", {"config": json.dumps({"stages": [{"config": YAML}]})}, None),
        ("a.safetensors", {"a": json.dumps({"b": json.dumps({"parameterization": "v", "scale_factor": 0.25})})}, None),
        ("a.safetensors", {"a": json.dumps(json.dumps({"parameterization": "v", "scale_factor": 0.25}))}, None),
    ],
)
def test_settings_in_texts_and_in_yaml_beside_are_read(name, metadata, beside, checkpoint, tmp_path):
    path = changed(checkpoint[0], tmp_path / name, metadata)
    if beside:
        path.with_suffix(".yaml").write_text(beside)
    model = ldm.load(path)
    assert isinstance(model.denoiser.parameterization, V) and model.latent_std[0] == 4


def test_head_counts_and_size_beside_are_the_models(checkpoint, tmp_path):
    path = changed(checkpoint[0], tmp_path / "a.safetensors", {"modelspec.resolution": "16x32"})
    text = "model: {params: {unet_config: {params: {num_heads: COUNT}}}}"
    path.with_suffix(".yaml").write_text(text.replace("COUNT", "4"))
    model = ldm.load(path)
    assert model.denoiser.network.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 4
    assert (model.preprocess.height, model.preprocess.width) == (32, 16)
    path.with_suffix(".yaml").write_text(text.replace("COUNT", "5"))
    with pytest.raises(UserError, match="heads=5 doesn't divide the U-Net's width 32"):
        ldm.load(path)


LAYER = "model: {params: {cond_stage_config: {params: {layer: hidden, layer_idx: -2}}}}"


@pytest.mark.parametrize(("metadata", "beside", "normed"), [({"ss_clip_skip": "2"}, "", True), (None, LAYER, False)])
def test_the_layer_of_the_text_encoder_that_a_file_says_is_read(metadata, beside, normed, checkpoint, tmp_path):
    root, _ = checkpoint
    path = changed(root, tmp_path / "a.SAFETENSORS", metadata)  # in whatever case
    path.with_suffix(".yaml").write_text(beside or "{}")
    part = ldm.load(path, text_encoder=str(root)).conditioner.parts["text"]
    output = part.encoder(input_ids=part._tokens(["a cat"])["input_ids"], output_hidden_states=True)
    state = output.hidden_states[-2]
    norm = next(m for n, m in part.encoder.named_modules() if n.endswith("final_layer_norm"))
    with torch.no_grad():
        torch.testing.assert_close(part(["a cat"]).tokens, norm(state) if normed else state)
        assert (part(["a cat"]).tokens - output.last_hidden_state).abs().max() > 0.1
    assert any(
        "clip_skip=1" in reason
        for reason in stable_diffusion.text_obstacles(SimpleNamespace(conditioner=Conditioner({"text": part})))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['x']", "a.yaml can't be read as YAML"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("- 1", "no table"),
        ("scale_factor: x", "scaling_factor is 'x'"),
        ("model: {params: {beta_schedule: cosine, parameterization: x0}}", "parameterization=x0"),
    ],
)
def test_yaml_beside_that_cant_be_read_is_refused(text, message, checkpoint, tmp_path):
    path = changed(checkpoint[0], tmp_path / "a.safetensors")
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        ldm.load(path)


def test_an_autoencoder_beside_is_named(checkpoint, tmp_path, caplog):
    path = changed(checkpoint[0], tmp_path / "a.safetensors")
    path.with_name("a.vae.safetensors").write_bytes(b"")
    ldm.load(path)
    assert "own autoencoder is used, not the one beside it, a.vae.safetensors" in caplog.text


@pytest.mark.parametrize("content", [{0: torch.zeros(1)}, {"state_dict": [1]}, {"state_dict": None}, {"state_dict": 1}])
def test_odd_content_gets_a_sentence(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError):
        ldm.load(tmp_path / "a.ckpt")


def test_a_weight_of_too_few_axes_gets_a_sentence(checkpoint, tmp_path):
    weight = f"{compvis.UNET}input_blocks.0.0.weight"
    with pytest.raises(UserError, match="axes"):
        ldm.load(changed(checkpoint[0], tmp_path / "a.safetensors", **{weight: torch.zeros(8)}))


def test_averaged_weights_are_taken_on_demand(checkpoint):
    root, _ = checkpoint
    plain, ema = ldm.load(root / "sd.ckpt"), ldm.load(root / "sd.ckpt", ema=True)
    w = "conv_in.weight"
    expected = plain.denoiser.network.state_dict()[w] + 1
    assert torch.equal(ema.denoiser.network.state_dict()[w], expected)


def test_a_checkpoint_with_code_in_it_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {f"{compvis.VAE}x": Evil()}}, tmp_path / "sd.ckpt")
    with pytest.raises(UserError):
        ldm.load(tmp_path / "sd.ckpt")
    assert not (tmp_path / "ran").exists()


def test_open_clips_text_encoder_comes_in_under_transformers_names():
    """Stable Diffusion 2: query, key and value in one matrix, and a last block that isn't used."""
    torch.manual_seed(0)
    text = randomised(transformers.CLIPTextModel(clip_config(layers=2)))
    wanted = {n.removeprefix("text_model."): t for n, t in text.state_dict().items()}
    attention = {n for n in wanted if ".self_attn." in n and ".out_proj." not in n}
    places = "embeddings.position_embedding.weight"
    rest = [n for n in wanted if n not in attention and n != places]
    table = by_prefix(rest, compvis.open_clip_modules(2), compvis.CLIP_BLOCK)
    theirs = rename({n: wanted[n] for n in rest}, table, "test") | {"model.positional_embedding": wanted[places]}
    for i in range(2):
        for leaf in ("weight", "bias"):
            joined = torch.cat([wanted[f"encoder.layers.{i}.self_attn.{x}_proj.{leaf}"] for x in "qkv"])
            theirs[f"model.transformer.resblocks.{i}.attn.in_proj_{leaf}"] = joined
    theirs |= {n.replace(".1.", ".2."): t for n, t in theirs.items() if ".resblocks.1." in n}
    theirs |= {"model.text_projection": torch.zeros(2), "model.logit_scale": torch.zeros(())}
    got = from_open_clip_names(theirs)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_a_controlnets_names_are_one_to_one_and_diffusers_own(levels):
    """The reference is diffusers' converter, which reads the hint encoder of eight convolutions."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    torch.manual_seed(0)
    config = {
        "block_out_channels": (32,) * levels,
        "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        "layers_per_block": 2,
        "cross_attention_dim": 12,
    }
    theirs = randomised(diffusers.ControlNetModel(**config))
    state = dict(theirs.state_dict())
    table = compvis.unet_table(state, compvis.controlnet_modules(levels, 2))
    assert len(inverse(table)) == len(state)
    converted = convert_controlnet_checkpoint(rename(state, table, "test"), dict(theirs.config))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[n], state[n]) for n in state)


def test_a_table_that_isnt_one_to_one_is_refused():
    with pytest.raises(ValueError, match="one to one"):
        by_prefix(["a.x", "b.x"], {"a": "c", "b": "c"}, {})


def test_a_file_of_something_else_is_named_as_such(tmp_path):
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="no Stable Diffusion 1, 2 or XL.*load_lora"):
        ldm.load(tmp_path / "lora.safetensors")
