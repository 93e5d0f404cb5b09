"""The fields of the tab that draws."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ldm.diffusion import SAMPLERS
from ldm.errors import UserError
from ldm.pipeline import DEFAULTS
from ldm.ui import form as forms
from ldm.ui.app import App
from ldm.ui.settings import MAX_PICTURES, MAX_STEPS, SPACINGS


class Fields:
    """Builds the inputs inside the current `gr.Blocks`; `fields` has them by name, in the order of the API."""

    def __init__(self, app: App):
        self.app = app
        self.fields: dict[str, Any] = {}
        self._own = _own_sampling(app)
        self._ask()

    def _field(self, name: str, component: Any) -> Any:
        self.fields[name] = component
        return component

    def _ask(self) -> None:
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
                self._field("strength", gr.Slider(0, 1, 0.6, step=0.01, label="Strength: 0 keeps it, 1 ignores it"))
            with gr.Tab(forms.MODES["inpaint"], id="inpaint") as inpaint:
                self._field("editor", _editor())
                self._field("mask_strength", gr.Slider(0, 1, 1.0, step=0.01, label="Strength inside the mask"))
                self._field("feather", gr.Slider(0, 32, 0, step=1, label="Feather: pixels over which the edge blends"))
            with gr.Tab(forms.MODES["variations"], id="variations") as variations:
                self._field("vary", _image("Picture to vary"))
                self._field("vary_strength", gr.Slider(0, 1, 0.5, step=0.01, label="How far the variations go"))
        for mode, tab in {"text": text, "image": image, "inpaint": inpaint, "variations": variations}.items():
            tab.select(lambda mode=mode: mode, None, self.fields["mode"], queue=False, api_visibility="private")

    def _sampling(self) -> None:
        with gr.Row():
            self._field("n", gr.Slider(1, MAX_PICTURES, 4, step=1, label="Pictures of each", min_width=120))
            self._field("seed", gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="seed"))
            with gr.Column(min_width=120):
                self._field("new_seed", gr.Checkbox(True, label="New seed each time", container=False))
                self.reuse = gr.Button("♻ Reuse the last seed", size="sm", elem_id="reuse")
        with gr.Row():
            self._field(
                "sampler", gr.Dropdown(sorted(SAMPLERS), value=self._own["sampler"], label="Sampler", min_width=120)
            )
            self._field("steps", gr.Slider(1, MAX_STEPS, self._own["steps"], step=1, label="Steps", min_width=120))
            self._field(
                "guidance",
                gr.Slider(0, 20, plain_guidance(self._own), step=0.1, label="Guidance (1 is off)", min_width=120),
            )
        with gr.Accordion("More of the sampler", open=False):
            with gr.Row():
                self._field("width", gr.Number(None, label="Width", precision=0, min_width=80))
                self._field("height", gr.Number(None, label="Height", precision=0, min_width=80))
                spacings = [forms.AS_TRAINED, *SPACINGS]
                self._field("spacing", gr.Dropdown(spacings, value=forms.AS_TRAINED, label="Spacing", min_width=100))
            with gr.Row():
                self._field("shift", gr.Number(None, label="Shift", min_width=80))
                self._field("eta", gr.Number(None, label="Eta", min_width=80))
                self._field("rescale", gr.Number(None, label="Rescale", min_width=80))
                self._field(
                    "interval", gr.Textbox("", label="Guide only between sigmas", placeholder="0.2, 5", min_width=100)
                )

    def _adapters(self) -> None:
        with gr.Accordion("LoRAs and ControlNets", open=False):
            for i in range(forms.SLOTS):
                with gr.Row():
                    self._field(f"lora_{i}", _choice(f"LoRA {i + 1}"))
                    self._field(f"lora_{i}_scale", gr.Slider(-2, 2, 1.0, step=0.05, label="Scale", min_width=100))
            for i in range(forms.SLOTS):
                with gr.Row():
                    self._field(f"control_{i}", _choice(f"ControlNet {i + 1}"))
                    self._field(f"control_{i}_weight", gr.Slider(0, 2, 1.0, step=0.05, label="Weight", min_width=90))
                    self._field(f"control_{i}_start", gr.Slider(0, 1, 0.0, step=0.05, label="From", min_width=90))
                    self._field(f"control_{i}_end", gr.Slider(0, 1, 1.0, step=0.05, label="To", min_width=90))
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
        elem_id="editor",
    )


def _choice(label: str) -> gr.Dropdown:
    return gr.Dropdown([""], value="", label=label, allow_custom_value=True, min_width=120)
