"""What single files declare about latents and their prediction, in all places: files without weights are enough."""

import pytest
import torch
from safetensors.torch import save_file

from ldm.common.errors import UserError
from ldm.interop.diffusers_folder import read_all
from ldm.interop.settings import latent_scale, prediction

T = torch.tensor
MEANS = [0.5, -1.0, 0.0, 2.0]


def contents(path, metadata=None, settings=None, **tensors):
    """What is read of a file with these tensors, and with metadata or a trainer's settings."""
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "hyper_parameters": settings or {}}, path)
    else:
        save_file({"x": T(0.0), **tensors}, path, metadata)
    return read_all(path)


def whitening(path, given=None, **declared):
    return latent_scale.of_checkpoint(latent_scale.collect(*contents(path, **declared), "FILE"), given, 4, "FILE")


@pytest.mark.parametrize(
    ("name", "declared", "options", "mean", "std"),
    [
        ("a.ckpt", {"settings": {"model": {"params": {"scale_factor": 0.25}}}}, {}, 0.0, 4.0),
        ("a.safetensors", {"metadata": {"config": '{"vae": {"scaling_factor": 0.25}}'}}, {}, 0.0, 4.0),
        ("a.safetensors", {"metadata": {"SCALE_FACTOR": "0.25", "vae_scale_factor": "8.0"}}, {}, 0.0, 4.0),
        ("a.safetensors", {"metadata": {"latents_mean": str(MEANS), "_scaling_factor": "0.5"}}, {}, MEANS, 2.0),
        (
            "a.safetensors",
            {"scale_factor": T(0.2).half(), "metadata": {"scale_factor": "0.2"}},
            {},
            0.0,
            1 / T(0.2).half().item(),
        ),
        ("a.safetensors", {"scale_factor": T(0.25).bfloat16(), "scaling_factor": T(0.2505)}, {}, 0.0, 4.0),
        ("a.ckpt", {"scale_factor": T(0.25), "settings": {"scale_by_std": True, "scale_factor": 1.0}}, {}, 0.0, 4.0),
        ("a.ckpt", {"settings": {"scale_by_std": True}}, {"given": 0.25}, 0.0, 4.0),
        ("a.safetensors", {"metadata": {"workflow": '{"latent_scale": 3, "scale_factor": 2}'}}, {}, 0.0, 1 / 0.18215),
        ("a.ckpt", {"settings": {"stages": [{"scale_factor": 0.25}]}}, {}, 0.0, 4.0),
        ("a.safetensors", {"metadata": {"scalingFactor": "0.25", "x": "[" * 100_000}}, {}, 0.0, 4.0),
    ],
)
def test_numbers_are_read_wherever_they_are(name, declared, options, mean, std, tmp_path):
    for found, wanted in zip(whitening(tmp_path / name, **options, **declared), (mean, std), strict=True):
        torch.testing.assert_close(T(found), torch.as_tensor(wanted, dtype=torch.float32).expand(4))


@pytest.mark.parametrize(
    ("name", "declared", "message"),
    [
        (
            "a.ckpt",
            {"settings": {"scale_by_std": True, "scale_factor": 1.0}},
            "sets scale_by_std.* scaling_factor",
        ),
        ("a.ckpt", {"settings": {"model": {"params": {"scale_factor": 0.5}}, "scale_factor": 0.2}}, "another place"),
        ("a.safetensors", {"metadata": {"modelspec.latent_scale": "0.5"}}, "it sets modelspec.latent_scale"),
        ("a.safetensors", {"metadata": {"config": '{"scale_factor": 1, "scale_factor": 2}'}}, "'scale_factor' twice"),
        ("a.safetensors", {"metadata": {"x": "[" * 100_000 + '{"scale_factor": 1}' + "]" * 100_000}}, "too deeply"),
    ],
)
def test_numbers_that_contradict_each_other_or_arent_read_are_refused(name, declared, message, tmp_path):
    with pytest.raises(UserError, match=message):
        whitening(tmp_path / name, **declared)


@pytest.mark.parametrize(
    ("declared", "options", "kind"),
    [
        ({"v_pred": torch.zeros(1), "metadata": {"modelspec.prediction_type": "v"}}, {}, "v"),
        ({"metadata": {"ss_v_parameterization": "True"}}, {}, "v"),
        ({"metadata": {"modelspec.prediction_type": "x0"}}, {"given": "v"}, "v"),
        ({"metadata": {"config": '{"model": {"params": {"parameterization": "v"}}}'}}, {}, "v"),
    ],
)
def test_a_prediction_is_read_wherever_it_is(declared, options, kind, tmp_path):
    tensors, rest = contents(tmp_path / "a.safetensors", **declared)
    assert prediction.of_file(tensors, rest, options.get("given"), tmp_path) == kind and "v_pred" not in tensors
