"""Stable Diffusion XL: its parts at full size, and whole pipelines in and out."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ldm
from ldm.common.errors import UserError
from ldm.common.registry import build
from ldm.diffusion import Schedule
from ldm.interop import single_file
from ldm.interop.parts import clip_text, compvis_shapes, to_clip, unet_config
from tests.interop import sdxl
from tests.interop.models import diffusers, transformers
from tests.interop.pipelines import assert_same_image, generate, initial_noise, run_pipeline

PROMPT = "a cat above a rocket"
SIZES = {"original_size": (30, 46), "crop": (3, 5), "target_size": (20, 24)}
THEIRS = {"original_size": (30, 46), "crops_coords_top_left": (3, 5), "target_size": (20, 24)}


def names_and_shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.slow
def test_the_unet_at_full_size_has_diffusers_names_and_shapes():
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**sdxl.UNET)
        ours = build(unet_config.from_diffusers(dict(theirs.config)))
    assert names_and_shapes(ours.state_dict()) == names_and_shapes(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == 2_567_463_684
    written = unet_config.to_diffusers(ours, 128)
    with torch.device("meta"):
        again = diffusers.UNet2DConditionModel.from_config(written)
    assert names_and_shapes(again.state_dict()) == names_and_shapes(theirs.state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sdxl.write_small(tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def pipe(folder):
    return diffusers.DiffusionPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return ldm.load(folder)


def start_of(model):
    sigma = model.denoiser.parameterization.sigma_max
    return initial_noise(model) * sigma / (1 + sigma**2) ** 0.5


@pytest.mark.parametrize(
    ("negative", "sizes", "theirs"),
    [(None, {}, {}), ("a dog", SIZES, THEIRS), (None, {"crop": 4}, {"crops_coords_top_left": (4, 4)}), ("", {}, {})],
)
def test_a_pipeline_of_diffusers_comes_in_and_generates_its_image(negative, sizes, theirs, model, pipe):
    assert model.sampling["guidance"] == 5.0
    ours, latents = generate(model, prompt=PROMPT, negative=negative, steps=5, **sizes)
    options = {"negative_prompt": negative, "num_inference_steps": 5, "height": 16, "width": 16, **theirs}
    expected, wanted = run_pipeline(pipe, start_of(model), prompt=PROMPT, **options)
    assert_same_image(ours, expected, latents, wanted)


def test_sizes_and_what_stands_for_no_prompt_change_the_image(model):
    plain, sized, spoken = (
        generate(model, prompt=PROMPT, steps=3, **options)[0] for options in ({}, SIZES, {"negative": ""})
    )
    for other in (sized, spoken):
        assert (plain - other).std() > 1e-3


def test_an_image_is_changed_as_diffusers_changes_it(model, folder):
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = model(PROMPT, image=image, strength=0.5, steps=10, output="pt", seed=[0])
    latent = model.encode(image)
    options = {"num_inference_steps": 10, "guidance_scale": 5.0, "strength": 0.5, "output_type": "pt"}
    seed = torch.Generator().manual_seed(0)
    theirs = pipe(PROMPT, image=latent, generator=seed, original_size=(16, 16), target_size=(16, 16), **options).images
    error = (ours / 2 + 0.5 - theirs).square().mean()
    assert theirs.std() > 0.05 and -10 * error.log10() > 45


def test_what_is_outside_of_a_mask_is_kept_exactly(model):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    filled = model(PROMPT, image=image, mask=mask, steps=4, output="pt", **SIZES)
    outside = mask.expand_as(image) == 0
    assert torch.equal(filled[outside], image[outside]) and (filled - image)[~outside].std() > 0.05


def test_it_is_exported_as_it_was_imported(model, folder, pipe, tmp_path):
    assert model.export(tmp_path / "out").stock
    weights = "diffusion_pytorch_model.safetensors"
    files = [f"unet/{weights}", f"vae/{weights}", *(f"text_encoder{s}/model.safetensors" for s in ("", "_2"))]
    for file in files:
        before, after = load_file(folder / file), load_file(tmp_path / "out" / file)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before), file
    for name in ("unet/config.json", "vae/config.json"):
        before, after = (json.loads((root / name).read_text()) for root in (folder, tmp_path / "out"))
        keys = ("addition_embed_type", "addition_time_embed_dim", "transformer_layers_per_block", "attention_head_dim")
        assert all(before.get(key) == after.get(key) for key in keys), name
    assert json.loads((tmp_path / "out/vae/config.json").read_text())["scaling_factor"] == pytest.approx(0.13025)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(again) is type(pipe) and again.config.force_zeros_for_empty_prompt
    options = {"prompt": PROMPT, "num_inference_steps": 2, "height": 16, "width": 16, **THEIRS}
    one, two = (run_pipeline(each, start_of(model), **options)[0] for each in (pipe, again))
    assert one.std() > 0.05 and torch.equal(one, two)


def test_a_model_folder_of_it_stands_alone(model, folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    expected = model(PROMPT, steps=2, output="pt")
    ldm.load(moved).export(tmp_path / "bundle", to="ldm")
    shutil.rmtree(moved)
    assert torch.equal(ldm.load(tmp_path / "bundle")(PROMPT, steps=2, output="pt"), expected)


def changed(folder, tmp_path, index=None, **configs):
    """A copy of the folder with settings of its index, or of its parts' configs, changed."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file, settings in {"model_index": index or {}, **{f"{k}/config": v for k, v in configs.items()}}.items():
        path = copy / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return copy


NONE = [None, None]


@pytest.mark.parametrize(
    ("index", "configs", "message"),
    [
        ({"text_encoder": NONE, "tokenizer": NONE}, {}, "the refiner of Stable Diffusion XL can't be represented here"),
        ({"requires_aesthetics_score": True}, {}, "requires_aesthetics_score=True"),
        ({"tokenizer_2": NONE}, {}, "tokenizer_2 is missing"),
        ({"text_encoder_2": NONE, "tokenizer_2": NONE}, {}, "text_encoder_2, tokenizer_2 is missing"),
        (
            {"text_encoder_2": NONE, "tokenizer_2": NONE, "_class_name": "StableDiffusionPipeline"},
            {},
            "text_encoder_2, tokenizer_2 is missing, which its U-Net",
        ),
        ({"force_zeros_for_empty_prompt": "no"}, {}, "force_zeros_for_empty_prompt is 'no', where true or false"),
        ({}, {"text_encoder_2": {"projection_dim": 21}}, "a vector of 69 numbers, but the U-Net reads 68"),
        (
            {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]},
            {},
            "no counterpart here: image_encoder",
        ),
        ({"a_thing_of_the_future": 3}, {}, "a_thing_of_the_future=3"),
    ],
)
def test_what_isnt_whole_or_isnt_known_is_refused_by_name(index, configs, message, folder, tmp_path):
    with pytest.raises(UserError, match=message):
        ldm.load(changed(folder, tmp_path, index, **configs))


def test_force_zeros_is_read_and_written(folder, tmp_path):
    model = ldm.load(changed(folder, tmp_path, {"force_zeros_for_empty_prompt": False}))
    null = model.conditioner.null(1)
    assert null.tokens.abs().max() > 0
    model.export(tmp_path / "out")
    assert json.loads((tmp_path / "out/model_index.json").read_text())["force_zeros_for_empty_prompt"] is False


def test_a_model_that_isnt_such_a_pipeline_says_why(folder, tmp_path):
    model = ldm.load(folder)
    model.conditioner.parts["text"].encoders[0].clip_skip = 1
    with pytest.raises(
        UserError,
        match=r"a StableDiffusionXLPipeline.*first text encoder isn't read as in Stable Diffusion XL \(clip_skip=2",
    ):
        model.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def clip(**sizes):
    return transformers.CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **sizes)


@pytest.mark.slow
def test_at_full_size_a_file_has_the_published_names_and_shapes():
    """Of the transcribed lists; that these are whole is seen from their files' lengths."""
    for kind, names in (("unet", sdxl.unet_names()), ("clip", sdxl.clip_names())):
        assert len(sdxl.listed(names)) == sdxl.CHARACTERS[kind]
    with torch.device("meta"):
        network = build(unet_config.from_diffusers(sdxl.UNET))
        vae = ldm.AutoencoderKL(3, 4, channels=128, multipliers=[1, 2, 4, 4], blocks=2, attention=True)
        second = transformers.CLIPTextModelWithProjection(
            clip(
                hidden_size=1280,
                num_hidden_layers=32,
                intermediate_size=5120,
                num_attention_heads=20,
                projection_dim=1280,
            )
        )
        first = transformers.CLIPTextModel(
            clip(hidden_size=768, num_hidden_layers=12, intermediate_size=3072, num_attention_heads=12)
        )
    written = shapes_of(single_file.to_compvis(network))
    assert written == sdxl.unet_names()
    assert len(sdxl.listed(shapes_of(single_file.to_compvis(vae)))) == sdxl.CHARACTERS["vae"]
    theirs = {f"model.{name}": shape for name, shape in sdxl.clip_names().items() if name != "logit_scale"}
    state = to_clip.to_open_clip_names(second.state_dict(), whole=True)
    assert shapes_of(state) == theirs
    back = clip_text.from_open_clip_names(state, whole=True)
    own = {
        n.removeprefix("text_model."): t for n, t in shapes_of(second.state_dict()).items() if "position_ids" not in n
    }
    assert shapes_of(back) == own
    again = clip_text.from_clip_names(to_clip.to_clip_names(first.state_dict()))
    assert len(again) == 2 + 16 * 12 + 2
    read = compvis_shapes.unet_spec({n: torch.empty(s, device="meta") for n, s in written.items()}, None, None)[0]
    assert {**unet_config.from_diffusers(sdxl.UNET), "heads": read["heads"], "dropout": 0.0} == {**read, "dropout": 0.0}
    assert read["heads"][1:] == [10, 20]


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("file")
    report = model.export(root / "one.safetensors", to="single_file")
    assert report.stock and "aren't Stable Diffusion XL's" in str(report)
    return root / "one.safetensors"


def test_a_single_file_is_read_back_bit_equal_and_generates_the_same_image(file, model, folder, tmp_path):
    back = ldm.load(file, text_encoder=str(folder))
    for one, two in ((model.denoiser.network, back.denoiser.network), (model.first_stage, back.first_stage)):
        assert all(torch.equal(t, two.state_dict()[name]) for name, t in one.state_dict().items())
    for one, two in zip(*(m.conditioner.parts["text"].encoders for m in (model, back)), strict=True):
        own, other = one.encoder.state_dict(), two.encoder.state_dict()
        assert own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own)
    assert back.latent_std[0] == pytest.approx(1 / 0.13025) and back.sampling["guidance"] == 5.0
    assert back.preprocess.shape == (3, 16, 16)  # by the file's own metadata
    ours, theirs = (m(PROMPT, steps=3, sampler="ddim", output="pt", **SIZES) for m in (model, back))
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    back.export(tmp_path / "again.safetensors", to="single_file")
    one, two = load_file(file), load_file(tmp_path / "again.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_diffusers_opens_the_single_file_and_generates_the_same_image(file, folder, pipe):
    opened = diffusers.StableDiffusionXLPipeline.from_single_file(file, config=str(folder), local_files_only=True)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, two = getattr(pipe, part).state_dict(), getattr(opened, part).state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one), part
    images = []
    for each in (pipe, opened):
        each.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt", **THEIRS}
        images.append(each(PROMPT, generator=torch.Generator().manual_seed(0), **options).images)
    assert images[0].std() > 0.05
    torch.testing.assert_close(images[1], images[0], atol=1e-5, rtol=0)


def test_the_file_has_stability_ais_names_and_declares_what_it_is(file):
    with safe_open(file, "pt") as opened:
        names, about = set(opened.keys()), opened.metadata()
    first, second = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
    places = ("model.diffusion_model.label_emb.0.2.bias", f"{first}final_layer_norm.bias", f"{second}text_projection")
    assert {*places, "first_stage_model.encoder.conv_in.weight"} <= names
    known = ("model.diffusion_model.", "first_stage_model.", first, second)
    assert all(name.startswith(known) for name in names)
    assert about["modelspec.architecture"] == "ldm-stable-diffusion-xl" and about["modelspec.resolution"] == "16x16"
    assert about["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"


SIGMAS = ((1 / Schedule().alphas_cumprod - 1).sqrt()).float()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"denoiser.sigmas": SIGMAS}, None),
        ({"denoiser.sigmas": SIGMAS.flip(0).half()}, None),
        ({"denoiser.sigmas": SIGMAS * 2}, "its noise schedule is neither linear nor scaled_linear"),
        ({"conditioner.embedders.0.model.ln_final.bias": torch.zeros(2)}, "holds Stable Diffusion XL's refiner"),
        (
            {"conditioner.embedders.2.weight": torch.zeros(2)},
            "it holds conditioner.embedders.2.weight, which isn't supported",
        ),
        ({"conditioner.embedders.1.model.unknown": torch.zeros(2)}, "unexpected text_model.model.unknown"),
        ({"model.diffusion_model.unknown": torch.zeros(2)}, "unexpected unknown"),
    ],
)
def test_everything_in_a_file_is_read_or_refused_by_name(tensors, message, file, folder, tmp_path):
    save_file({**load_file(file), **tensors}, tmp_path / "a.safetensors")
    if message is None:
        assert (
            type(ldm.load(tmp_path / "a.safetensors", text_encoder=str(folder), size=16)).__name__ == "LatentDiffusion"
        )
        return
    with pytest.raises(UserError, match=message):
        ldm.load(tmp_path / "a.safetensors", text_encoder=str(folder), size=16)


def test_without_tokenizers_the_file_opens_and_says_that_it_takes_no_prompt(file, folder, caplog):
    model = ldm.load(file)
    assert "without text_encoder=FOLDER, which has the tokenizer, the model takes no prompt" in caplog.text
    with pytest.raises(UserError, match="load a file of Stable Diffusion XL with text_encoder=FOLDER"):
        model(steps=1)
    with pytest.raises(UserError, match="tokenizer is missing; it belongs to Stable Diffusion XL.s two tokenizers"):
        ldm.load(file, text_encoder=str(folder / "tokenizer").replace("tokenizer", "unet"))


NEGATIVE_SIZES = {"original_size": (4, 6), "crop": (2, 1), "target_size": (12, 9)}
THEIR_NEGATIVE_SIZES = {
    "negative_original_size": (4, 6),
    "negative_crops_coords_top_left": (2, 1),
    "negative_target_size": (12, 9),
}


@pytest.mark.parametrize(
    ("options", "negative", "theirs"),
    [
        (SIZES, NEGATIVE_SIZES, THEIRS | THEIR_NEGATIVE_SIZES),
        ({}, {"prompt": "a dog", **NEGATIVE_SIZES}, {"negative_prompt": "a dog", **THEIR_NEGATIVE_SIZES}),
        ({"prompt_2": "a boat"}, None, {"prompt_2": "a boat"}),
        (
            {"prompt_2": "a boat"},
            {"prompt": "a dog", "prompt_2": "a fish"},
            {"prompt_2": "a boat", "negative_prompt": "a dog", "negative_prompt_2": "a fish"},
        ),
    ],
)
def test_what_is_negative_and_a_second_prompt_are_taken_as_diffusers_takes_them(options, negative, theirs, model, pipe):
    ours, latents = generate(model, prompt=PROMPT, negative=negative, steps=5, **options)
    sides = {"num_inference_steps": 5, "height": 16, "width": 16}
    expected, wanted = run_pipeline(pipe, start_of(model), prompt=PROMPT, **sides, **theirs)
    assert_same_image(ours, expected, latents, wanted)
    plain = generate(model, prompt=PROMPT, steps=5)[0]
    assert (ours - plain).std() > 1e-3


def test_what_is_negative_is_refused_by_name_and_said_where_it_does_nothing(model, caplog):
    for options, says in (
        ({"negative": {"size": 3}}, "negative has no 'size'; it takes prompt, prompt_2, original_size"),
        ({"negative": {"crop": -1}}, r"negative crop=-1: give \(top, left\)"),
        (
            {"negative": {"prompt_2": "a"}},
            "negative prompt_2 is for the second text encoder: also give negative prompt",
        ),
        ({"negative": {"prompt": 3}}, "negative prompt=3: give a word or a list"),
        ({"prompt_2": ["a", "b"]}, "1 of prompt and 2 of prompt_2"),
    ):
        with pytest.raises(UserError, match=says):
            model("a cat", **options)
    assert "no effect" not in caplog.text
    plain = model("a cat", steps=1, guidance=1.0, output="pt")
    assert torch.equal(model("a cat", steps=1, guidance=1.0, negative="a dog", output="pt"), plain)
    assert "negative prompts and conditions have no effect at guidance 1" in caplog.text


def test_two_prompts_for_each_of_several_images_are_the_same_alone(model):
    pairs = [("a cat", "a boat"), ("a dog", "a fish")]
    both = model([first for first, _ in pairs], prompt_2=[second for _, second in pairs], steps=1, output="pt")
    for i, (first, second) in enumerate(pairs):
        alone = model(first, prompt_2=second, seed=i, steps=1, output="pt")
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4, rtol=0)


def in_half(file, name):
    """Puts float16 weights of a file under another name in its place."""
    state = {key: t.half() if t.is_floating_point() else t for key, t in load_file(file).items()}
    file.unlink()
    save_file(state, file.with_name(name), {"format": "pt"})


def test_a_folder_of_half_precision_variants_alone_is_read_and_goes_out_under_plain_names(folder, model, tmp_path):
    copy, weights = shutil.copytree(folder, tmp_path / "copy"), "diffusion_pytorch_model"
    for suffix in ("", "_2"):
        in_half(copy / f"text_encoder{suffix}/model.safetensors", "model.fp16.safetensors")
    in_half(copy / f"vae/{weights}.safetensors", f"{weights}.fp16.safetensors")
    in_half(copy / f"unet/{weights}.safetensors", f"{weights}.fp16-00001-of-00001.safetensors")
    names = dict.fromkeys(model.denoiser.network.state_dict(), f"{weights}.fp16-00001-of-00001.safetensors")
    index = copy / "unet" / f"{weights}.safetensors.index.fp16.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    back = ldm.load(copy)
    for name, tensor in back.denoiser.network.state_dict().items():
        assert torch.equal(tensor, model.denoiser.network.state_dict()[name].half().float())
    back.export(tmp_path / "out")
    assert (tmp_path / "out/text_encoder_2/model.safetensors").is_file()
    own, other = (m.conditioner.parts["text"](["a cat"]).tokens for m in (back, ldm.load(tmp_path / "out")))
    assert torch.equal(own, other)


def test_a_text_encoder_that_holds_more_or_isnt_there_is_refused_by_name(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "text_encoder_2/model.safetensors"
    save_file({**load_file(file), "adapter.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(UserError, match="a CLIPTextModelWithProjection has no adapter.weight"):
        ldm.load(copy)("a cat", steps=1)
    shutil.rmtree(copy / "tokenizer_2")
    with pytest.raises(UserError, match="tokenizer_2 is missing, although its model_index.json names it"):
        ldm.load(copy)


def test_a_clip_skip_that_isnt_applied_is_said(file, folder, tmp_path, caplog):
    save_file(load_file(file), tmp_path / "a.safetensors", {"ss_clip_skip": "3"})
    ldm.load(tmp_path / "a.safetensors", text_encoder=str(folder), size=16)
    assert "ss_clip_skip=3 isn't applied: the penultimate layer is read" in caplog.text
