"""The base that a LoRA's metadata declare, compared with the model that the LoRA is loaded onto."""

import logging
from collections.abc import Iterator, Mapping

from ldm.common.errors import printable
from ldm.diffusion import EDM, X0, Eps, Flow, V
from ldm.diffusion.parameterization import Parameterization, VariancePreserving
from ldm.interop.files.values import flag, word
from ldm.interop.settings import model_version
from ldm.interop.settings.prediction import SPELLINGS, of_architecture, of_base

log = logging.getLogger("ldm")
_KINDS: dict[type[Parameterization], str] = {Eps: "eps", V: "v", X0: "x0", Flow: "flow", EDM: "edm"}
_SPELLINGS = SPELLINGS | {"sample": "x0", "x0": "x0"}
_PREDICTION = ("modelspec_prediction_type", "prediction_type", "parameterization", "ss_prediction_type")
_V = ("ss_v_parameterization", "v_parameterization", "v_pred")
_ZERO = ("ss_zero_terminal_snr", "zero_terminal_snr", "rescale_betas_zero_snr", "ztsnr")
_BASE = "ss_base_model_version"
_SKIP = ("ss_clip_skip", "clip_skip", "modelspec_encoder_layer")


def warn_of_differences(
    metadata: Mapping[str, str],
    parameterization: Parameterization,
    where: str,
    clip_skip: int = 1,
    context_dim: int | None = None,
) -> None:
    """Warns, in one sentence, if this base differs from the one that a LoRA was trained on.

    This base reads the layer `clip_skip` of its text encoder, counted from the last, and its U-Net reads text of width
    `context_dim`. `ss_noise_offset` and `ss_min_snr_gamma` are ignored, as they don't change the meaning of the
    weights. Raises UserError for a switch that is neither true nor false.
    """
    differing = list(_differences(metadata, parameterization, where, clip_skip))
    if context_dim:
        differing += [f"{key}, the base {why}" for key, why in model_version.differences(metadata, context_dim, where)]
    if differing:
        log.warning(
            "%s was trained for a different base: %s; images may be wrong, so choose a base of that kind",
            where, ", ".join(differing),
        )  # fmt: skip


def _differences(metadata: Mapping[str, str], base: Parameterization, where: str, clip_skip: int) -> Iterator[str]:
    for key, text in metadata.items():
        if text.strip().lower() in ("", "none", "null"):
            continue
        name = word(key)
        why = _why_skipped(name, text, clip_skip) or _why(name, text, base, f"{where}: {key}")
        if why:
            yield f"{printable(key)}={printable(text)[:40]}, {why}"


def _why(name: str, text: str, base: Parameterization, what: str) -> str | None:
    """How the base differs from a setting; None where it doesn't, or where the setting isn't about the base."""
    own = next((kind for cls, kind in _KINDS.items() if isinstance(base, cls)), "")
    if name in _PREDICTION and _SPELLINGS.get(word(text)) != own:
        return f"the base predicts {own}"
    if name in _V and flag(text, what) != (own == "v"):
        return f"the base predicts {own}"
    if name in _ZERO and isinstance(base, VariancePreserving):
        zero = base.schedule.zero_terminal_snr
        if flag(text, what) != zero:
            return "the base's schedule ends at zero SNR" if zero else "the base's schedule doesn't end at zero SNR"
    if name == "model_type" and _SPELLINGS.get(word(text), own) != own:
        return f"the base predicts {own}"
    known = of_architecture(text) if name == "modelspec_architecture" else of_base(text) if name == _BASE else None
    if known not in (None, own):
        return f"the base predicts {own}"
    return None


def _why_skipped(name: str, text: str, clip_skip: int) -> str | None:
    if name not in _SKIP or text.strip() in ({"0", "1"} if clip_skip == 1 else {str(clip_skip)}):
        return None
    last = "last layer" if clip_skip == 1 else f"layer {clip_skip} from the end"
    return f"the base reads its text encoder's {last}"
