"""From prompt to prompt, from image to image, and around an image."""

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.common.errors import UserError
from ldm.conditioning.text import tokenizer
from ldm.diffusion import V
from ldm.images import Preprocess
from ldm.model.interpolation import between
from ldm.networks import Cond

SHORT, LONG = "a cat", "a dog on a very red background"


@pytest.fixture(scope="module")
def model() -> ldm.LatentDiffusion:
    torch.manual_seed(0)
    text = ldm.Text(tokenizer.train([SHORT, LONG], 300), length=24, dim=8, depth=1, heads=2)
    conditioner = ldm.Conditioner({"text": text, "label": ldm.ClassLabel(3, ["x", "y", "z"], dim=8)})
    network = ldm.UNet(2, channels=[8, 8], heads=2, context_dim=8, vector_dim=conditioner.vector_dim)
    made = ldm.LatentDiffusion(
        ldm.AutoencoderKL(3, 2, channels=8, multipliers=[1, 1]),
        ldm.Denoiser(network, V()),
        conditioner,
        Preprocess(3, 8, 8),
        {"steps": 3, "guidance": 2.0},
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def distances(images: torch.Tensor) -> list[float]:
    return [(a - b).square().mean().item() for a, b in zip(images, images[1:], strict=False)]


@pytest.mark.parametrize(("a", "b"), [(SHORT, LONG), (LONG, SHORT), (0, 2)])
def test_between_prompts_and_labels_the_ends_are_the_models_own_images(model, a, b):
    path = model.interpolate(a, b, n=5, seed=3, output="pt", batch_size=2)
    column = "labels" if isinstance(a, int) else "prompt"
    for end, generated in ((a, path[0]), (b, path[-1])):
        own = model(**{column: [end]}, seed=3, output="pt")[0]
        torch.testing.assert_close(generated, own, atol=2e-4, rtol=1e-3)
    whole = (path[0] - path[-1]).square().mean().item()
    assert whole > 1e-4 and all(step > 0 for step in distances(path))


def test_conditions_have_their_lengths_at_the_ends_and_both_between(model):
    conds = [model.conditioner(model.conditioner.parse({"text": [words] * 3})) for words in (SHORT, LONG)]
    made = between(conds[0], conds[1], torch.tensor([0.0, 0.5, 1.0]))
    lengths = [int(c.mask[0].sum()) for c in conds]
    assert made.mask.sum(1).tolist() == [lengths[0], max(lengths), lengths[1]]
    torch.testing.assert_close(made.tokens[2, : conds[1].tokens.shape[1]], conds[1].tokens[2])


def test_unmasked_tokens_stay_unmasked():
    a, b = (Cond(tokens=torch.randn(2, 4, 8)) for _ in range(2))
    assert between(a, b, torch.tensor([0.2, 0.8])).mask is None


def test_between_images_the_ends_are_reconstructions(model):
    a, b = image(0), image(1)
    path = model.interpolate(a, b, n=6, output="pt")
    for end, generated in ((a, path[0]), (b, path[-1])):
        torch.testing.assert_close(generated[None], model(image=end, strength=0, output="pt"), atol=2e-4, rtol=1e-3)
    assert max(distances(path)) < (path[0] - path[-1]).square().mean().item()
    again = model.interpolate(a, b, n=6, strength=0.6, prompt=SHORT, output="pt")
    assert again.shape == path.shape and (again - path).abs().max() > 1e-3


def test_files_may_be_named(model, tmp_path):
    for i in range(2):
        image(i).save(tmp_path / f"{i}.png")
    named = model.interpolate(str(tmp_path / "0.png"), tmp_path / "1.png", n=2, output="pt")
    assert torch.equal(named, model.interpolate(image(0), image(1), n=2, output="pt"))


def test_a_file_that_is_not_there_is_no_prompt(model):
    with pytest.raises(UserError, match="there is no file a.png"):
        model.interpolate("a.png", "b.png")


def test_variations_differ_from_each_other_and_not_much_from_the_image(model):
    made = model.variations(image(0), n=3, strength=0.4, output="pt")
    assert made.shape == (3, 3, 8, 8) and all(step > 0 for step in distances(made))
    assert len(model.variations(image(0), n=2, prompt=SHORT)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHORT, 1), "two prompts, two labels or two images"),
        ((SHORT, LONG, 1), "includes both ends"),
        (([1.0], SHORT), "two prompts, two labels or two images"),
    ],
)
def test_what_has_no_way_between_is_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.interpolate(*arguments)
    with pytest.raises(UserError, match="for interpolations between images"):
        model.interpolate(SHORT, LONG, strength=0.5)
