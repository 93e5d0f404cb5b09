"""Maps, masks, low resolutions and embeddings through the model's one call, and cascades."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel, Conditioner, Inpaint, LowRes, Part, SemanticMap, Text
from ldm.conditioning.text import tokenizer
from ldm.diffusion import EDM, Denoiser
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import AutoencoderKL, Identity, UNet


def make(parts: dict[str, Part], first_stage: Any = None, side: int = 8) -> LatentDiffusion:
    """A small random model whose conditions all tell."""
    torch.manual_seed(0)
    conditioner = Conditioner(parts)
    stage = first_stage or AutoencoderKL(3, 2, channels=8, multipliers=(1, 2))
    network = UNet(
        stage.latent_channels,
        channels=8,
        multipliers=(1,),
        heads=2,
        context_dim=conditioner.token_dim,
        vector_dim=conditioner.vector_dim,
        concat_channels=conditioner.concat_channels,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    preprocess = Preprocess(channels=3, height=side, width=side)
    return LatentDiffusion(stage, Denoiser(network, EDM()), conditioner, preprocess, {"steps": 3}).eval()


def text() -> Text:
    return Text(tokenizer.train(["a cat"], 280), length=24, dim=8, depth=1, heads=2)


@pytest.fixture(scope="module")
def mapped() -> LatentDiffusion:
    return make({"text": text(), "map": SemanticMap(3, 2, size=[8, 8], embed=4)})


@pytest.fixture(scope="module")
def filling() -> LatentDiffusion:
    return make({"text": text(), "inpaint": Inpaint(2, 2, size=[8, 8])})


@pytest.fixture(scope="module")
def enlarging() -> LatentDiffusion:
    return make({"kind": ClassLabel(3, dim=8), "low": LowRes(3, size=[8, 8])}, Identity(3))


MAP = torch.arange(64).view(8, 8) % 3
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def generate(model: Any, *args: Any, **options: Any) -> torch.Tensor:
    return model(*args, output="pt", **options)


# Maps ----------------------------------------------------------------------------------------------------------------


def test_a_map_is_a_file_an_image_an_array_or_a_tensor(mapped: LatentDiffusion, tmp_path: Path) -> None:
    wanted = generate(mapped, map=MAP)
    ids = MAP.numpy().astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "grey.png")
    palette = Image.fromarray(ids)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png")
    given = [ids, Image.fromarray(ids), palette, str(tmp_path / "grey.png"), str(tmp_path / "palette.png")]
    for one in [*given, MAP.repeat_interleave(2, 0).repeat_interleave(2, 1)]:  # a larger one is made smaller
        assert torch.equal(generate(mapped, map=one), wanted)
    assert (generate(mapped, map=MAP.flip(0)) - wanted).abs().max() > 1e-3


def test_maps_are_counted_like_prompts(mapped: LatentDiffusion) -> None:
    several = generate(mapped, ["a cat", "a dog"], map=[MAP, MAP.flip(0)], n=2, seed=3)
    assert len(several) == 4
    torch.testing.assert_close(several[3:], generate(mapped, "a dog", map=MAP.flip(0), seed=6), atol=1e-4, rtol=0)
    assert len(generate(mapped, map=torch.stack([MAP, MAP]))) == 2
    one = generate(mapped, ["a cat", "a dog"], map=MAP)
    torch.testing.assert_close(one[1:], generate(mapped, "a dog", map=MAP, seed=1), atol=1e-4, rtol=0)


def test_other_sizes(mapped: LatentDiffusion) -> None:
    assert generate(mapped, map=MAP, size=(12, 6), guidance=2.0).shape == (1, 3, 12, 6)
    assert generate(mapped, "a cat", size=12, guidance=2.0).shape == (1, 3, 12, 12)


def test_each_condition_has_its_scale(mapped: LatentDiffusion) -> None:
    def at(guidance: Any) -> torch.Tensor:
        return generate(mapped, "a cat", map=MAP, guidance=guidance)

    torch.testing.assert_close(at({"text": 2.5, "map": 2.5}), at(2.5))
    torch.testing.assert_close(at({"text": 1, "map": 1}), at(1))
    assert (at({"text": 2.5}) - at(2.5)).abs().max() > 1e-3
    assert (at({"text": 2.5, "map": 1.5}) - at({"text": 2.5})).abs().max() > 1e-3
    torch.testing.assert_close(at({"text": 3, "map": 0}), generate(mapped, "a cat", guidance=3.0), atol=1e-4, rtol=0)


def test_guidance_by_two_scales_is_three_evaluations(mapped: LatentDiffusion, monkeypatch: Any) -> None:
    rows = []
    forward = mapped.denoiser.network.forward
    monkeypatch.setattr(mapped.denoiser.network, "forward", lambda x, *a: (rows.append(len(x)), forward(x, *a))[1])
    generate(mapped, "a cat", map=MAP, steps=4, guidance={"text": 3, "map": 1.5})
    assert rows == [3] * 4
    rows.clear()
    generate(mapped, "a cat", map=MAP, steps=4, guidance={"text": 3, "map": 1})
    assert rows == [2] * 4


# Filling -------------------------------------------------------------------------------------------------------------


def mask() -> torch.Tensor:
    hole = torch.zeros(8, 8)
    hole[2:6, 4:8] = 1
    return hole


def test_known_pixels_come_back_exactly_and_what_was_hidden_plays_no_part(filling: LatentDiffusion) -> None:
    kept = mask()[None, None].expand(2, 3, 8, 8) == 0
    out = generate(filling, "a cat", n=2, image=IMAGES, mask=mask(), guidance=2.0)
    assert torch.equal(out[kept], IMAGES[kept])
    other = torch.where(kept, IMAGES, torch.rand(2, 3, 8, 8))
    assert torch.equal(generate(filling, "a cat", n=2, image=other, mask=mask(), guidance=2.0), out)


def test_what_is_kept_tells_a_trained_model_what_to_generate(filling: LatentDiffusion) -> None:
    hole = mask()[None, None].expand(1, 3, 8, 8) == 1
    one, two = (generate(filling, "a cat", image=image, mask=mask()) for image in IMAGES)
    assert (one[hole] - two[hole]).abs().max() > 1e-3


def test_a_batch_is_its_images(filling: LatentDiffusion) -> None:
    together = generate(filling, "a cat", n=2, image=IMAGES, mask=mask(), seed=4)
    alone = [generate(filling, "a cat", image=image, mask=mask(), seed=4 + i) for i, image in enumerate(IMAGES)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        generate(filling, "a cat", n=2, image=IMAGES, mask=mask(), seed=4, batch_size=1), together, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("which", ["filling", "mapped"])
def test_a_margin_is_generated_around_the_image(which: str, request: pytest.FixtureRequest) -> None:
    """By a model that was trained to fill, and by any other."""
    model = request.getfixturevalue(which)
    out = generate(model, "a cat", image=IMAGES[:1], pad=(2, 0, 4, 6))
    assert out.shape == (1, 3, 14, 14)
    assert torch.equal(out[:, :, :8, 2:10], IMAGES[:1])
    both = generate(model, "a cat", image=IMAGES[:1], pad=2, mask=mask())
    kept = mask()[None, None].expand(1, 3, 8, 8) == 0
    assert torch.equal(both[:, :, 2:10, 2:10][kept], IMAGES[:1][kept])


def test_an_inpainting_model_also_generates_from_noise_and_from_an_image(filling: LatentDiffusion) -> None:
    assert generate(filling, "a cat", n=2, guidance=2.0).shape == (2, 3, 8, 8)
    rebuilt = generate(filling, "a cat", image=IMAGES, n=2, strength=0)
    torch.testing.assert_close(rebuilt, filling.decode(filling.encode(IMAGES)))


# Enlarging -----------------------------------------------------------------------------------------------------------


def test_an_image_is_enlarged(enlarging: LatentDiffusion) -> None:
    small = IMAGES[:, :, :4, :4]
    out = generate(enlarging, image=small)
    assert out.shape == (2, 3, 8, 8)
    assert (generate(enlarging, image=small.flip(2)) - out).abs().max() > 1e-3
    assert (generate(enlarging, image=small, noise_level=0.9) - out).abs().max() > 1e-3
    torch.testing.assert_close(generate(enlarging, image=small[1], seed=1), out[1:], atol=1e-4, rtol=0)
    assert generate(enlarging, image=torch.zeros(3, 5, 7)).shape == (1, 3, 10, 14)
    assert generate(enlarging, image=Image.new("RGB", (30, 30)), labels=[2], n=2, guidance=2.0).shape == (2, 3, 8, 8)


def test_a_cascade_is_its_models_one_after_the_other(enlarging: LatentDiffusion, tmp_path: Path) -> None:
    base = make({"kind": ClassLabel(3, dim=8)}, Identity(3), side=4)
    cascade = ldm.Cascade(base, enlarging)
    out = generate(cascade, labels=[1, 2], n=2, seed=5, noise_level=0.2)
    small = generate(base, labels=[1, 2], n=2, seed=5)
    by_hand = generate(enlarging, labels=[1, 1, 2, 2], image=small, seed=5, noise_level=0.2)
    assert torch.equal(out, by_hand) and out.shape == (4, 3, 8, 8)
    assert cascade(labels=[1])[0].size == (8, 8)
    for name, model in (("base", base), ("sr", enlarging)):
        ldm.save(model, tmp_path / name)
    loaded = ldm.load([tmp_path / "base", tmp_path / "sr"])
    torch.testing.assert_close(generate(loaded, labels=[1, 2], n=2, seed=5, noise_level=0.2), out)
    with pytest.raises(UserError, match="trained to enlarge"):
        ldm.Cascade(base, base)
    with pytest.raises(UserError, match=r"generates 3 x 8 x 8 .* enlarges 3 x 4 x 4"):
        ldm.Cascade(enlarging, enlarging)
    with pytest.raises(UserError, match="at least one model for super-resolution"):
        ldm.Cascade(base)


# Meaning -------------------------------------------------------------------------------------------------------------


def test_variations_of_an_image_by_its_meaning(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=4).state_dict(), tmp_path / "r.pt")
    spec = {"encoder": "resnet18", "weights": str(tmp_path / "r.pt"), "image_size": 32, "dim": 8, "tokens": True}
    model = make({"image": ldm.ImageEmbedding(**(spec | ldm.ImageEmbedding.derive(None, spec)))})
    out = generate(model, embed_image=IMAGES, n=2, guidance=2.0)
    assert out.shape == (4, 3, 8, 8) and (out[0] - out[2]).abs().max() > 1e-3
    ldm.save(model, tmp_path / "m")
    again = generate(ldm.load(tmp_path / "m"), embed_image=IMAGES, n=2, guidance=2.0)
    torch.testing.assert_close(again, out, rtol=0, atol=1e-5)  # torch 2.9's convolutions depend on where weights lie


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "options", "words"),
    [
        ("mapped", {"embed_image": IMAGES}, "can't take embed_image; it was trained with text, map"),
        ("mapped", {"noise_level": 0.1}, "can't take noise_level"),
        ("mapped", {"map": MAP + 1}, "class 3; this model knows 0 to 2"),
        ("mapped", {"map": [MAP, MAP], "prompt": ["a", "b", "c"]}, "differ in number"),
        ("mapped", {"guidance": {"txet": 2}}, "no condition 'txet'; it has text, map"),
        ("mapped", {"pad": 2}, "need an image"),
        ("mapped", {"image": IMAGES[:1], "pad": (1, 2)}, "one number of pixels, or four"),
        ("mapped", {"image": IMAGES[:1], "pad": (1, 0, 0, 0)}, "isn't divisible"),
        ("filling", {"map": MAP}, "can't take map; it was trained with text, image, mask"),
        ("enlarging", {"image": IMAGES, "strength": 0.5}, "enlarges image=; leave out strength, mask and pad"),
        ("enlarging", {"noise_level": 0.5}, "give image= too"),
        ("enlarging", {"image": IMAGES[:1], "noise_level": 2}, "between 0"),
    ],
)
def test_mistakes_are_answered_in_words(which: str, options: dict[str, Any], words: str, request: Any) -> None:
    with pytest.raises(UserError, match=words):
        request.getfixturevalue(which)(**options)
