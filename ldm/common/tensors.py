"""The bytes of tensors, and safetensors files written one tensor at a time.

`safetensors.torch.save` copies a whole model in memory, and `save_file` takes a path, so that the file would have to be
read again to be hashed. The format is a length, a JSON header and the tensors' bytes
(https://huggingface.co/docs/safetensors, "Format"), so it is written here, byte for byte as the library does.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# The library's names, in its order: tensors of later ones come first, so that all are aligned.
DTYPES = {
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"},
    **{torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3"},
    **{torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32", torch.complex64: "C64"},
    **{torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64"},
}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES)}


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row-major order: its own memory if it is contiguous and on the CPU, else a copy."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def write_safetensors(file: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes to an open file the bytes that `safetensors.torch.save(tensors, metadata)` returns.

    At most one tensor is copied at a time. Raises KeyError for a dtype that the format doesn't have.
    """
    names = sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name.encode()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        about = {"dtype": DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape)}
        header[name] = about | {"data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    for name in names:
        file.write(bytes_of(tensors[name]))
