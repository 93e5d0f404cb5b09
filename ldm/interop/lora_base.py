"""What a LoRA's metadata say of the base that it was trained on, compared with the one that it is put on."""

import logging
from collections.abc import Iterator, Mapping

from ldm.diffusion import EDM, X0, Eps, Flow, V
from ldm.diffusion.parameterization import Parameterization, VariancePreserving
from ldm.errors import printable
from ldm.interop.plain import flag, word

log = logging.getLogger("ldm")
_KINDS: dict[type[Parameterization], str] = {Eps: "eps", V: "v", X0: "x0", Flow: "flow", EDM: "edm"}
_SPELLINGS = {
    "epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "sample": "x0", "x0": "x0", "flow": "flow",
    "flow_prediction": "flow", "rectified_flow": "flow",
}  # fmt: skip
_PREDICTION = ("modelspec_prediction_type", "prediction_type", "parameterization", "ss_prediction_type")
_V = ("ss_v_parameterization", "v_parameterization", "v_pred")
_ZERO = ("ss_zero_terminal_snr", "zero_terminal_snr", "rescale_betas_zero_snr", "ztsnr")
_SKIP = ("ss_clip_skip", "clip_skip")


def tell_differences(metadata: Mapping[str, str], parameterization: Parameterization, where: str) -> None:
    """Warns, in one sentence, of what a LoRA was trained for and its base isn't.

    `ss_noise_offset` and `ss_min_snr_gamma` change no meaning of its weights. Raises UserError for a switch that is
    none.
    """
    if differing := list(_differences(metadata, parameterization, where)):
        log.warning(
            "%s was trained for another base than this one: %s; images may come out wrong, so take a base of its kind",
            where, ", ".join(differing),
        )  # fmt: skip


def _differences(metadata: Mapping[str, str], base: Parameterization, where: str) -> Iterator[str]:
    for key, text in metadata.items():
        if text.strip().lower() not in ("", "none", "null") and (why := _why(word(key), text, base, f"{where}: {key}")):
            yield f"{printable(key)}={printable(text)[:40]}, {why}"


def _why(name: str, text: str, base: Parameterization, what: str) -> str | None:
    """In what the base is other than a setting says; None where it isn't, or the setting says nothing of it."""
    own = next((kind for cls, kind in _KINDS.items() if isinstance(base, cls)), "")
    if name in _PREDICTION and _SPELLINGS.get(word(text)) != own:
        return f"the base predicts {own}"
    if name in _V and flag(text, what) != (own == "v"):
        return f"the base predicts {own}"
    if name in _ZERO and isinstance(base, VariancePreserving):
        zero = base.schedule.zero_terminal_snr
        if flag(text, what) != zero:
            return "the base's schedule ends at zero SNR" if zero else "the base's schedule doesn't end at zero SNR"
    if name in _SKIP and text.strip() not in ("0", "1"):
        return "the base reads its text encoder's last layer"
    return None
