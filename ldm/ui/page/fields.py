"""The fields of the tab that draws."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ldm.common.errors import UserError
from ldm.diffusion import SAMPLERS
from ldm.model.latent_diffusion import DEFAULTS
from ldm.ui.app import App
from ldm.ui.generating import form as forms
from ldm.ui.generating.settings import MAX_N, MAX_STEPS, SPACINGS


class Fields:
    """Builds the inputs inside the current `gr.Blocks`; `fields` has them by name, in the order of the API."""

    def __init__(self, app: App):
        self.app = app
        self.fields: dict[str, Any] = {}
        self._own = _own_sampling(app)
        self._build()

    def _field(self, name: str, component: Any) -> Any:
        self.fields[name] = component
        return component

    def _build(self) -> None:
        names = self.app.models.names()
        with gr.Row():
            self._field("run", gr.Dropdown(names, value=next(iter(names), None), label="Run", allow_custom_value=True))
            self._field(
                "checkpoint",
                gr.Dropdown([forms.FINISHED], value=forms.FINISHED, label="Checkpoint", allow_custom_value=True),
            )
            self.refresh = gr.Button("↻ Look for runs", size="sm", min_width=80, scale=0, elem_id="refresh")
        self._field("mode", gr.Textbox("text", visible=False, label="Mode"))
        self._field(
            "prompt", gr.Textbox(label="Prompt", lines=2, placeholder="what to draw", elem_id="prompt", max_length=4000)
        )
        self._field("negative", gr.Textbox(label="Negative prompt", lines=1, max_length=4000))
        self._field("labels", gr.Dropdown([], value=[], label="Classes", multiselect=True, allow_custom_value=True))
        self._field("map", _image("Map: what is to be where", visible=False))
        self._modes()
        with gr.Row():
            self.go = gr.Button("Draw", variant="primary", scale=3, elem_id="draw")
            self.stop = gr.Button("Cancel", variant="stop", scale=1, elem_id="cancel")
        self._sampling()
        self._adapters()
        with gr.Accordion("Settings from a picture", open=False, elem_id="restore-box"):
            self.png = gr.File(label="A PNG of this page or of sample.py", file_types=[".png"], elem_id="restore")

    def _modes(self) -> None:
        with gr.Tabs(elem_id="modes") as self.modes:
            with gr.Tab(forms.MODES["text"], id="text") as text:
                gr.Markdown("Draws from noise what prompt, class or map say.", elem_classes="hint")
            with gr.Tab(forms.MODES["image"], id="image") as image:
                self._field("image", _image("Picture to change"))
                self._field("strength", number_field("Strength: 0 keeps it, 1 ignores it", 0.6, step=0.05))
            with gr.Tab(forms.MODES["inpaint"], id="inpaint") as inpaint:
                self._field("editor", _editor())
                self._field("mask_strength", number_field("Strength inside the mask, 0 to 1", 1.0, step=0.05))
                self._field("feather", number_field("Feather: pixels over which the edge blends", 0))
            with gr.Tab(forms.MODES["variations"], id="variations") as variations:
                self._field("vary", _image("Picture to vary"))
                self._field("vary_strength", number_field("How far the variations go, 0 to 1", 0.5, step=0.05))
        for mode, tab in {"text": text, "image": image, "inpaint": inpaint, "variations": variations}.items():
            tab.select(lambda mode=mode: mode, None, self.fields["mode"], queue=False, api_visibility="private")

    def _sampling(self) -> None:
        with gr.Row():
            self._field("n", number_field(f"Pictures of each, up to {MAX_N}", 4))
            self._field("seed", number_field("Seed", 0, elem_id="seed"))
            with gr.Column(min_width=120):
                self._field(
                    "new_seed", gr.Checkbox(True, label="New seed each time", container=False, elem_id="new-seed")
                )
                self.reuse = gr.Button("♻ Reuse the last seed", size="sm", elem_id="reuse")
        with gr.Row():
            self._field(
                "sampler", gr.Dropdown(sorted(SAMPLERS), value=self._own["sampler"], label="Sampler", min_width=120)
            )
            self._field("steps", number_field(f"Steps, up to {MAX_STEPS}", self._own["steps"]))
            self._field("guidance", number_field("Guidance (1 is off)", plain_guidance(self._own), step=0.5))
        self.fast = gr.Button("⚡ Fast: the run's distilled student, in its few steps", size="sm", elem_id="fast")
        with gr.Accordion("More of the sampler", open=False):
            with gr.Row():
                self._field("width", number_field("Width"))
                self._field("height", number_field("Height"))
                spacings = [forms.AS_TRAINED, *SPACINGS]
                self._field("spacing", gr.Dropdown(spacings, value=forms.AS_TRAINED, label="Spacing", min_width=100))
            with gr.Row():
                self._field("shift", number_field("Shift", step=0.1))
                self._field("eta", number_field("Eta", step=0.1))
                self._field("rescale", number_field("Rescale", step=0.1))
                self._field(
                    "interval", gr.Textbox("", label="Guide only between sigmas", placeholder="0.2, 5", min_width=100)
                )

    def _adapters(self) -> None:
        with gr.Accordion("LoRAs and ControlNets", open=False):
            for i in range(forms.SLOTS):
                with gr.Row():
                    self._field(f"lora_{i}", _choice(f"LoRA {i + 1}"))
                    self._field(f"lora_{i}_scale", number_field("Scale", 1.0, step=0.05))
            for i in range(forms.SLOTS):
                with gr.Row():
                    self._field(f"control_{i}", _choice(f"ControlNet {i + 1}"))
                    self._field(f"control_{i}_weight", number_field("Weight", 1.0, step=0.05))
                    self._field(f"control_{i}_start", number_field("From", 0.0, step=0.05))
                    self._field(f"control_{i}_end", number_field("To", 1.0, step=0.05))
                self._field(f"control_{i}_image", _image(f"Picture that ControlNet {i + 1} follows", height=160))
            self._field("control_ready", gr.Checkbox(False, label="These are control images already, as edges or maps"))


def plain_guidance(sampling: Mapping[str, Any]) -> float:
    """A model's own guidance as one number; 1, off, where it is one for each condition."""
    return sampling["guidance"] if isinstance(sampling["guidance"], (int, float)) else 1.0


def _own_sampling(app: App) -> Mapping[str, Any]:
    """How the run that the page begins with is sampled, so that a click is right before the page has filled itself."""
    try:
        return app.models.traits(app.models.names()[0]).sampling
    except (UserError, IndexError):
        return DEFAULTS


def number_field(label: str, value: float | None = None, **options: Any) -> gr.Number:
    """A field that leaves what is typed as it is: sliders and a `precision` change it without a word."""
    return gr.Number(value, label=label, placeholder=forms.AS_TRAINED, min_width=90, **options)


def _image(label: str, visible: bool = True, height: int = 260) -> gr.Image:
    """`image_mode` leaves a palette its ids, and an image its transparency and bits, for the model to read."""
    options: dict[str, Any] = {"type": "pil", "format": "png", "image_mode": None, "sources": ["upload", "clipboard"]}
    return gr.Image(label=label, visible=visible, height=height, **options)


def _editor() -> gr.ImageEditor:
    return gr.ImageEditor(
        label="Draw over what shall be made anew",
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        brush=gr.Brush(default_size=40, colors=["#ffffff"], default_color="#ffffff", color_mode="fixed"),
        eraser=gr.Eraser(default_size=40),
        layers=False,
        transforms=(),
        height=480,
        canvas_size=(16, 16),  # that of the image; one that begins larger shifts the first mask that is put on it
        elem_id="editor",
    )


def _choice(label: str) -> gr.Dropdown:
    return gr.Dropdown([""], value="", label=label, allow_custom_value=True, min_width=120)
