from pathlib import Path

import pytest

from ldm.common.errors import UserError
from ldm.interop.hub.address import Address, is_address, name_of, origin_of, parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://owner/name", Address("owner/name")),
        (Path("hf://owner/name"), Address("owner/name")),  # which has lost a slash
        ("hf://owner/name/", Address("owner/name")),
        ("hf://owner/na.me-1_x@v1.0", Address("owner/na.me-1_x", "v1.0")),
        (f"hf://owner/name@{COMMIT}/unet", Address("owner/name", COMMIT, "unet")),
        ("hf://owner/name@refs/pr/3/a/b.safetensors", Address("owner/name", "refs/pr/3", "a/b.safetensors")),
        ("hf://owner/name@feature%2Fx", Address("owner/name", "feature/x")),
    ],
)
def test_addresses_are_read(text, address):
    assert is_address(text) and parse(text) == address


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://name", "hf://owner/name@", "hf://owner/name/../other", "hf://owner/name//x", "hf://ow ner/name"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="isn't an address on the hub: give hf://OWNER/NAME"):
        parse(text)


def test_datasets_are_refused():
    with pytest.raises(UserError, match="names no repository of a model"):
        parse("hf://datasets/owner/name")


def test_other_paths_are_no_addresses():
    assert not any(map(is_address, ("runs/hf", "hf", "/hf://owner/name", "https://x/y", None)))


def test_a_path_in_the_cache_tells_where_it_is_from():
    snapshot = Path("/cache/models--owner--na-me/snapshots") / COMMIT
    assert origin_of(snapshot) == f"hf://owner/na-me@{COMMIT}"
    assert origin_of(snapshot / "unet/x") == f"hf://owner/na-me@{COMMIT}/unet/x"
    assert origin_of("/cache/models--owner--name") is None
    assert [name_of(snapshot), name_of(snapshot / "unet"), name_of(Path("a/b"))] == ["na-me", "unet", "b"]
