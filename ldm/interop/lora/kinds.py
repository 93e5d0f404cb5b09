"""The kinds of LoRA that a layer's tensors form, with the change of the layer's weight W that each describes.

    lora  alpha / rank * B A                                    Hu et al. 2021
    dora  m (W + D) / |W + D| - W, where D is a LoRA's change   Liu et al. 2024; norms by output channel
    loha  alpha / rank * (w1_a w1_b) * (w2_a w2_b)              FedPara, Hyeon-Woo et al. 2022: elementwise product
    lokr  alpha / rank * kron(w1, w2)                           LyCORIS, Yeh et al. 2023: Kronecker product

With `hada_t1` and `hada_t2` or `lokr_t2` the product of a convolution is Tucker's, sum_ij t[i, j] a[i] b[j]. w1 and w2
of a LoKr may each be one matrix or a product; if both are whole there is no rank, and alpha / rank is 1 in LyCORIS and
ComfyUI: here the rank is then 1, and alpha is the factor. Names and shapes are peft's and LyCORIS's, which agree.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

KINDS = ("lora", "dora", "loha", "lokr")
DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_HADA_TUCKER = ("hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
LEAVES = (DOWN, UP, MAGNITUDE, *_HADA, *_HADA_TUCKER, *_LOKR)
Layer = Mapping[str, Tensor]  # the tensors of one layer, by leaf


@dataclass(frozen=True)
class Lora:
    """`weights` by full name, `component.module.leaf`, and `alphas` by `component.module`."""

    weights: dict[str, Tensor]
    alphas: dict[str, float]

    def rank(self, module: str) -> int:
        """The rank of a module; see `rank`."""
        return rank({leaf: self.weights[f"{module}.{leaf}"] for leaf in LEAVES if f"{module}.{leaf}" in self.weights})

    def of(self, component: str = "unet") -> dict[str, Tensor]:
        """One component's weights, without its prefix: as peft names them."""
        prefix = f"{component}."
        return {n.removeprefix(prefix): t for n, t in self.weights.items() if n.startswith(prefix)}


def split_leaf(name: str) -> tuple[str, str]:
    """A weight's module and leaf. Raises ValueError for a name that is no LoRA's."""
    for leaf in LEAVES:
        if name.endswith(f".{leaf}"):
            return name.removesuffix(f".{leaf}"), leaf
    raise ValueError(f"{name} isn't a weight of a LoRA")


def by_module(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each module, by leaf."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        module, leaf = split_leaf(name)
        found.setdefault(module, {})[leaf] = tensor
    return found


def kind_of(leaves: Iterable[str]) -> str:
    """The kind that a layer's leaves belong to."""
    leaves = set(leaves)
    if leaves & {*_HADA, *_HADA_TUCKER}:
        return "loha"
    if leaves & set(_LOKR):
        return "lokr"
    return "dora" if MAGNITUDE in leaves else "lora"


def missing(leaves: Iterable[str]) -> list[str]:
    """The leaves without which a layer isn't whole."""
    leaves, kind = set(leaves), kind_of(leaves)
    wanted: list[str] = [DOWN, UP]
    if kind == "loha":
        wanted = [*_HADA, *(_HADA_TUCKER if leaves & set(_HADA_TUCKER) else ())]
    if kind == "lokr":
        wanted = [*_factor(leaves, "lokr_w1"), *_factor(leaves, "lokr_w2")]
    return [leaf for leaf in wanted if leaf not in leaves]


def surplus(leaves: Iterable[str]) -> list[str]:
    """The leaves that don't belong to the kind that the others form, or that are given in two forms."""
    leaves, kind = set(leaves), kind_of(leaves)
    allowed: set[str] = {DOWN, UP, MAGNITUDE}
    if kind == "loha":
        allowed = {*_HADA, *_HADA_TUCKER}
    if kind == "lokr":
        allowed = {*_factor(leaves, "lokr_w1"), *_factor(leaves, "lokr_w2")}
        allowed |= {"lokr_t2"} if "lokr_w2_a" in allowed else set()
    return sorted(leaves - allowed)


def has_rank(layer: Layer) -> bool:
    """False for a LoKr of two whole matrices."""
    return kind_of(layer) != "lokr" or "lokr_w1_b" in layer or "lokr_w2_b" in layer


def rank(layer: Layer) -> int:
    """The rank of a layer's change; 1 where it has none."""
    for leaf in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if leaf in layer:
            return layer[leaf].shape[0]
    return 1


def bound(layer: Layer) -> float:
    """An upper bound on the entries of the change for alpha = 1; the caller multiplies it by alpha."""
    if kind_of(layer) == "loha":
        sides = [_bound(layer, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2)]
        return sides[0] * sides[1] / rank(layer)
    if kind_of(layer) == "lokr":
        w1 = _largest(layer["lokr_w1"]) if "lokr_w1" in layer else _bound(layer, "lokr_w1_a", "lokr_w1_b")
        w2 = _largest(layer["lokr_w2"]) if "lokr_w2" in layer else _bound(layer, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        return w1 * w2 / rank(layer)
    return _largest(layer[DOWN]) * _largest(layer[UP])


def change_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the change: (out, in, height, width) if the tensors tell, else (out, in height width).

    Raises ValueError, with a reason, for tensors that can't be multiplied.
    """
    kind = kind_of(layer)
    if kind == "loha":
        one, two = (_product_shape(layer, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
        if one != two:
            raise ValueError(f"has the two factors {one} and {two}")
        return one
    if kind == "lokr":
        w1 = _factor_shape(layer, "lokr_w1", "")
        w2 = _factor_shape(layer, "lokr_w2", "lokr_t2")
        return (w1[0] * w2[0], w1[1] * w2[1], *w2[2:])
    down, up = layer[DOWN], layer[UP]
    if down.shape[0] != up.shape[1]:
        raise ValueError(f"has rank {down.shape[0]} according to lora_A, but {up.shape[1]} according to lora_B")
    if max(up.shape[2:], default=1) > 1:
        raise ValueError(f"has a lora_B with a convolution kernel, {tuple(up.shape)}")
    if kind == "dora" and layer[MAGNITUDE].numel() != up.shape[0]:
        raise ValueError(f"has a DoRA's {layer[MAGNITUDE].numel()} magnitudes, but {up.shape[0]} outputs")
    return (up.shape[0], *down.shape[1:])


def fits(shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a change of `shape` is one of a `weight`, whose kernel the shape may leave out."""
    if len(shape) == 4 and len(weight) == 4:
        return shape == weight
    return shape[0] == weight[0] and math.prod(shape) == math.prod(weight)


def _factor(leaves: set[str], stem: str) -> list[str]:
    """The leaves of one factor of a LoKr, whole or as a product."""
    parts = [f"{stem}_a", f"{stem}_b"]
    is_product = bool(leaves & set(parts)) or (stem == "lokr_w2" and "lokr_t2" in leaves)
    return parts if is_product and stem not in leaves else [stem]


def _factor_shape(layer: Layer, stem: str, tucker: str) -> tuple[int, ...]:
    if stem in layer:
        return tuple(layer[stem].shape)
    return _product_shape(layer, f"{stem}_a", f"{stem}_b", tucker)


def _product_shape(layer: Layer, left: str, right: str, tucker: str) -> tuple[int, ...]:
    a, b = layer[left], layer[right]
    if tucker in layer:
        core = layer[tucker]
        if (a.shape[0], b.shape[0]) != tuple(core.shape[:2]):
            raise ValueError(f"has a {tucker} of {tuple(core.shape)}, which doesn't fit {left} and {right}")
        return (a.shape[1], b.shape[1], *core.shape[2:])
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"has rank {a.shape[1]} according to {left}, but {b.shape[0]} according to {right}")
    return (a.shape[0], b.shape[1])


def _bound(layer: Layer, left: str, right: str, tucker: str = "") -> float:
    bound = layer[right].shape[0] * _largest(layer[left]) * _largest(layer[right])
    return bound * layer[right].shape[0] * _largest(layer[tucker]) if tucker in layer else bound


def _largest(tensor: Tensor) -> float:
    return tensor.float().abs().amax().item()
