"""Files and command lines from strangers: an error in one line or a counted skip, never a traceback, never code run."""

import contextlib
import io
import json
import random
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import ldm
from ldm import artifact
from ldm.common.errors import UserError
from ldm.common.files import write_recorded
from ldm.config import overrides
from ldm.data.folders.listing import samples
from ldm.data.reading.store import ZipStore, open_store
from ldm.data.sources.folder import Folder
from ldm.images import BadImage, Preprocess
from ldm.networks import AutoencoderKL

FUZZ = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=35
)


def encoded(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)).convert(mode).save(out, kind)
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((9, 7, 3), np.uint8))
    return out.getvalue()


PICTURES = [encoded("PNG"), encoded("JPEG"), encoded("GIF", "P"), encoded("TIFF"), encoded("BMP"), npy()]


@st.composite
def spoilt(draw, originals):
    """A file with bytes changed, cut off or put in."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["change", "cut", "insert"])):
            case "change" if content:
                content[at] = draw(st.integers(0, 255))
            case "cut":
                del content[at:]
            case _:
                content[at:at] = draw(st.binary(max_size=20))
    return bytes(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


# Images ------------------------------------------------------------------------------------------------------------


@FUZZ
@given(spoilt(PICTURES))
def test_damaged_images_are_counted_or_read(content):
    try:
        array = Preprocess(3, 8, 8).array(content)
    except BadImage:
        return
    assert array.shape == (3, 8, 8) and array.dtype == np.uint8


def test_bombs_are_refused_before_they_unpack():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", __import__("zlib").crc32(b"IHDR" + header))
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    for bomb in (b"\x89PNG\r\n\x1a\n" + chunk, array.getvalue() + b"\0" * 64):
        with pytest.raises(BadImage):
            Preprocess(3, 8, 8).array(bomb)


# Folders and zips ----------------------------------------------------------------------------------------------------


@FUZZ
@given(st.lists(json_values.map(json.dumps) | st.text(max_size=30) | st.binary(max_size=30), min_size=1, max_size=4))
def test_any_metadata_is_read_or_refused(tmp_path_factory, lines):
    root = tmp_path_factory.mktemp("metadata")
    rows = [line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines]
    names = b'{"file_name": "a.png", "text": ["b", 3], "label": 1}'
    (root / "metadata.jsonl").write_bytes(b"\n".join([names, *rows]))
    (root / "a.png").write_bytes(PICTURES[0])
    try:
        samples(open_store(root), "", {"text": "text", "label": "label", "map": "map"})
    except UserError as error:
        assert "metadata.jsonl" in str(error)


@FUZZ
@given(st.sampled_from(["file_name", "text", "label", "map", "mask"]), json_values)
def test_any_value_in_metadata_is_taken_or_refused(tmp_path_factory, column, value):
    root = tmp_path_factory.mktemp("metadata")
    row = {"file_name": "a.png"} | {column: value}
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for _ in range(3)))
    (root / "a.png").write_bytes(PICTURES[0])
    with contextlib.suppress(UserError):
        Folder(str(root), size=8).tables(root / ".cache")


@pytest.mark.parametrize("name", ["../up.png", "/abs.png", "a/../../b.png", "C:/x.png", "..\\up.png", "\\abs.png"])
def test_a_zip_that_leads_out_of_itself_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(name, PICTURES[0])
    with pytest.raises(UserError, match="leads out of it"):
        ZipStore(tmp_path / "x.zip")


@FUZZ
@given(st.data())
def test_a_damaged_zip_is_refused_or_its_images_counted(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("zip")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(4):
            file.writestr(f"{i}.png", PICTURES[0])
    (root / "x.zip").write_bytes(data.draw(spoilt([out.getvalue()])))
    try:
        train, val = Folder(str(root / "x.zip"), size=8, max_bad_share=0.9).tables(root / "cache")
    except UserError:
        return
    assert len(train) + len(val) <= 4


# Models --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    vae = AutoencoderKL(1, 2, channels=8, multipliers=[1, 1], stem=2)
    vae.preprocess = Preprocess(1, 8, 8)
    return artifact.save(vae, tmp_path_factory.mktemp("model"))


def rewritten(model: Path, to: Path, config: bytes | None = None, weights: bytes | None = None) -> Path:
    """The model with other content and a manifest that says all is well, as a stranger would give it."""
    shutil.copytree(model, to, dirs_exist_ok=True)
    for name, content in (("config.json", config), ("model.safetensors", weights)):
        if content is not None:
            (to / name).write_bytes(content)
    manifest = {name: artifact._fingerprint(to / name) for name in artifact.FILES}
    (to / "manifest.json").write_bytes(artifact.to_json({"format": 1, "files": manifest}))
    return to


@FUZZ
@given(data=st.data())
def test_any_config_makes_a_model_or_an_error(model, tmp_path_factory, data):
    config = json.loads((model / "config.json").read_text())
    where = config[data.draw(st.sampled_from(["model", "preprocess"]))]
    key = data.draw(st.sampled_from(sorted(where)) | st.text(max_size=8))
    where[key] = data.draw(json_values | st.sampled_from([10**9, [10**9], -1, 0, {"class": "UNet"}, "os.system"]))
    folder = rewritten(model, tmp_path_factory.mktemp("config"), json.dumps(config).encode())
    with contextlib.suppress(UserError):
        ldm.load(folder)


@FUZZ
@given(data=st.data())
def test_any_header_of_weights_makes_a_model_or_an_error(model, tmp_path_factory, data):
    content = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = data.draw(spoilt([content[8 : 8 + length]]))
    size = data.draw(st.sampled_from([len(header), 2**40, 0, length]))
    weights = struct.pack("<Q", size) + header + content[8 + length :]
    with contextlib.suppress(UserError):
        ldm.load(rewritten(model, tmp_path_factory.mktemp("weights"), weights=weights))


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": 10**7},
        {"blocks": 10**12},
        {"channels": 10**9},
        {"channels": "8"},
        {"multipliers": [1] * 10**5},
        {"latent_channels": None},
        {"class": "os.system"},
        {"_target_": "os.system"},
    ],
)
def test_a_config_that_requires_too_much_or_code_is_refused_before_memory_is_used(model, tmp_path, change):
    config = json.loads((model / "config.json").read_text())
    config["model"] |= change
    with pytest.raises(UserError):
        ldm.load(rewritten(model, tmp_path / "m", json.dumps(config).encode()))


def test_nested_json_and_other_content_are_refused(model, tmp_path):
    whole = json.loads((model / "config.json").read_text())
    others = [
        {"format": 1, "model": 3},
        {"format": 1, "model": {"class": "Preprocess"}},
        whole | {"preprocess": {"class": "EDM"}},
        whole | {"preprocess": {"class": "Preprocess", "height": 10**7, "width": 10**7}},
        whole | {"preprocess": 3},
    ]
    contents = [b"[" * 10**5, b"{", b"[]", b"null", b"\xff\xfe", *(json.dumps(other).encode() for other in others)]
    for i, config in enumerate(contents):
        with pytest.raises(UserError):
            ldm.load(rewritten(model, tmp_path / str(i), config))


def damages(content: bytes) -> list[bytes]:
    dice = random.Random(0)
    cut = [content[: dice.randrange(len(content))] for _ in range(20)]
    flipped = []
    for _ in range(20):
        changed = bytearray(content)
        changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        flipped.append(bytes(changed))
    return cut + flipped


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_model_cut_or_flipped_is_refused(model, tmp_path, name):
    folder = shutil.copytree(model, tmp_path / "m")
    for content in damages((model / name).read_bytes()):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            ldm.load(folder)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_checkpoint_cut_or_flipped_is_refused_or_still_the_same(tmp_path, recorded):
    """Without its record a flipped byte is found by the file's own checksums, or lies where nothing is read."""
    vae = AutoencoderKL(1, 2, channels=8, multipliers=[1, 1], stem=2)
    path = tmp_path / "x.ckpt"
    weights = {f"average.{name}": value for name, value in vae.state_dict().items()}
    about = {"ldm_model": artifact.describe(vae), "ldm_weights": {name[8:]: name for name in weights}}
    write_recorded(path, lambda file: torch.save({"state_dict": weights, **about}, file))
    if not recorded:
        path.with_name("x.ckpt.json").unlink()
    for content in damages(path.read_bytes()):
        path.write_bytes(content)
        try:
            loaded = ldm.load(path)
        except UserError as error:
            assert "x.ckpt" in str(error)
        else:
            assert not recorded
            assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), vae.parameters(), strict=True))


# Command lines -------------------------------------------------------------------------------------------------------


@FUZZ
@given(st.lists(st.text(max_size=12) | st.from_regex(r"\+?[a-z.]{1,8}=.{0,12}", fullmatch=True), max_size=4))
def test_any_words_are_prepared_or_refused(words):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from ldm.config.explaining import explain

    try:
        _, options = overrides.prepare(words, {"data"})
        OverridesParser.create().parse_overrides(options)
    except UserError:
        pass
    except OverrideParseException as error:
        assert "\n" not in explain(error)[:0] and explain(error)
