"""What a single file's settings and metadata say of prediction, heads, sizes and conditions: honoured or refused."""

from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.interop import head_counts, neighbours, noise_table, prediction, text_settings, trainer_settings
from ldm.interop.said import of_metadata
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
    return {"m.yaml": neighbours.parsed(SGM.replace("NAME", name), "m.yaml")}


ARCHITECTURE = "modelspec.architecture"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (sgm("EpsScaling"), "eps"),
        (sgm("VScaling"), "v"),
        (of_metadata({"config": SGM.replace("NAME", "VScaling")}, "m"), "v"),
        ({ARCHITECTURE: "stable-diffusion-v2-512"}, "eps"),
        ({ARCHITECTURE: "stable-diffusion-v2-512-inpainting"}, "eps"),
        ({ARCHITECTURE: "stable-diffusion-v2-768-v", "modelspec.prediction_type": "v"}, "v"),
        ({ARCHITECTURE: "stable-diffusion-v1"}, None),
    ],
)
def test_the_prediction_is_the_files_own(said, kind):
    assert prediction.of_file({}, said, None, FILE) == kind


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (sgm("EDMScaling"), "scaling_config.target=EDMScaling, which can't be represented here"),
        (sgm("VScalingWithEDMcNoise"), "VScalingWithEDMcNoise, which can't"),
        (sgm("EpsScaling") | {ARCHITECTURE: "stable-diffusion-v2-768-v"}, "give prediction=eps or prediction=v"),
        ({ARCHITECTURE: "stable-diffusion-v2-512", "modelspec.prediction_type": "v"}, "give prediction=eps or"),
    ],
)
def test_predictions_that_arent_here_or_contradict_are_refused(said, says):
    with pytest.raises(UserError, match=says):
        prediction.of_file({}, said, None, FILE)


def unet_config(section="unet_config", **params):
    return {"model": {"params": {section: {"params": params}}}}


@pytest.mark.parametrize(
    ("said", "given", "found"),
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
def test_head_counts_are_the_files_own_unless_given(said, given, found, caplog):
    assert head_counts.of_file(said, given, head_counts.UNET, "m") == found
    assert ("heads=2 is taken as asked for, not the file's own heads=4" in caplog.text) == bool(given)


@pytest.mark.parametrize("value", [0, 2.5, "many", True])
def test_head_counts_that_are_none_or_contradict_are_refused(value):
    with pytest.raises(UserError, match="num_heads is"):
        head_counts.of_file({"num_heads": value}, {}, head_counts.UNET, "m")
    with pytest.raises(UserError, match=r"num_heads=4 and, in another place, 8"):
        head_counts.of_file({"num_heads": 8, "m.yaml": unet_config(num_heads=4)}, {}, head_counts.UNET, "m")


@pytest.mark.parametrize(
    ("said", "size"),
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
def test_the_size_is_the_files_own(said, size):
    assert trainer_settings.size(said, 8, "m") == size


def test_sizes_that_differ_are_told_and_none_is_refused(caplog):
    both = {"modelspec.resolution": "512x512", "ss_resolution": "(768, 512)"}
    assert trainer_settings.size(both, 8, "m") == (512, 512)
    assert "ss_resolution says 768x512, modelspec.resolution 512x512, which is taken" in caplog.text
    for bad in ({"ss_resolution": "large"}, {"image_size": [1, 2, 3]}, {"image_size": 0}):
        with pytest.raises(UserError, match=f"{next(iter(bad))} is"):
            trainer_settings.size(bad, 8, "m")


@pytest.mark.parametrize(("averages", "says"), [(False, "aren't in the file"), (True, "ema=True takes them")])
def test_use_ema_is_told(averages, says, caplog):
    said = {"m.yaml": {"model": {"params": {"use_ema": True}}}}
    trainer_settings.tell_of_averages(said, averages, averages, "m")
    assert bool(caplog.text) == (not averages)
    trainer_settings.tell_of_averages(said, averages, False, "m")
    assert says in caplog.text
    caplog.clear()
    trainer_settings.tell_of_averages({"use_ema": False}, averages, False, "m")
    assert not caplog.text


def test_conditions_that_the_unet_doesnt_read_are_refused():
    said = {"m.yaml": {"model": {"params": {"conditioning_key": "hybrid"}}}}
    options = {"in_channels": 4, "channels": [8], "blocks": 1, "attention": [False], "heads": 1, "groups": 4}
    with torch.device("meta"):
        plain, inpainting = UNet(**options), UNet(**options, concat_channels=5)
    with pytest.raises(UserError, match="conditioning_key=hybrid, but its U-Net reads the 4 channels"):
        trainer_settings.check_conditions(said, plain, "m")
    trainer_settings.check_conditions(said, inpainting, "m")
    trainer_settings.check_conditions({"conditioning_key": "crossattn"}, plain, "m")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"m.yaml": {"model": {"params": {"given_betas": [0.1, 0.2]}}}}, r"given_betas=\[0.1, 0.2\] without a table"),
        ({"discretization_config": {"target": "sgm.x.EDMDiscretization"}}, "EDMDiscretization without a table"),
    ],
)
def test_noise_levels_that_arent_here_are_refused(said, says):
    with pytest.raises(UserError, match=says):
        noise_table.schedule({}, said, "m")
    assert noise_table.schedule({}, sgm("VScaling") | {"given_betas": None}, "m").timesteps == 1000


def stage(**params):
    return {"m.yaml": {"model": {"params": {"cond_stage_config": {"params": params}}}}}


CLIP, OPEN = (12, False), (23, True)
HIDDEN = {"clip_skip": 2, "final_norm": False}
SKIPPED = {"clip_skip": 2, "final_norm": True}


@pytest.mark.parametrize(
    ("said", "encoder", "options"),
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
def test_the_text_encoder_is_read_as_the_file_says(said, encoder, options):
    assert text_settings.of_file(said, encoder, 77, "m") == options


@pytest.mark.parametrize(
    ("said", "encoder", "says"),
    [
        (stage(layer="pooled"), CLIP, "layer=pooled, which of its text encoder can't be read"),
        (stage(layer="last"), OPEN, "layer=last, which of its text encoder"),
        (stage(layer="hidden"), CLIP, "layer_idx is 'None', where a number"),
        (stage(layer="hidden", layer_idx=-1), CLIP, "layer_idx is -1, a hidden state of the text encoder"),
        (stage(layer="last") | {"ss_clip_skip": "2"}, CLIP, "are two layers of the text encoder"),
        ({"ss_clip_skip": "13"}, CLIP, "ss_clip_skip=13, but its text encoder has 12 layers"),
        ({"ss_clip_skip": "two"}, CLIP, "ss_clip_skip is 'two'"),
    ],
)
def test_layers_that_cant_be_read_are_refused(said, encoder, says):
    with pytest.raises(UserError, match=says):
        text_settings.of_file(said, encoder, 77, "m")


@pytest.mark.parametrize("said", [stage(max_length=225), {"ss_max_token_length": "225"}])
def test_more_tokens_than_there_are_places_for_are_told(said, caplog):
    assert text_settings.of_file(said, CLIP, 77, "m") == {}
    assert "=225 isn't applied: prompts are read to 77 tokens" in caplog.text


def test_a_clip_skip_that_openclip_doesnt_have_is_told(caplog):
    assert text_settings.of_file({"ss_clip_skip": "3"}, OPEN, 77, "m") == {}
    assert "ss_clip_skip=3 isn't applied" in caplog.text
