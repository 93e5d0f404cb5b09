"""A diffusers folder with a value of a wrong type, or of another pipeline: one sentence with file and key."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.common.errors import UserError
from ldm.diffusion import Eps
from ldm.interop.diffusers_folder import WEIGHTS, read_weights
from tests.interop.pipelines import frozen_text, random_model


@pytest.fixture(scope="module")
def whole(text_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "whole"
    random_model({"text": frozen_text(text_folder)}, Eps()).export(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"sample_size": 64.5}, "sample_size is '64.5'"),
        ("unet/config.json", {"sample_size": [8]}, "sample_size"),
        ("unet/config.json", {"sample_size": {}}, "sample_size"),
        ("unet/config.json", {"sample_size": "64"}, "sample_size is '64'"),
        ("unet/config.json", {"block_out_channels": [8, "8"]}, "block_out_channels is '8'"),
        ("unet/config.json", {"down_block_types": [1, 2]}, "down_block_types has '1'"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "by model_index.json"),
        ("vae/config.json", {"latent_channels": "4"}, "latent_channels is '4'"),
        ("vae/config.json", {"norm_num_groups": 0}, "norm_num_groups is '0'"),
        ("vae/config.json", {"scaling_factor": "x"}, "scaling_factor is 'x'"),
        ("text_encoder/config.json", {"max_position_embeddings": None}, "max_position_embeddings is 'None'"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "16"}, "model_max_length is '16'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}, "num_train_timesteps"),
        ("model_index.json", {"text": "abc"}, "text is 'abc'"),
        ("model_index.json", {"text": {"path": "x"}}, "text has path"),
        ("model_index.json", {"text": {"length": "a"}}, "text.length is 'a'"),
        ("model_index.json", {"sampling": "x"}, "sampling is 'x'"),
        ("model_index.json", {"sampling": {"guidance": float("nan")}}, "sampling.guidance"),
        ("model_index.json", {"negative_prompt": "bad"}, "negative_prompt='bad'"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL", "x"]}, "vae is"),
        ("model_index.json", {"vae": ["diffusers", "VQModel"]}, "'VQModel' by model_index.json"),
        ("model_index.json", {"_class_name": "StableDiffusionInstructPix2PixPipeline"}, "Pix2Pix"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ("model_index.json", {"_class_name": "KandinskyPipeline"}, "Kandinsky"),
        ("model_index.json", {"_class_name": ["other", "LdmPipeline"]}, "no counterpart"),
    ],
)
def test_it_is_refused_by_file_and_key(file, change, message, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "odd")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        ldm.load(folder)
    assert str(path) in str(caught.value) or path.name == "model_index.json"


@pytest.mark.parametrize("names", [["../a"], {"conv_in.bias": "../../a.safetensors"}, {"conv_in.bias": "/a"}])
def test_an_index_of_weights_names_files_beside_it(names, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "odd")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match="file beside it"):
        ldm.load(folder)


def test_a_weight_that_two_files_of_an_index_hold_is_refused(tmp_path):
    for name in ("a", "b"):
        save_file({"x": torch.ones(1), name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="x is in b.safetensors and in another file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["PNDMScheduler", "LMSDiscreteScheduler", "DPMSolverSinglestepScheduler"])
def test_a_scheduler_whose_solver_isnt_here_is_reported_and_recorded(name, whole, tmp_path, caplog):
    folder = shutil.copytree(whole, tmp_path / "odd")
    index, scheduler = folder / "model_index.json", folder / "scheduler/scheduler_config.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", name]}))
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"_class_name": name}))
    model = ldm.load(folder)
    messages = [record.getMessage() for record in caplog.records if "isn't available" in record.getMessage()]
    assert len(messages) == 1 and f"{name} isn't available, so dpmpp_2m is used instead" in messages[0]
    assert ldm.load(ldm.save(model, tmp_path / "kept")).scheduler == name and name in repr(model)
    assert "scheduler" not in ldm.spec_of(ldm.load(whole))


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ((f"{WEIGHTS}.bin", f"{WEIGHTS}.non_ema.safetensors"), 0),
        ((f"{WEIGHTS}.non_ema.safetensors", f"{WEIGHTS}.fp16.safetensors"), 1),
        ((f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.bin"), 1),
        ((f"{WEIGHTS}.non_ema.safetensors",), 0),
    ],
)
def test_plain_weights_count_before_those_without_averaging(names, taken, tmp_path, caplog):
    for i, name in enumerate(names):
        (torch.save if name.endswith(".bin") else save_file)({"x": torch.tensor([float(i)])}, tmp_path / name)
    assert read_weights(tmp_path)["x"] == taken
    assert ("holds only diffusion_pytorch_model.non_ema.safetensors" in caplog.text) == (len(names) == 1)
