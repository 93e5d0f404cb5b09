"""Minimal ICC profiles (version 2, matrix and tone curve, or a grey curve) made from the public standards' numbers."""

import struct

import numpy as np

D65, D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
DISPLAY_P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]  # SMPTE EG 432-1
ADOBE_RGB = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]  # Adobe RGB (1998)
SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]  # IEC 61966-2-1
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def srgb_curve() -> np.ndarray:
    x = np.linspace(0, 1, 1024)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def gamma_curve(gamma: float) -> np.ndarray:
    return np.linspace(0, 1, 1024) ** gamma


def rgb_profile(primaries: list[tuple[float, float]], curve: np.ndarray, name: str) -> bytes:
    columns = np.stack([_xyz(*xy) for xy in primaries], 1)  # (3, 3)
    white = _xyz(*D65)
    columns = _adapted(white) @ (columns * np.linalg.solve(columns, white))
    tags = {f"{c}XYZ": b"XYZ \0\0\0\0" + _fixed(columns[:, i]) for i, c in enumerate("rgb")}
    return _profile("RGB ", tags | {f"{c}TRC": _curve(curve) for c in "rgb"}, name)


def grey_profile(curve: np.ndarray, name: str) -> bytes:
    return _profile("GRAY", {"kTRC": _curve(curve)}, name)


def display_p3() -> bytes:
    return rgb_profile(DISPLAY_P3, srgb_curve(), "Display P3")


def adobe_rgb() -> bytes:
    return rgb_profile(ADOBE_RGB, gamma_curve(563 / 256), "Adobe RGB (1998)")


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def _adapted(white: np.ndarray) -> np.ndarray:
    """Bradford's adaptation to D50, which profiles are in."""
    return np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ D50 / (_BRADFORD @ white)) @ _BRADFORD


def _fixed(values: np.ndarray) -> bytes:
    return struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def _curve(values: np.ndarray) -> bytes:
    return struct.pack(">4sIi", b"curv", 0, len(values)) + (values * 65535).round().astype(">u2").tobytes()


def _profile(space: str, tags: dict[str, bytes], name: str) -> bytes:
    described = name.encode() + b"\0"
    text = struct.pack(">4sII", b"desc", 0, len(described)) + described + bytes(78)
    tags = {"desc": text, "cprt": b"text\0\0\0\0none\0", "wtpt": b"XYZ \0\0\0\0" + _fixed(D50), **tags}
    at, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag.encode(), at + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"\0\0\0\0", 0x02100000, b"mntr", space.encode(), b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(D50)
    return head.ljust(128, b"\0") + table + data
