"""Updates of the generating tab's fields: to suit a run, to settings, and to what the browser has kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.ui.app import App
from ldm.ui.generating import form as forms
from ldm.ui.generating.models import Traits
from ldm.ui.generating.settings import Settings
from ldm.ui.page.fields import plain_guidance, steps_update

# Fields that the browser keeps between visits.
KEPT = ("run", "prompt", "negative", "labels", "n", "seed", "sampler", "steps", "guidance")
# Fields that depend on the run.
RUN_FIELDS = ("checkpoint", "prompt", "negative", "labels", "map", "sampler", "steps", "guidance")


def suiting(app: App, run: str, about: Traits | None = None) -> dict[str, Any]:
    """Updates of the fields that depend on the run; those that it doesn't use are hidden and emptied."""
    about = about or app.models.traits(run)
    own, needs = about.sampling, about.needs
    text, label = "text" in needs, "label" in needs
    return {
        "checkpoint": gr.update(choices=[forms.FINISHED, *reversed(app.models.checkpoints(run))], value=forms.FINISHED),
        "prompt": gr.update(visible=text, **_cleared(text, "")),
        "negative": gr.update(visible=text, **_cleared(text, "")),
        "labels": gr.update(choices=list(about.classes), visible=label, **_cleared(label, [])),
        "map": gr.update(visible="map" in needs, **_cleared("map" in needs, None)),
        "sampler": gr.update(value=own["sampler"]),
        "steps": steps_update(own["steps"]),
        "guidance": gr.update(value=plain_guidance(own)),
    }


def filled(app: App, fields: Mapping[str, Any], settings: Settings) -> list[Any]:
    """An update of every field to these settings."""
    about = app.models.traits(settings.run, settings.checkpoint)
    form = forms.form_of(settings, about, app.store)
    updates = {name: gr.update(value=_value(form[name])) if name in form else gr.skip() for name in fields}
    updates["mode"] = form["mode"]
    for name, update in suiting(app, settings.run, about).items():
        value = {"value": _value(form[name])} if name in form else {}
        updates[name] = gr.update(**{**update, **value})
    updates["steps"] = steps_update(form["steps"])
    updates["editor"] = gr.skip()  # filled once it is visible: `GenerateTab.refill`
    return list(updates.values())


def restored(app: App, fields: Mapping[str, Any], kept: Any) -> list[Any]:
    """The fields when the page is opened: as the browser `kept` them, for the run that the page starts with."""
    names, kept = app.models.names(), kept if isinstance(kept, dict) else {}
    updates: dict[str, Any] = {name: gr.skip() for name in fields}
    # gradio shows 0 in an empty number field when it first appears, unless an event has emptied it.
    updates |= {name: gr.update(value=None) for name, field in fields.items() if _is_empty_number(field)}
    if not names:
        return list(updates.values())
    run = app.models.given or (kept["run"] if kept.get("run") in names else names[0])
    updates |= suiting(app, run)
    for name in KEPT:
        if name in kept and (kept.get("run") == run or name in ("n", "seed")):
            old = updates[name] if isinstance(updates[name], dict) else {}
            updates[name] = gr.update(**{k: v for k, v in old.items() if k != "__type__"} | {"value": kept[name]})
    if kept.get("run") == run and "steps" in kept:
        updates["steps"] = steps_update(kept["steps"])
    updates["run"] = gr.update(choices=names, value=run)
    return list(updates.values())


def _is_empty_number(field: Any) -> bool:
    return isinstance(field, gr.Number) and field.value is None


def _value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _cleared(kept: bool, value: Any) -> dict[str, Any]:
    """An update that empties a field that the model doesn't use."""
    return {} if kept else {"value": value}
