"""An image's own size, crop and target size: recorded while it is prepared, and given to the network."""

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, ImageSize, conditions_of
from ldm.conditioning.sizes import framed
from ldm.data.sources.folder import Folder
from ldm.diffusion import Denoiser, Eps
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Identity
from ldm.networks.layers import timestep_embedding


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((40, 20), "cover", (40, 20, 5, 0, 10, 10)),  # made 20 x 10, of which the middle ten rows are kept
        ((20, 60), "cover", (20, 60, 0, 10, 10, 10)),
        ((10, 10), "cover", (10, 10, 0, 0, 10, 10)),
        ((5, 8), "cover", (5, 8, 0, 3, 10, 10)),  # smaller ones keep their own size
        ((40, 20), "contain", (40, 20, 0, 0, 10, 10)),
        ((40, 20), "stretch", (40, 20, 0, 0, 10, 10)),
        ((10, 10), "none", (10, 10, 0, 0, 10, 10)),
    ],
)
def test_a_frame_says_the_own_size_the_crop_and_the_size(size, resize, expected):
    assert Preprocess(3, 10, 10, resize=resize).frame(*size) == expected


def test_a_corner_is_where_the_pixels_come_from():
    """Of an image whose rows are numbered the first one kept is the corner's."""
    rows = np.repeat(np.arange(40, dtype=np.uint8)[:, None], 10, 1)
    preprocess = Preprocess(1, 10, 10)
    top = preprocess.frame(40, 10)[2]
    assert top == 15 and preprocess.array(Image.fromarray(rows))[0, 0, 0] == rows[top, 0]


@pytest.fixture
def photos(tmp_path):
    """Twelve images of three sizes, one of them turned by its EXIF."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(12):
        image = Image.new("RGB", [(32, 16), (16, 16), (20, 60)][i % 3], (i, 0, 0))
        exif = image.getexif()
        if i == 11:
            exif[0x0112] = 6  # stored lying
        image.save(root / f"{i}.png", exif=exif)
    return root


def test_they_are_read_off_the_images_of_a_folder_and_cached(photos, tmp_path):
    for table in (*Folder(str(photos), size=16).tables(tmp_path), *Folder(str(photos), size=16).tables(tmp_path)):
        frames = table.batch(np.arange(len(table)), ["frame"])["frame"]
        assert frames.dtype == torch.int64 and "frame" not in table.columns
        for name, frame in zip(table.names, frames.tolist(), strict=True):
            number = int(name.removesuffix(".png"))
            lying, square, upright = [16, 32, 0, 8, 16, 16], [16, 16, 0, 0, 16, 16], [60, 20, 16, 0, 16, 16]
            assert frame == ([20, 60, 0, 16, 16, 16] if number == 11 else [lying, square, upright][number % 3])


def test_of_buckets_each_has_its_own_target_size(photos, tmp_path):
    train, _ = Folder(str(photos), size=32, buckets=True, bucket_least=1).tables(tmp_path)
    targets = {tuple(b.batch(np.arange(1), ["frame"])["frame"][0, 4:].tolist()) for b in train.buckets}
    assert targets == {tuple(b.images.shape[2:]) for b in train.buckets} and len(targets) > 1


def test_an_older_cache_is_named_with_what_to_do(photos, tmp_path):
    train, _ = Folder(str(photos), size=16).tables(tmp_path)
    (next(tmp_path.glob("*/train")) / "frame.npy").unlink()
    train, _ = Folder(str(photos), size=16).tables(tmp_path)
    with pytest.raises(
        UserError, match=f"conditioner.size reads the images' own sizes.*remove the folder {train.key[:9]}"
    ):
        train.check_frames("conditioner.size")
    with pytest.raises(UserError, match="no 'frame'"):
        train.gather(np.arange(1), ["frame"])


def test_each_number_has_its_features_in_order():
    frames = torch.tensor([[60, 20, 14, 0, 16, 16], [16, 32, 0, 8, 16, 16]])
    part = ImageSize(features=8, size=[16, 16])
    vector = part(frames).vector
    assert vector.shape == (2, part.vector_dim) == (2, 48)
    for i in range(6):
        torch.testing.assert_close(vector[:, 8 * i : 8 * i + 8], timestep_embedding(frames[:, i], 8))
    assert part.null_values(2).tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert part.null_sized(1, (8, 24)).tolist() == [[8, 24, 0, 0, 8, 24]]


class Told(torch.nn.Module):
    """Records the vectors that it is given."""

    def __init__(self):
        super().__init__()
        self.seen, self.weight = [], torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, c_noise, cond=None, residuals=None):
        self.seen.append(cond.vector)
        return torch.zeros_like(x)


def model(parts=None):
    conditioner = Conditioner(parts if parts is not None else {"size": ImageSize(8, [16, 16])})
    return LatentDiffusion(Identity(3), Denoiser(Told(), Eps()), conditioner, Preprocess(3, 16, 16))


def test_generating_passes_the_size_unless_another_is_given_on_both_sides_of_guidance():
    made = model()
    part = made.conditioner.parts["size"]
    for options, expected in (
        ({"size": (24, 32)}, [24, 32, 0, 0, 24, 32]),
        ({"original_size": (512, 768), "crop": (0, 9)}, [512, 768, 0, 9, 16, 16]),
        ({"target_size": 64, "guidance": 3.0}, [16, 16, 0, 0, 64, 64]),
    ):
        made.denoiser.network.seen.clear()
        made(n=2, steps=1, output="pt", **options)
        wanted = part(torch.tensor([expected] * 2)).vector
        assert made.denoiser.network.seen
        for vector in made.denoiser.network.seen:
            torch.testing.assert_close(vector, wanted)


@pytest.mark.parametrize("wrong", [{"crop": -1}, {"original_size": (0, 3)}, {"target_size": (1, 2, 3)}, {"crop": 1.5}])
def test_an_invalid_size_is_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=.*in pixels, whole numbers from"):
        framed((16, 16), **wrong)


def test_a_model_without_sizes_says_so():
    with pytest.raises(UserError, match="crop: this model was trained without the images' own sizes"):
        model({})(crop=(1, 2))
    with pytest.raises(UserError, match="features=1"):
        ImageSize(1)


def test_samples_out_of_the_data_are_generated_as_they_were(photos, tmp_path):
    train, _ = Folder(str(photos), size=16).tables(tmp_path)
    part = ImageSize.derive(train, {})
    conditioner = Conditioner({"size": ImageSize(8, **part)})
    batch = train.batch(np.arange(3), conditioner.needs)
    requested = conditions_of(conditioner, conditioner.examples(batch))
    assert torch.equal(requested.batch["frame"], batch["frame"])


def test_a_network_learns_from_the_sizes_of_a_folder(photos, tmp_path):
    from ldm.training import ldm_run

    spec = {"size": {"class": "ImageSize", "features": 4}}
    train, _ = Folder(str(photos), size=16).tables(tmp_path)
    conditioner = ldm_run.build_conditioner(spec, None, train, Identity(3))
    assert conditioner.vector_dim == 24 and conditioner.parts["size"].size == (16, 16)
    network = ldm.UNet(3, channels=8, heads=2, **{"vector_dim": conditioner.vector_dim, "vector_layers": 2})
    cond = conditioner(train.batch(np.arange(2), conditioner.needs))
    network(torch.randn(2, 3, 16, 16), torch.zeros(2), cond).sum().backward()
    assert network.add_embedding.linear_1.weight.grad is not None
