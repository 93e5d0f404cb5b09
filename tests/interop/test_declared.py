"""What a single file's settings and metadata declare about prediction, heads, sizes and conditions: used or refused."""

import re
from pathlib import Path

import pytest
import torch

from ldm.common.errors import UserError
from ldm.interop import trainer_settings
from ldm.interop.files import beside_checkpoint, config_checks, shards
from ldm.interop.files.declared import of_metadata, refuse_quantised
from ldm.interop.files.foreign_embeddings import embedding_in
from ldm.interop.settings import (
    head_counts,
    model_version,
    noise_table,
    parameterizations,
    prediction,
    sampler_settings,
    text_settings,
)
from ldm.networks import UNet

FILE = Path("m.safetensors")
SGM = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    denoiser_config:
      params:
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.NAME
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization
"""


def sgm(name):
    return {"m.yaml": beside_checkpoint.parsed(SGM.replace("NAME", name), "m.yaml")}


ARCHITECTURE = "modelspec.architecture"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (sgm("EpsScaling"), "eps"),
        (sgm("VScaling"), "v"),
        (of_metadata({"config": SGM.replace("NAME", "VScaling")}, "m"), "v"),
        ({ARCHITECTURE: "stable-diffusion-v2-512"}, "eps"),
        ({ARCHITECTURE: "stable-diffusion-v2-512-inpainting"}, "eps"),
        ({ARCHITECTURE: "stable-diffusion-v2-inpainting"}, "eps"),
        ({ARCHITECTURE: "stable-diffusion-v2-768-v", "modelspec.prediction_type": "v"}, "v"),
        ({ARCHITECTURE: "stable-diffusion-v1"}, None),
        (sgm("EDMScaling"), "edm"),
        ({"model_type": "rectified_flow"}, "flow"),
        ({"ss_flow_matching": "True", "modelspec.prediction_type": "flow-matching"}, "flow"),
        ({"ss_flow_matching": "False", "model_type": "clip_text_model"}, None),
        ({"ss_base_model_version": "sd_v2_v", "ss_v_parameterization": "True"}, "v"),
        ({"ss_base_model_version": "sd_v1"}, "eps"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, None),
    ],
)
def test_the_prediction_is_the_files_own(content, kind):
    assert prediction.of_file({}, content, None, FILE) == kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sgm("VScalingWithEDMcNoise"), "VScalingWithEDMcNoise, which can't"),
        (sgm("EpsScaling") | {ARCHITECTURE: "stable-diffusion-v2-768-v"}, "give prediction=eps or prediction=v"),
        ({ARCHITECTURE: "stable-diffusion-v2-512", "modelspec.prediction_type": "v"}, "give prediction=eps or"),
        ({"model_type": "rectified_flow", "modelspec.prediction_type": "epsilon"}, "rectified_flow and modelspec"),
        ({"ss_base_model_version": "sd_v2", "ss_v_parameterization": "True"}, "version=sd_v2 and ss_v_"),
    ],
)
def test_predictions_that_arent_here_or_contradict_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        prediction.of_file({}, content, None, FILE)


EDM_YAML = """
model:
  params:
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DENOISER
      params:
        weighting_config: {target: sgm.modules.diffusionmodules.denoiser_weighting.EDMWeighting}
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.EDMScaling
          params: {sigma_data: 0.75}
    sampler_config:
      params:
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.DISCRETE
          params: {sigma_max: 40.0, rho: RHO}
"""


def edm(denoiser="Denoiser", discrete="EDMDiscretization", rho="7.0"):
    text = EDM_YAML.replace("DENOISER", denoiser).replace("DISCRETE", discrete).replace("RHO", rho)
    return {"m.yaml": beside_checkpoint.parsed(text, "m.yaml")}


def test_edms_numbers_are_the_settings_own_and_its_denoiser_is_sgms():
    found, sampling = parameterizations.of_file("edm", {}, edm(), "m")
    assert (found.sigma_data, found.sigma_min, found.sigma_max, sampling) == (0.75, 0.002, 40.0, {})
    plain, _ = parameterizations.of_file("edm", {}, sgm("EDMScaling") | {"m.yaml": {}}, "m")
    assert (plain.sigma_data, plain.sigma_max) == (0.5, 80.0)
    sigma = torch.tensor([0.1, 3.0, 40.0])
    skip, out, into, noise = found.coefficients(sigma)  # those of sgm's EDMScaling
    torch.testing.assert_close(skip, 0.75**2 / (sigma**2 + 0.75**2))
    torch.testing.assert_close(out, sigma * 0.75 / (sigma**2 + 0.75**2) ** 0.5)
    torch.testing.assert_close(into, 1 / (sigma**2 + 0.75**2) ** 0.5)
    torch.testing.assert_close(noise, 0.25 * sigma.log())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (edm(denoiser="DiscreteDenoiser"), "denoiser_config.target=DiscreteDenoiser beside EDMScaling, which can't"),
        (edm(discrete="LegacyDDPMDiscretization"), "LegacyDDPMDiscretization beside EDMScaling"),
        (edm(rho="3.0"), "rho=7 here, but the file declares another"),
        (edm() | {"a": {"scaling_config": {"params": {"sigma_data": 0.5}}}}, "=0.75 and .*=0.5: remove the wrong one"),
    ],
)
def test_noise_levels_of_edm_that_arent_here_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        parameterizations.of_file("edm", {}, content, "m")


def test_a_flow_has_its_shift_and_tables_have_no_use(caplog):
    tables = {"betas": torch.ones(2), "ztsnr": torch.ones(1)}
    flow, sampling = parameterizations.of_file("flow", tables, {"ss_discrete_flow_shift": "3.0"}, "m")
    assert (type(flow).__name__, sampling, list(tables)) == ("Flow", {"shift": 3.0}, ["betas"])
    assert "its ztsnr and betas isn't used: the model predicts flow" in caplog.text
    with pytest.raises(UserError, match=r"declares the shifts \[0.0\], where one number above 0"):
        parameterizations.of_file("flow", {}, {"flow_shift": 0}, "m")


@pytest.mark.parametrize(
    ("content", "width", "why"),
    [
        ({"ss_v2": "True"}, 768, "ss_v2=True, but its U-Net reads text of width 768, as Stable Diffusion 1's does"),
        ({"ss_v2": "False"}, 1024, "ss_v2=False, but its U-Net reads text of width 1024, as Stable Diffusion 2's"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, 768, "sdxl_base_v1-0, but its U-Net reads text of width 768"),
        ({"ss_base_model_version": "sd_v1"}, 16, "sd_v1, but its U-Net reads text of width 16, as no Stable"),
        ({ARCHITECTURE: "flux-1-dev/lora"}, 768, "flux-1-dev/lora, but its U-Net reads text of width 768"),
        ({ARCHITECTURE: "stable-diffusion-v1"}, None, "stable-diffusion-v1, but its U-Net reads no text"),
        ({ARCHITECTURE: "ldm-stable-diffusion-v1"}, 16, None),
        ({ARCHITECTURE: "stable-diffusion-v2-512", "ss_base_model_version": "sd_v2", "ss_v2": "True"}, 1024, None),
        ({"ss_v2": "False", "ss_base_model_version": "None"}, 16, None),
    ],
)
def test_a_version_is_compared_with_the_width_of_the_text(content, width, why, caplog):
    model_version.warn(content, width, "m")
    assert why in caplog.text if why else not caplog.text


def sampled(target="sgm.sampling.EulerEDMSampler", guider="sgm.guiders.VanillaCFG", **params):
    guided = {"target": guider, "params": {"scale": 5.5}}
    return {"m.yaml": {"sampler_config": {"target": target, "params": {"guider_config": guided} | params}}}


@pytest.mark.parametrize(
    ("content", "options", "messages"),
    [
        (sampled(num_steps=40, s_churn=0.0), {"sampler": "euler", "steps": 40, "guidance": 5.5}, None),
        (sampled("sgm.HeunEDMSampler"), {"sampler": "heun", "variant": "karras", "guidance": 5.5}, None),
        (sampled("sgm.LinearMultistepSampler", order=4), {"guidance": 5.5}, "LinearMultistepSampler, .*params.order=4"),
        (sampled(guider="sgm.LinearPredictionGuider", s_churn=0.5), {"sampler": "euler", "guidance": 5.5},
         "LinearPredictionGuider, .*s_churn=0.5 has no counterpart here and is left out"),
        ({"loss_fn_config": {"sampler_config": {"params": {"num_steps": 3}}}}, {}, None),
    ],
)  # fmt: skip
def test_the_sampling_is_the_files_own(content, options, messages, caplog):
    assert sampler_settings.of_file(content, "m") == options
    assert re.search(messages, caplog.text) if messages else not caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sampled(num_steps=0), "num_steps is '0.0', where a whole number from 1 to 1000"),
        (sampled(guider_config={"params": {"scale": 1e9}}), "scale: guidance=1000000000.0: give a finite number"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(content, message):
    with pytest.raises(UserError, match=message):
        sampler_settings.of_file(content, "m")


def test_weights_that_stand_for_others_are_refused():
    refuse_quantised({"quantization_config": "None", "format": "pt"}, "m")
    for key in ("quantization_config", "_quantization_metadata", "quantizationMethod"):
        with pytest.raises(UserError, match=f"m: its metadata have {key}, which isn't supported: get unquant"):
            refuse_quantised({key: '{"quant_method": "torchao"}'}, "m")


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["string_to_token", "string_to_param", "name"], True),
        (["clip_l", "clip_g"], True),
        (["emb_params"], True),
        (["<cat-toy>"], True),
        (["unet.conv_in.weight"], False),
        ([], False),
    ],
)
def test_words_of_other_tools_are_known(names, known):
    assert ("textual inversion" in embedding_in(names)) == known


def test_files_that_an_index_names_have_to_be_there(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(UserError, match="names a.safetensors, which isn't beside it"):
        shards.names({"w": "a.safetensors"}, index)
    (tmp_path / "a.safetensors").touch()
    assert shards.names({"w": "a.safetensors"}, index) == {"a.safetensors"}
    with pytest.raises(UserError, match="'../a', which isn't a file beside it"):
        shards.names({"w": "../a"}, index)


def test_a_text_encoder_is_of_the_class_that_the_index_says():
    index = {"text_encoder": ["transformers", "CLIPTextModel"]}
    for config in ({}, {"architectures": ["CLIPTextModel"]}, {"architectures": ["CLIPModel"]}):
        config_checks.check_class(index, "text_encoder", config, "m")
    with pytest.raises(UserError, match="m: the class is 'T5EncoderModel', and 'CLIPTextModel' by model_index.json"):
        config_checks.check_class(index, "text_encoder", {"architectures": ["T5EncoderModel"]}, "m")


def unet_config(section="unet_config", **params):
    return {"model": {"params": {section: {"params": params}}}}


@pytest.mark.parametrize(
    ("content", "given", "found"),
    [
        ({"unet.yaml": unet_config(num_heads=4)}, {}, {"heads": 4}),
        (of_metadata({"config": '{"unet_config": {"params": {"num_heads": 4}}}'}, "m"), {}, {"heads": 4}),
        (of_metadata({"config": "unet_config:\n  params:\n    num_heads: 4\n"}, "m"), {}, {"heads": 4}),
        ({"hyper_parameters": {"unet_config": {"num_head_channels": 16, "num_heads": -1}}}, {}, {"head_dim": 16}),
        ({"m.yaml": unet_config(num_head_channels=64, num_heads=8)}, {}, {"head_dim": 64}),  # as CompVis's U-Net
        ({"m.yaml": unet_config("network_config", num_heads=4)}, {"heads": 2}, {"heads": 2}),
        ({"m.yaml": unet_config("control_stage_config", num_heads=4)}, {}, {}),
        ({"num_heads": "4"}, {}, {"heads": 4}),
        ({"m.yaml": unet_config(num_heads=None)}, {}, {}),
    ],
)
def test_head_counts_are_the_files_own_unless_given(content, given, found, caplog):
    assert head_counts.of_file(content, given, head_counts.UNET, "m") == found
    assert ("heads=2 was given and is used instead of the file's own heads=4" in caplog.text) == bool(given)


@pytest.mark.parametrize("value", [0, 2.5, "many", True])
def test_head_counts_that_are_invalid_or_contradict_are_refused(value):
    with pytest.raises(UserError, match="num_heads is"):
        head_counts.of_file({"num_heads": value}, {}, head_counts.UNET, "m")
    with pytest.raises(UserError, match=r"num_heads=4 but 8 in another place"):
        head_counts.of_file({"num_heads": 8, "m.yaml": unet_config(num_heads=4)}, {}, head_counts.UNET, "m")


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({"modelspec.resolution": "768x1024"}, (1024, 768)),
        ({"ss_resolution": "(1024, 768)"}, (768, 1024)),
        ({"ss_resolution": "640"}, (640, 640)),
        ({"m.yaml": {"model": {"params": {"image_size": 96}}}}, (768, 768)),
        ({"m.yaml": {"model": {"params": {"image_size": [32, 64]}}}}, (256, 512)),
        ({"m.yaml": {"model": {"params": {"image_size": 64}}}}, None),  # in every stock config, for 768 pixels too
        ({"m.yaml": unet_config(image_size=32)}, None),
        ({"ss_resolution": "None"}, None),
    ],
)
def test_the_size_is_the_files_own(content, size):
    assert trainer_settings.size(content, 8, "m") == size


def test_sizes_that_differ_are_reported_and_none_is_refused(caplog):
    both = {"modelspec.resolution": "512x512", "ss_resolution": "(768, 512)"}
    assert trainer_settings.size(both, 8, "m") == (512, 512)
    assert "ss_resolution declares 768x512, but modelspec.resolution 512x512, which is used" in caplog.text
    for bad in ({"ss_resolution": "large"}, {"image_size": [1, 2, 3]}, {"image_size": 0}):
        with pytest.raises(UserError, match=f"{next(iter(bad))} is"):
            trainer_settings.size(bad, 8, "m")


@pytest.mark.parametrize(("averages", "message"), [(False, "aren't in the file"), (True, "ema=True uses them")])
def test_use_ema_is_reported(averages, message, caplog):
    content = {"m.yaml": {"model": {"params": {"use_ema": True}}}}
    trainer_settings.warn_of_averages(content, averages, averages, "m")
    assert bool(caplog.text) == (not averages)
    trainer_settings.warn_of_averages(content, averages, False, "m")
    assert message in caplog.text
    caplog.clear()
    trainer_settings.warn_of_averages({"use_ema": False}, averages, False, "m")
    assert not caplog.text


def test_conditions_that_the_unet_doesnt_read_are_refused():
    content = {"m.yaml": {"model": {"params": {"conditioning_key": "hybrid"}}}}
    options = {"in_channels": 4, "channels": [8], "blocks": 1, "attention": [False], "heads": 1, "groups": 4}
    with torch.device("meta"):
        plain, inpainting = UNet(**options), UNet(**options, concat_channels=5)
    with pytest.raises(UserError, match="conditioning_key=hybrid, but its U-Net reads only the 4 channels"):
        trainer_settings.check_conditions(content, plain, "m")
    trainer_settings.check_conditions(content, inpainting, "m")
    trainer_settings.check_conditions({"conditioning_key": "crossattn"}, plain, "m")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"m.yaml": {"model": {"params": {"given_betas": [0.1, 0.2]}}}}, r"given_betas=\[0.1, 0.2\] without a table"),
        ({"discretization_config": {"target": "sgm.x.EDMDiscretization"}}, "EDMDiscretization without a table"),
    ],
)
def test_noise_levels_that_arent_here_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        noise_table.schedule({}, content, "m")
    assert noise_table.schedule({}, sgm("VScaling") | {"given_betas": None}, "m").timesteps == 1000


def stage(**params):
    return {"m.yaml": {"model": {"params": {"cond_stage_config": {"params": params}}}}}


CLIP, OPEN = (12, False), (23, True)
HIDDEN = {"clip_skip": 2, "final_norm": False}
SKIPPED = {"clip_skip": 2, "final_norm": True}


@pytest.mark.parametrize(
    ("content", "encoder", "options"),
    [
        ({}, CLIP, {}),
        (stage(layer="last"), CLIP, {}),
        (stage(layer="hidden", layer_idx=-2), CLIP, HIDDEN),
        (stage(layer="hidden", layer_idx=11), CLIP, HIDDEN),
        (stage(layer="penultimate"), OPEN, {}),
        ({"conditioner_config": {"emb_models": [{"params": {"layer": "penultimate"}}]}}, OPEN, {}),
        (stage(layer="penultimate"), None, {}),
        ({"ss_clip_skip": "2"}, CLIP, SKIPPED),
        ({"ss_clip_skip": "None"}, CLIP, {}),
        ({"modelspec.encoder_layer": "2"}, CLIP, SKIPPED),
        ({"modelspec.encoder_layer": "2"}, OPEN, {}),
        (stage(layer="hidden", layer_idx=-2) | {"ss_clip_skip": "2"}, CLIP, HIDDEN),
        (stage(max_length=8), CLIP, {"length": 8}),
    ],
)
def test_the_text_encoder_is_read_as_the_file_says(content, encoder, options):
    assert text_settings.of_file(content, encoder, 77, "m") == options


@pytest.mark.parametrize(
    ("content", "encoder", "message"),
    [
        (stage(layer="pooled"), CLIP, "layer=pooled, a layer that can't be read"),
        (stage(layer="last"), OPEN, "layer=last, a layer that can't be read"),
        (stage(layer="hidden"), CLIP, "layer_idx is 'None', where a number"),
        (stage(layer="hidden", layer_idx=-1), CLIP, "layer_idx is -1, a hidden state that can't be read"),
        (stage(layer="last") | {"ss_clip_skip": "2"}, CLIP, "are two different layers of the text encoder"),
        ({"ss_clip_skip": "13"}, CLIP, "ss_clip_skip=13, but its text encoder has 12 layers"),
        ({"ss_clip_skip": "two"}, CLIP, "ss_clip_skip is 'two'"),
    ],
)
def test_layers_that_cant_be_read_are_refused(content, encoder, message):
    with pytest.raises(UserError, match=message):
        text_settings.of_file(content, encoder, 77, "m")


@pytest.mark.parametrize("content", [stage(max_length=225), {"ss_max_token_length": "225"}])
def test_more_tokens_than_there_are_places_for_are_reported(content, caplog):
    assert text_settings.of_file(content, CLIP, 77, "m") == {}
    assert "=225 isn't applied: prompts are read to 77 tokens" in caplog.text


def test_a_clip_skip_that_openclip_doesnt_have_is_reported(caplog):
    assert text_settings.of_file({"ss_clip_skip": "3"}, OPEN, 77, "m") == {}
    assert "ss_clip_skip=3 isn't applied" in caplog.text
