"""A model of ours as one file under CompVis's names: read back here, and by diffusers' `from_single_file`."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ldm
from ldm.commands.export import _lora, main
from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel, Conditioner, FrozenText
from ldm.diffusion import Denoiser, Eps, Flow, Schedule, V
from ldm.images import Preprocess
from ldm.interop import single_file, to_single_file
from ldm.interop.export import export
from ldm.interop.exporting import dtype as precision
from ldm.interop.lora import formats
from ldm.interop.parts import stable_diffusion
from ldm.interop.parts.clip_text import from_open_clip_names
from ldm.interop.parts.to_clip import to_open_clip_names
from ldm.interop.settings import modelspec
from ldm.model.latent_diffusion import LatentDiffusion
from tests.interop.models import clip_config, diffusers, randomised, transformers, write_tokenizer

PROMPT = "a cat"
ZERO = Schedule(zero_terminal_snr=True)
# In the kinds of Stable Diffusion 1 and 2, small; groups and heads have to be those that no file says.
KINDS = {
    "1": ({"channels": [32, 32], "heads": 8, "linear_projection": False, "attention": [True, False]}, Eps()),
    "2": ({"channels": [64, 64], "heads": 1, "linear_projection": True}, V()),
}
ACTIVATIONS = {"1": "quick_gelu", "2": "gelu"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Folders with a text encoder and its tokenizer, by the version of Stable Diffusion."""
    folders = {}
    for version, activation in ACTIVATIONS.items():
        root = folders[version] = tmp_path_factory.mktemp(version)
        config = clip_config()
        config.hidden_act = activation
        torch.manual_seed(0)
        randomised(transformers.CLIPTextModel(config)).save_pretrained(root / "text_encoder")
        write_tokenizer(root / "tokenizer")
    return folders


def make(folder, version="1", parameterization=None, vae=None, text=None, **network):
    """A random model whose parts are stock, with latents whitened per channel as a trained one's are."""
    torch.manual_seed(0)
    sizes, predicts = KINDS[version]
    options = {"length": 16, "masked": False} | (text or {})
    conditioner = Conditioner({"text": FrozenText(str(folder / "text_encoder"), str(folder / "tokenizer"), **options)})
    first_stage = ldm.AutoencoderKL(3, 4, **{"channels": 32, "attention": True} | (vae or {}))
    unet = ldm.UNet(4, **{**sizes, "scale_shift": False, "context_dim": 16} | network)
    denoiser = Denoiser(unet, parameterization or predicts)
    model = LatentDiffusion(first_stage, denoiser, conditioner, Preprocess(3, 16, 16), {"sampler": "ddim"})
    randomised(model, 0.05)
    model.latent_mean.copy_(torch.linspace(-1, 1, 4))
    model.latent_std.copy_(torch.linspace(0.5, 2, 4))
    return model.eval()


@pytest.fixture(scope="module", params=["1", pytest.param("2", marks=pytest.mark.slow)])
def exported(request, texts, tmp_path_factory):
    """A model, its file, and its folder for diffusers."""
    root, model = tmp_path_factory.mktemp("exported"), make(texts[request.param], request.param)
    report = model.export(root / "one.safetensors", to="single_file")
    assert report.stock and "aren't Stable Diffusion" in str(report)
    model.export(root / "folder")
    return request.param, model, root


def sampled(model, **options):
    return model(PROMPT, steps=2, guidance=3.0, sampler="ddim", output="pt", seed=[0], **options)


def test_what_is_written_is_read_back_and_generates_the_same_image(exported, texts):
    version, model, root = exported
    back = ldm.load(root / "one.safetensors", text_encoder=str(texts[version]))
    assert type(back.denoiser.parameterization) is type(model.denoiser.parameterization)
    assert back.preprocess.shape == model.preprocess.shape
    for name, tensor in model.denoiser.network.state_dict().items():
        assert torch.equal(tensor, back.denoiser.network.state_dict()[name]), name
    ours = sampled(model)
    assert ours.std() > 0.05
    torch.testing.assert_close(sampled(back), ours, atol=1e-4, rtol=0)


def test_diffusers_opens_the_file_and_generates_the_same_image(exported):
    version, model, root = exported
    folder = diffusers.StableDiffusionPipeline.from_pretrained(root / "folder")
    pipe = diffusers.StableDiffusionPipeline.from_single_file(
        root / "one.safetensors", config=str(root / "folder"), local_files_only=True
    )
    for part in ("unet", "vae", "text_encoder"):
        one, two = getattr(folder, part).state_dict(), getattr(pipe, part).state_dict()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), part
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 711.0]), torch.randn(2, 7, 16)
    with torch.no_grad():
        ours = model.denoiser.network(x, t, ldm.networks.Cond(tokens=tokens))
        torch.testing.assert_close(pipe.unet(x, t, tokens).sample, ours, atol=1e-5 * ours.abs().max().item(), rtol=0)
        images = model.first_stage.decode(model.unwhiten(x))
        theirs = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(theirs, images, atol=1e-5 * images.abs().max().item(), rtol=0)
    ids = pipe.tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids
    states = model.conditioner.parts["text"]([PROMPT]).tokens
    torch.testing.assert_close(pipe.text_encoder(ids)[0], states, atol=1e-5, rtol=0)
    one, two = (images_of(p) for p in (folder, pipe))
    assert one.std() > 0.05
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)


def images_of(pipe):
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}
    return pipe(PROMPT, latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), **options).images


@pytest.mark.slow
def test_a_lora_in_kohyas_names_opens_beside_the_file(exported, texts, tmp_path):
    pytest.importorskip("peft")
    version, _, root = exported
    model = ldm.load(root / "one.safetensors", text_encoder=str(texts[version]))
    weights, generator = {}, torch.Generator().manual_seed(2)
    for name in (m for m in formats.adaptable(model.denoiser.network) if m.endswith(("to_q", "to_out.0", "conv1"))):
        w = model.denoiser.network.get_submodule(name.removeprefix("unet.")).weight
        weights[f"{name}.lora_A.weight"] = torch.randn(2, *w.shape[1:], generator=generator)
        weights[f"{name}.lora_B.weight"] = 0.1 * torch.randn(w.shape[0], 2, *[1] * (w.ndim - 2), generator=generator)
    alphas = {name.rsplit(".lora_", 1)[0]: 1.0 for name in weights}
    formats.write(tmp_path / "lora.safetensors", formats.Lora(weights, alphas), "kohya")
    pipe = diffusers.StableDiffusionPipeline.from_single_file(
        root / "one.safetensors", config=str(root / "folder"), local_files_only=True
    )
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 711.0]), torch.randn(2, 7, 16)
    with torch.no_grad():
        before = pipe.unet(x, t, tokens).sample
        pipe.load_lora_weights(tmp_path / "lora.safetensors")
        model.load_lora(tmp_path / "lora.safetensors")
        theirs = pipe.unet(x, t, tokens).sample
        ours = model.denoiser.network(x, t, ldm.networks.Cond(tokens=tokens))
    assert (theirs - before).std() > 0.05
    torch.testing.assert_close(theirs, ours, atol=1e-5 * ours.abs().max().item(), rtol=0)


def test_open_clips_names_are_read_back_as_they_were():
    torch.manual_seed(0)
    state = {
        n.removeprefix("text_model."): t for n, t in transformers.CLIPTextModel(clip_config()).state_dict().items()
    }
    theirs = to_open_clip_names(state)
    assert len({n.split(".")[3] for n in theirs if ".resblocks." in n}) == 3  # two, and the one that isn't used
    back = from_open_clip_names(theirs)
    wanted = {n: t for n, t in state.items() if not n.endswith("position_ids")}
    assert back.keys() == wanted.keys() and all(torch.equal(back[n], wanted[n]) for n in wanted)


def test_the_file_says_what_modelspec_and_web_uis_look_for(exported):
    version, model, root = exported
    with safe_open(root / "one.safetensors", "pt") as opened:
        names, tags = set(opened.keys()), opened.metadata()
    assert {name.split(".")[0] for name in names if "." in name} == {
        "model", "first_stage_model", "cond_stage_model"
    }  # fmt: skip
    text = "transformer.text_model.embeddings.token_embedding" if version == "1" else "model.token_embedding"
    assert f"cond_stage_model.{text}.weight" in names
    assert ("v_pred" in names) == (version == "2") and "ztsnr" not in names
    wanted = {
        "sai_model_spec": "1.0.0",
        "title": "one",
        "resolution": "16x16",
        "architecture": f"ldm-stable-diffusion-v{version}",
    }
    wanted["prediction_type"] = "v" if version == "2" else "epsilon"
    assert {key: tags[f"modelspec.{key}"] for key in wanted} == wanted
    assert tags["modelspec.usage_hint"].startswith("sampler ddim, steps 20")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameterization": Flow()}, "it predicts as Flow (diffusion=eps, v or v_zero_snr)"),
        ({"parameterization": Eps(Schedule("linear"))}, "its noise schedule isn't Stable Diffusion's"),
        ({"vae": {"stem": 2}}, "the autoencoder: stem=2 (train with vae=kl_f8)"),
        ({"vae": {"channels": 16}}, "the autoencoder's norms have 16 groups"),
        ({"heads": 4}, "4 heads at level 0, but readers assume 8 heads"),
        ({"patch": 2}, "the U-Net: patch=2"),
        ({"channels": [16, 32]}, "the U-Net's norms have 16 groups"),
        ({"text": {"masked": True}}, "conditioner.text.masked=false"),
        ({"text": {"length": 8}}, "its captions are padded to 8 tokens (conditioner.text.length=16)"),
    ],
)
def test_parts_that_arent_stock_are_refused_with_what_would_be(change, message, texts, tmp_path):
    with pytest.raises(UserError) as refused:
        export(make(texts["1"], **change), tmp_path / "one.safetensors", "single_file")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not any(tmp_path.iterdir())


def test_a_transformer_conditioned_on_labels_is_refused_by_both(tmp_path):
    conditioner = Conditioner({"label": ClassLabel(3, dim=8)})
    network = ldm.build({"class": "DiT", "in_channels": 4, "depth": 1, "channels": 8, "heads": 2, "vector_dim": 8})
    vae = ldm.AutoencoderKL(3, 4, channels=32)
    model = LatentDiffusion(vae, Denoiser(network, V()), conditioner, Preprocess(3, 16, 16))
    with pytest.raises(UserError, match=r"network is a DiT \(train with network=unet\); its conditions are label"):
        model.export(tmp_path / "one.safetensors", "single_file")


@pytest.mark.parametrize(
    ("version", "parameterization", "spread", "message"),
    [
        ("1", Eps(), 0.0, []),
        ("1", V(), 0.0, ["ModelSamplingDiscrete with v_prediction", "v1-inference.yaml with parameterization: v"]),
        ("1", V(ZERO), 0.0, ["ModelSamplingDiscrete with v_prediction, zsnr", "v1-inference.yaml"]),
        ("2", Eps(), 0.0, []),
        ("2", Eps(), 1.0, ["ModelSamplingDiscrete with eps"]),
        ("2", V(), 1.0, ["v2-inference-v.yaml"]),
        ("2", V(), 0.0, ["ModelSamplingDiscrete with v_prediction", "v2-inference-v.yaml"]),
    ],
)
def test_what_web_uis_dont_read_off_a_file_of_their_sizes_is_reported(version, parameterization, spread, message):
    bias = {f"model.diffusion_model.{to_single_file._COMFY_V}": spread * torch.tensor([-1.0, 1.0])}
    notes = to_single_file._noise_notes(parameterization, version, bias)
    assert len(notes) == len(message) and all(part in note for note, part in zip(notes, message, strict=True))
    assert to_single_file._markers(parameterization).keys() == {
        *(["v_pred"] if isinstance(parameterization, V) else []),
        *(["ztsnr"] if parameterization.schedule.zero_terminal_snr else []),
    }


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_weights_go_out_in_half_precision(dtype, texts, tmp_path):
    model = make(texts["1"])
    model.export(tmp_path / "one.safetensors", "single_file", dtype=dtype)
    model.export(tmp_path / "folder", dtype=dtype)
    files = [tmp_path / "one.safetensors", *sorted((tmp_path / "folder").rglob("*.safetensors"))]
    assert len(files) == 4
    for file in files:
        assert {str(t.dtype) for t in load_file(file).values()} == {f"torch.{dtype}"}, file
    assert json.loads((tmp_path / "folder/text_encoder/config.json").read_text())["dtype"] == dtype
    halved = ldm.load(tmp_path / "folder")
    w = model.denoiser.network.conv_in.weight
    assert torch.equal(halved.denoiser.network.conv_in.weight, w.to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("out", ["one.safetensors", "folder"])
def test_a_cast_that_isnt_finite_is_refused_by_name_and_leaves_nothing(out, texts, tmp_path):
    model = make(texts["1"])
    model.denoiser.network.conv_in.weight.data[0, 0, 0, 0] = 1e5
    to = "single_file" if out.endswith("safetensors") else "diffusers"
    with pytest.raises(UserError, match=r"weight holds 1e\+05, and float16 ends at 65504: export with dtype=bfloat16"):
        export(model, tmp_path / out, to, dtype="float16")
    assert not any(tmp_path.iterdir())


def test_wrong_words_for_the_file_are_refused(texts, tmp_path):
    model = make(texts["1"])
    for out, options, message in (
        ("one", {}, "ends in .safetensors, as in out=.*one.safetensors"),
        ("one.safetensors", {"dtype": "half"}, "dtype=half isn't one of"),
    ):
        with pytest.raises(UserError, match=message):
            export(model, tmp_path / out, "single_file", **options)
    (tmp_path / "there.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="exists already"):
        export(model, tmp_path / "there.safetensors", "single_file")
    with pytest.raises(UserError, match="a model folder is in float32"):
        export(model, tmp_path / "folder", "ldm", dtype="float16")
    with pytest.raises(UserError, match="dtype=half"):
        main(["run=x", "out=y", "dtype=half"])


@pytest.mark.parametrize(("tags", "size"), [("768x512", (512, 768)), (None, None)])
def test_a_resolution_is_read(tags, size):
    assert modelspec.resolution({"modelspec.resolution": tags} if tags else {}, "here") == size


@pytest.mark.parametrize("tags", ["0x8", "8", "axb", "99999x8", "8x8x8"])
def test_a_resolution_that_makes_no_sense_is_refused(tags):
    with pytest.raises(UserError, match="here: modelspec.resolution is .*give size"):
        modelspec.resolution({"modelspec.resolution": tags}, "here")


def test_a_file_is_cast_and_keeps_its_metadata_and_whole_numbers(tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({"a.lora_down.weight": torch.ones(2, 3), "n": torch.ones(1, dtype=torch.int64)}, file, {"ss_x": "y"})
    precision.cast_file(file, "float16")
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"ss_x": "y"}
        assert opened.get_tensor("a.lora_down.weight").dtype == torch.float16
        assert opened.get_tensor("n").dtype == torch.int64


def names_and_shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1", "2"])
def test_at_full_size_nothing_differs_and_diffusers_finds_every_name(version):
    """On the meta device, from the settings that docs/howto-export.md names, against diffusers' own classes."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    second = version == "2"
    options = {"heads": [5, 10, 20, 20] if second else 8, "linear_projection": second, "scale_shift": False}
    options |= {"attention": [True, True, True, False], "context_dim": 1024 if second else 768}
    heads = (5, 10, 20, 20) if second else 8
    with torch.device("meta"):
        network = ldm.UNet(4, channels=320, multipliers=[1, 2, 4, 4], blocks=2, **options)
        vae = ldm.AutoencoderKL(3, 4, channels=128, multipliers=[1, 2, 4, 4], blocks=2, attention=True)  # vae=kl_f8
        unet = diffusers.UNet2DConditionModel(
            attention_head_dim=heads, cross_attention_dim=options["context_dim"], use_linear_projection=second
        )
        decoder = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        state = {f"model.diffusion_model.{n}": t for n, t in single_file.to_compvis(network).items()}
        found = convert_ldm_unet_checkpoint(dict(state), dict(unet.config))
        found_vae = convert_ldm_vae_checkpoint(dict(single_file.to_compvis(vae)), dict(decoder.config))
    assert names_and_shapes(found) == names_and_shapes(unet.state_dict())
    assert names_and_shapes(found_vae) == names_and_shapes(decoder.state_dict())
    assert stable_diffusion.unet_obstacles(network) == stable_diffusion.vae_obstacles(vae) == []
    assert (
        stable_diffusion._different("U-Net", stable_diffusion._sizes(network), stable_diffusion._UNETS[version]) == []
    )
    assert stable_diffusion._different("VAE", stable_diffusion._sizes(vae), stable_diffusion._VAE) == []
    assert f"model.diffusion_model.{to_single_file._COMFY_V}" in state


def test_the_run_of_a_lora_is_exported_to_the_same_tools_in_kohyas_names():
    with pytest.raises(UserError, match="export a LoRA's run with to=kohya"):
        _lora(None, "out", "single_file", None)
