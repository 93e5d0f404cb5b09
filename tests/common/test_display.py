"""How models and lists of images display themselves."""

import io

import numpy as np
import pytest
from PIL import Image

import ldm
from ldm.common.describe import as_html
from ldm.common.errors import UserError
from ldm.images import ImageList


def test_an_autoencoder_says_what_it_takes_and_gives() -> None:
    vae = ldm.AutoencoderKL(in_channels=3, latent_channels=4, channels=16, multipliers=[1, 2], stem=2)
    assert repr(vae).splitlines()[0] == "AutoencoderKL"
    assert "4 channels, 1/4 of height and width" in repr(vae)
    assert vae._repr_html_().startswith("<b>AutoencoderKL</b><table>")
    assert f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M" in vae._repr_html_()


def test_html_cannot_be_broken_out_of() -> None:
    assert "<script>" not in as_html("<script>", {"<script>": "<script>"})


def test_images_are_a_list_that_shows_a_grid() -> None:
    results = ImageList(Image.new("RGB", (10, 6), colour) for colour in ("red", "lime", "blue"))
    assert isinstance(results, list) and len(results) == 3
    sheet = results.grid()
    assert sheet.size == (2 * 12 + 2, 2 * 8 + 2)
    assert [sheet.getpixel(place) for place in ((3, 3), (15, 3), (3, 11), (15, 11))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    png = results._repr_png_()
    assert png is not None and Image.open(io.BytesIO(png)).size == sheet.size
    assert ImageList()._repr_png_() is None
    with pytest.raises(UserError, match="no images"):
        ImageList().grid()


def test_16_bits_are_shown_and_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert ImageList([grey]).grid().getpixel((3, 3)) == (128, 128, 128)
