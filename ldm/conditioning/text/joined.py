"""Captions through several frozen text encoders at once, their states side by side (Podell et al. 2023, SDXL)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.annotations import replace_surrogates
from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.common.registry import build, register
from ldm.conditioning.on_host import States, without
from ldm.conditioning.part import Part
from ldm.conditioning.text.frozen import FrozenText, Remember
from ldm.conditioning.text.truncation import Cut
from ldm.networks import Cond

NOTHING = "\0"  # stands for no caption where that isn't the empty one


@register
class JoinedText(Part):
    """Captions through each of `encoders`, whose states are joined over channels, token by token; so none may be masked
    and all read as many tokens. The pooled states of those that pool follow each other in the vector.

    With `zeros` a caption that isn't there is zeros in both places (as SDXL was trained), and not the states of the
    empty one, which is then a caption like others.
    """

    column = "text"

    def __init__(self, encoders: Sequence[FrozenText], zeros: bool = False, drop_prob: float = 0.1):
        super().__init__(drop_prob)
        if len(encoders) < 2:
            raise UserError("conditioner: JoinedText takes two encoders or more; for one there is FrozenText.")
        if any(part.masked for part in encoders) or len({part.length for part in encoders}) > 1:
            raise UserError(
                "conditioner: JoinedText's encoders take masked=false and one length, so that tokens match."
            )
        self.encoders: Sequence[FrozenText] = nn.ModuleList(encoders)  # type: ignore[assignment]
        for i, part in enumerate(encoders[1:], 2):
            part.suffix = f"_{i}"
        self.nothing = NOTHING if zeros else ""
        self.token_dim = sum(part.token_dim or 0 for part in encoders)
        self.vector_dim = sum(part.vector_dim or 0 for part in encoders) or None
        self.register_buffer("_device_marker", torch.zeros(0, device="cpu"), persistent=False)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        specs = [{"class": "FrozenText", "masked": False, **spec} for spec in options.get("encoders") or []]
        where = "conditioner: an encoder of JoinedText"
        return {"encoders": [build(spec, where, **FrozenText.derive(table, spec)) for spec in specs]}

    def null_values(self, n: int) -> list[str]:
        return [self.nothing] * n

    def parse(self, values: Any) -> list[str]:
        return [replace_surrogates(str(v)) for v in values]

    def reader(self) -> Callable[[list[str]], Any] | None:
        known = [Remember(part.known) for part in self.encoders if part.known]
        return RememberJoined(known) if len(known) == len(self.encoders) else None

    def cut(self, captions: Iterable[str]) -> list[Cut]:
        captions = list(captions)
        found = {cut.caption: cut for part in reversed(self.encoders) for cut in part.cut(captions)}
        return list(found.values())

    def forward(self, values: list[str] | States, drop: Tensor | None = None) -> Cond:
        if not isinstance(values, States):
            captions = without(values, drop, self.nothing)
            values = joined([part(spoken(captions)) for part in self.encoders], captions)
        device: torch.device = self._device_marker.device
        return Cond(tokens=values.tokens, vector=values.vector).map(lambda t: send(t, device))

    _device_marker: Tensor


class RememberJoined:
    """Captions to the joined `States` that are known of them, or as they are where one isn't known."""

    def __init__(self, known: Sequence[Remember]):
        self.known = known

    def __call__(self, captions: list[str]) -> States | list[str]:
        found = [remember(spoken(captions)) for remember in self.known]
        states = [one for one in found if isinstance(one, States)]
        return joined(states, captions) if len(states) == len(found) else captions


def spoken(captions: Sequence[str]) -> list[str]:
    """What an encoder reads in the place of nothing."""
    return ["" if caption == NOTHING else caption for caption in captions]


def joined(states: Sequence[States | Cond], captions: Sequence[str]) -> States:
    """States of the same captions side by side; zeros where a caption isn't there."""
    tokens = torch.cat([s.tokens for s in states if s.tokens is not None], 2)  # (B, L, sum of D)
    vectors = [s.vector for s in states if s.vector is not None]
    absent = send(torch.tensor([caption == NOTHING for caption in captions], dtype=torch.bool), tokens.device)
    vector = torch.cat(vectors, 1).masked_fill(absent[:, None], 0) if vectors else None
    return States(tokens.masked_fill(absent[:, None, None], 0), None, vector)
