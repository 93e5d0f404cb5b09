import pytest

from ldm.common.errors import UserError
from ldm.interop.hub.selection import wanted, weights

STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bin"], [f"{STEM}.safetensors"]),
        ([f"{STEM}.fp16.safetensors", f"{STEM}.bin"], [f"{STEM}.bin"]),  # as diffusers and transformers choose
        ([f"{STEM}.fp16.safetensors", f"{STEM}.fp16.bin"], [f"{STEM}.fp16.safetensors"]),
        ([f"{STEM}.non_ema.safetensors", f"{STEM}.fp16.bin"], [f"{STEM}.fp16.bin"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
             "pytorch_model.bin", "model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["tf_model.h5", "model.onnx", "flax_model.msgpack", "model.py"], []),
    ],
)  # fmt: skip
def test_one_copy_of_the_weights_is_chosen(names, chosen):
    assert weights(names) == chosen


def test_a_checkpoint_comes_with_the_config_beside_it():
    names = ["a.safetensors", "a.yaml", "b.safetensors", "b.yaml", "x/a.yaml"]
    assert wanted(names, "a.safetensors", dict, "here") == ["a.yaml", "a.safetensors"]


def test_a_run_is_its_model_folder():
    own = ["model/config.json", "model/model.safetensors", "model/manifest.json"]
    rest = ["config.yaml", "checkpoints/step-1.ckpt", "samples/1.png", "model/text_encoder/run.py"]
    assert wanted([*rest, *own, "model/text_encoder/model.safetensors"], "", dict, "here") == [
        *own[:2], "model/text_encoder/model.safetensors", own[2],
    ]  # fmt: skip


def test_a_folder_that_holds_nothing_names_what_there_is():
    with pytest.raises(UserError, match="here holds no model folder .*: name what you mean in it, such as sub, a.ckpt"):
        wanted(["a.ckpt", "sub/config.json", "README.md"], "", dict, "here")
