"""The fields of the tab that generates."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ldm.common.errors import UserError
from ldm.diffusion import SAMPLERS
from ldm.model.latent_diffusion import DEFAULTS
from ldm.ui.app import App
from ldm.ui.generating import form as forms
from ldm.ui.generating.painting import MASK_COLOUR
from ldm.ui.generating.settings import SPACINGS

SLIDER_STEPS = 150
MASK = ("#{:02x}{:02x}{:02x}".format(*MASK_COLOUR), MASK_COLOUR[3] / 255)


class Fields:
    """Builds the inputs inside the current `gr.Blocks`; `fields` has them by name, in the order of the API."""

    def __init__(self, app: App):
        self.app = app
        self.fields: dict[str, Any] = {}
        self._own = _own_sampling(app)

    def _field(self, name: str, component: Any) -> Any:
        self.fields[name] = component
        return component

    def build_prompt(self) -> None:
        """The model, the prompt and the other conditions: what stands above the button."""
        names = self.app.models.names()
        with gr.Row(elem_id="model"):
            self._field(
                "run",
                gr.Dropdown(names, value=next(iter(names), None), label="Run", allow_custom_value=True, min_width=100),
            )
            self._field(
                "checkpoint",
                gr.Dropdown(
                    [forms.FINISHED], value=forms.FINISHED, label="Checkpoint", allow_custom_value=True, min_width=100
                ),
            )
        self._field("mode", gr.Textbox("text", visible=False, label="Mode"))
        with gr.Group():
            self._field(
                "prompt",
                gr.Textbox(label="Prompt", lines=2, placeholder="what the image shows", elem_id="prompt"),
            )
            self.tokens = gr.HTML("", elem_id="tokens", padding=False)
            self._field("negative", gr.Textbox(label="Negative prompt", lines=1, elem_id="negative"))
            self._field("labels", gr.Dropdown([], value=[], label="Classes", multiselect=True, allow_custom_value=True))
            self._field("map", _image("Map of what goes where", visible=False))

    def build_settings(self) -> None:
        """Everything else."""
        self._modes()
        self._sampling()
        self._adapters()
        with gr.Accordion("Settings from an image", open=False, elem_id="restore-box"):
            self.png = gr.File(
                label="PNG of this page, of sample.py or of another tool", file_types=[".png"], elem_id="restore"
            )
        self.refresh = gr.Button("↻ Refresh lists of runs, LoRAs and ControlNets", size="sm", elem_id="refresh")

    def _modes(self) -> None:
        with gr.Tabs(elem_id="modes") as self.modes:
            with gr.Tab(forms.MODES["text"], id="text") as text:
                pass
            with gr.Tab(forms.MODES["image"], id="image") as image:
                self._field("image", _image("Initial image"))
                self._field("strength", number_field("Strength (0 keeps the image, 1 ignores it)", 0.6, step=0.05))
            with gr.Tab(forms.MODES["inpaint"], id="inpaint") as inpaint:
                self._field("editor", _editor())
                self._painting()
                self._field("mask_strength", number_field("Strength inside the mask (0 to 1)", 1.0, step=0.05))
                self._field("feather", number_field("Feather (width of the blended edge, pixels)", 0))
            with gr.Tab(forms.MODES["variations"], id="variations") as variations:
                self._field("vary", _image("Image to vary"))
                self._field("vary_strength", number_field("Strength of variation (0 to 1)", 0.5, step=0.05))
        for mode, tab in {"text": text, "image": image, "inpaint": inpaint, "variations": variations}.items():
            tab.select(lambda mode=mode: mode, None, self.fields["mode"], queue=False, api_visibility="private")

    def _painting(self) -> None:
        """Fields for areas to regenerate in addition to the painted one: a mask from a file, and new pixels at the
        edges."""
        with gr.Accordion("Mask from a file", open=False):
            self._field("mask", _image("Mask, white where the image is regenerated", height=160))
        with gr.Accordion("Outpaint", open=False):
            with gr.Row():
                self.edges = [
                    number_field(f"{side}, pixels", 0, minimum=0) for side in ("Left", "Right", "Top", "Bottom")
                ]
            self.extend = gr.Button("Extend the image", size="sm", elem_id="extend")

    def _sampling(self) -> None:
        with gr.Row(elem_id="size"):
            self._field("width", number_field("Width", scale=5, min_width=80))
            self._field("height", number_field("Height", scale=5, min_width=80))
            self._field("seed", number_field("Seed (-1: new)", forms.NEW_SEED, scale=6, elem_id="seed"))
            self._field("n", number_field("Number of images", 4, scale=6))
        with gr.Row():
            self._field(
                "per_line",
                gr.Checkbox(False, label="A prompt on each line", container=False, min_width=120, elem_id="per-line"),
            )
            self.reuse = gr.Button("♻ Reuse last seed", size="sm", min_width=120, elem_id="reuse")
            self.fast = gr.Button("⚡ Fast (distilled)", size="sm", min_width=120, elem_id="fast", visible=False)
        with gr.Row():
            self._field(
                "sampler", gr.Dropdown(sorted(SAMPLERS), value=self._own["sampler"], label="Sampler", min_width=120)
            )
            steps, top = self._own["steps"], steps_maximum(self._own["steps"])
            self._field("steps", gr.Slider(1, top, value=steps, step=1, label="Steps", min_width=120, elem_id="steps"))
            self._field("guidance", number_field("Guidance scale (1 is off)", plain_guidance(self._own), step=0.5))
        self._field("enlarge", _choice("Enlarge with", visible=False))
        with gr.Accordion("Advanced sampling", open=False):
            with gr.Row():
                spacings = [forms.AS_TRAINED, *SPACINGS]
                self._field("spacing", gr.Dropdown(spacings, value=forms.AS_TRAINED, label="Spacing", min_width=100))
            with gr.Row():
                self._field("shift", number_field("Shift", step=0.1))
                self._field("eta", number_field("Eta", step=0.1))
                self._field("rescale", number_field("Rescale", step=0.1))
                self._field(
                    "interval", gr.Textbox("", label="Guidance interval (sigmas)", placeholder="0.2, 5", min_width=100)
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
                    self._field(f"control_{i}_start", number_field("Start", 0.0, step=0.05))
                    self._field(f"control_{i}_end", number_field("End", 1.0, step=0.05))
                self._field(f"control_{i}_image", _image(f"Image for ControlNet {i + 1}", height=160))
            self._field(
                "control_ready", gr.Checkbox(False, label="These are already control images (edges, maps, ...)")
            )


def plain_guidance(sampling: Mapping[str, Any]) -> float:
    """A model's own guidance as one number; 1, off, where it is one for each condition."""
    return sampling["guidance"] if isinstance(sampling["guidance"], (int, float)) else 1.0


def _own_sampling(app: App) -> Mapping[str, Any]:
    """The sampling options of the run that the page starts with, so that a click works before the fields are filled."""
    try:
        return app.models.traits(app.models.names()[0]).sampling
    except (UserError, IndexError):
        return DEFAULTS


def steps_maximum(steps: Any) -> int:
    """The largest value of the slider of steps: SLIDER_STEPS, or more if settings have more."""
    return max(SLIDER_STEPS, int(steps)) if isinstance(steps, (int, float)) else SLIDER_STEPS


def steps_update(steps: Any) -> dict[str, Any]:
    """An update of the field of steps; the browser would cut values beyond the slider's end."""
    return gr.update(value=steps, maximum=steps_maximum(steps))


def number_field(label: str, value: float | None = None, **options: Any) -> gr.Number:
    """A field that keeps what is typed: sliders and a `precision` would change it silently."""
    return gr.Number(value, label=label, placeholder=forms.AS_TRAINED, **{"min_width": 110} | options)


def _image(label: str, visible: bool = True, height: int = 260) -> gr.Image:
    """An image field. `image_mode` keeps the ids of a palette, transparency and bit depth, for the model to read."""
    options: dict[str, Any] = {"type": "pil", "format": "png", "image_mode": None, "sources": ["upload", "clipboard"]}
    return gr.Image(label=label, visible=visible, height=height, **options)


def _editor() -> gr.ImageEditor:
    return gr.ImageEditor(
        label="Paint the area to regenerate",
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        brush=gr.Brush(default_size=40, colors=[MASK], default_color=MASK, color_mode="fixed"),
        eraser=gr.Eraser(default_size=40),
        layers=False,
        transforms=(),
        height=480,
        canvas_size=(16, 16),  # grows with the image; a larger one shifts the first mask that is put on it
        elem_id="editor",
    )


def _choice(label: str, visible: bool = True) -> gr.Dropdown:
    return gr.Dropdown([""], value="", label=label, allow_custom_value=True, min_width=120, visible=visible)
