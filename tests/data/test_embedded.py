"""Captions inside images."""

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.common.errors import UserError
from ldm.data.reading.captions.embedded import text_in
from tests.data.folders import lay_out, tables

XMP = (
    "<rdf:RDF><dc:description><rdf:Alt><rdf:li xml:lang='x-default'>a dog &amp; me</rdf:li></rdf:Alt></dc:description>"
)
A1111 = "a red fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a"
UNICODE = b"UNICODE\0" + A1111.encode("utf-16-be")


def png(**text: str) -> bytes:
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key.replace("_adobe_", ".adobe."), value)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def jpeg(tags: dict[int, object] | None = None, comment: bytes = b"", **options) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif.update(tags or {})
    if comment:
        exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (4, 4)).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


def iptc(caption: bytes) -> bytes:
    record = b"\x1c\x02\x78" + len(caption).to_bytes(2) + caption
    record += b"\0" * (len(record) % 2)
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(record).to_bytes(4) + record
    plain = jpeg()
    return plain[:2] + b"\xff\xed" + (len(block) + 2).to_bytes(2) + block + plain[2:]


COMFY = {
    "3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "negative": ["7", 0], "seed": 1}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "6": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["8", 0]}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0], "clip": ["4", 1]}},
    "9": {"class_type": "PrimitiveString", "inputs": {"value": "a red fox"}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
}
FLUX = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["2", 0]}},
    "2": {"class_type": "BasicGuider", "inputs": {"model": ["2", 0], "conditioning": ["3", 0]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["2", 1]}},
}
WORKFLOW = {
    "nodes": [
        {"id": 3, "type": "KSampler", "inputs": [{"name": "positive", "link": 1}], "widgets_values": [1, "euler"]},
        {"id": 7, "type": "CLIPTextEncode", "inputs": [{"name": "clip", "link": None}], "widgets_values": ["blurry"]},
        {"id": 6, "type": "CLIPTextEncode", "inputs": [{"name": "text", "link": 2}], "widgets_values": ["an old one"]},
        {"id": 9, "type": "PrimitiveString", "inputs": [], "widgets_values": ["a red fox"]},
    ],
    "links": [[1, 6, 0, 3, 1, "CONDITIONING"], [2, 9, 0, 6, 1, "STRING"]],
}
KEYWORDS = "<dc:subject><rdf:Bag><rdf:li>dog</rdf:li><rdf:li>park</rdf:li></rdf:Bag></dc:subject>"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (png(parameters=A1111), "a red fox"),
        (png(Description="a cat"), "a cat"),
        (png(workflow=json.dumps(WORKFLOW)), "a red fox"),
        (png(workflow=json.dumps(WORKFLOW), prompt=json.dumps(FLUX | {"3": {}})), "a red fox"),
        (png(workflow=json.dumps({"nodes": [None, {"id": 1, "inputs": [{"link": []}]}], "links": [3]})), ""),
        (jpeg({0x010F: "workflow:" + json.dumps(WORKFLOW)}), "a red fox"),
        (png(**{"XML:com_adobe_xmp": XMP}), "a dog & me"),
        (jpeg({0x010E: "a bird"}), "a bird"),
        (jpeg({0x010E: "OLYMPUS DIGITAL CAMERA"}), ""),
        (jpeg(comment=UNICODE), "a red fox"),
        (jpeg(comment=b"ASCII\0\0\0" + A1111.encode()), "a red fox"),
        (iptc("a café".encode()), "a café"),
        (jpeg({0x9C9C: "a dog".encode("utf-16-le") + b"\0\0"}), "a dog"),
        (jpeg({0x9C9E: "dog; park".encode("utf-16-le")}), "dog, park"),
        (jpeg({0x010E: "DSC_1", 0x9C9B: "My dog".encode("utf-16-le")}), "My dog"),
        (png(**{"XML:com_adobe_xmp": KEYWORDS}), "dog, park"),
        (png(**{"XML:com_adobe_xmp": "<dc:title><rdf:Alt><rdf:li>Rex</rdf:li></rdf:Alt></dc:title>"}), "Rex"),
        (jpeg(**{"comment": b"a dog at noon"}), "a dog at noon"),
        (jpeg(**{"comment": b"CREATOR: gd-jpeg v1.0 (using IJG JPEG v62), quality = 90"}), ""),
        (png(Comment="a cat"), "a cat"),
        (png(Comment="Created with GIMP"), ""),
        (png(prompt=json.dumps(COMFY)), "a red fox"),
        (png(prompt=json.dumps(FLUX)), "a red fox"),
        (png(prompt=json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0]}}})), ""),
        (jpeg({0x0110: "prompt:" + json.dumps(COMFY)}), "a red fox"),
        (png(invokeai_metadata=json.dumps({"positive_prompt": "a red fox", "seed": 1})), "a red fox"),
        (png(Dream='"a red fox" -s 50 -S 1'), "a red fox"),
        (png(Description="a red fox, 1girl", Comment=json.dumps({"prompt": "a red fox"})), "a red fox, 1girl"),
        (png(Comment=json.dumps({"prompt": "a red fox"})), "a red fox"),
        (png(Comment=json.dumps({"version": 3})), ""),
        (png(parameters=json.dumps({"sui_image_params": {"prompt": "a red fox"}})), "a red fox"),
        (png(Description="a red fox --ar 3:2 --v 6.0 Job ID: 1b2c-3d"), "a red fox"),
        (png(), ""),
        (b"nothing", ""),
    ],
)
def test_the_caption_of_an_image(content, text):
    assert text_in(io.BytesIO(content)) == text


@pytest.mark.parametrize(("key", "reported"), [("parameters", True), ("Comment", False)])
def test_one_prompt_of_all_images_is_reported_and_one_comment_is_not(tmp_path, caplog, key, reported):
    (tmp_path / "d").mkdir()
    for i in range(2):
        (tmp_path / "d" / f"{i}.png").write_bytes(png(**{key: "a red fox"}))
    tables(tmp_path / "d")
    assert ("2 of 2 images that were looked at hold text" in caplog.text) == reported


@pytest.mark.parametrize("key", ["workflow", "prompt"])
def test_a_workflow_without_a_prompt_is_reported(tmp_path, capsys, key):
    (tmp_path / "d").mkdir()
    for i in range(2):
        graph = {"nodes": [{"id": i, "type": "Load"}]} if key == "workflow" else {"1": {"class_type": f"Load{i}"}}
        (tmp_path / "d" / f"{i}.png").write_bytes(png(**{key: json.dumps(graph)}))
    tables(tmp_path / "d")
    said = "2 of 2 images that were looked at hold a workflow of ComfyUI (0.png) in which no prompt is found"
    assert said in capsys.readouterr().out


def test_captions_inside_are_reported_and_read(tmp_path, caplog):
    root = lay_out(tmp_path / "d", "plain.png")
    for i in range(3):
        (root / f"{i}.png").write_bytes(png(parameters=f"fox number {i}\nSteps: 20"))
    assert "text" not in tables(root)[0].columns
    assert "3 of 4 images that were looked at hold text" in caplog.text and "data.captions=embedded" in caplog.text
    found = {
        name: text
        for t in tables(root, captions="embedded")
        for name, text in zip(t.names, t.columns["text"], strict=True)
    }
    assert found == {"plain.png": "", **{f"{i}.png": f"fox number {i}" for i in range(3)}}
    with pytest.raises(UserError, match="none of 2 images that were looked at holds text"):
        tables(lay_out(tmp_path / "e", "1.png", "2.png"), captions="embedded")
