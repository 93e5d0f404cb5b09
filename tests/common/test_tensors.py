"""Tensors' bytes, and safetensors files that equal the library's."""

import io

import pytest
import torch
from safetensors.torch import load, save

from ldm.common.tensors import DTYPES, bytes_of, write_safetensors


def written(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    write_safetensors(file, tensors)
    return file.getvalue()


def test_every_type_shape_and_name_is_written_as_the_library_does():
    torch.manual_seed(0)
    tensors = {f"{name}.of {dtype}": torch.ones(shape).to(dtype) for dtype in DTYPES for name, shape in SHAPES.items()}
    assert written(tensors) == save(tensors)
    assert written({}) == save({})


SHAPES = {"scalar": (), "none": (0, 3), 'b"猫\\': (3,), "a": (2, 3)}


def test_numbers_come_in_row_major_order_whatever_their_layout():
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    parameter = torch.nn.Parameter(torch.randn(4, 3))
    tensors = {"images": images, "turned": parameter.t(), "part": parameter[1:3, ::2]}
    found = load(written(tensors))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert written(tensors) == save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def test_what_lies_in_order_is_not_copied():
    tensor = torch.zeros(1000)
    seen = bytes_of(tensor)
    tensor.fill_(1)
    assert bytes(seen[:4]) == b"\0\0\x80?"


def test_a_type_that_safetensors_has_not_is_refused():
    with pytest.raises(KeyError):
        written({"a": torch.zeros(2, dtype=torch.complex128)})
