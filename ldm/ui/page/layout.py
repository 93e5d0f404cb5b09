"""The whole page: its tabs, and what happens when they are opened."""

import gradio as gr

from ldm.ui.app import App
from ldm.ui.page.checked_blocks import CheckedBlocks
from ldm.ui.page.messages import show_errors
from ldm.ui.page.style import LIVE
from ldm.ui.page.tabs.alerts import AlertsTab, Banner
from ldm.ui.page.tabs.gallery import GalleryTab
from ldm.ui.page.tabs.generate import GenerateTab
from ldm.ui.page.tabs.runs import RunsTab
from ldm.ui.page.tabs.xy import XYTab
from ldm.ui.page.widgets import quiet_event


def build_page(app: App) -> gr.Blocks:
    """The page over the parts of `app`; nothing is served yet."""
    with CheckedBlocks(title="ldm", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        gr.HTML("<h1>ldm: generate images, watch training</h1>", elem_id="title")  # for screen readers
        Banner(app)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Generate", id="generate") as generate_tab:
                generate = GenerateTab(app, tabs)
            with gr.Tab("X/Y grid", id="xy") as xy_tab:
                XYTab(app, generate)
            with gr.Tab("Images", id="images") as images_tab:
                images = GalleryTab(app, generate, tabs)
            with gr.Tab("Runs", id="runs") as runs_tab:
                runs = RunsTab(app)
            with gr.Tab("Alerts", id="alerts") as alerts_tab:
                alerts = AlertsTab(app)
        quietly = quiet_event(generate.status)
        page.load(show_errors(generate.start), generate.kept, list(generate.fields.values()), **quietly)
        results = [generate.gallery, generate.files, generate.last_seed, generate.about]
        page.load(show_errors(generate.start_results), generate.kept_results, results, **quietly)
        trained = [generate.fields["run"], *generate.adapter_fields()]
        for opened in (page.load, generate_tab.select):  # a LoRA that has been trained meanwhile is in its list
            opened(generate.look, None, trained, **quietly)
        page.load(None, js=LIVE, **quietly)
        page.load(show_errors(runs.recall), runs.kept, runs.form, **quietly)
        images_tab.select(images.look, None, images.outputs, **quietly)
        alerts_tab.select(alerts.look, None, alerts.outputs, **quietly)
        for tab in (generate_tab, xy_tab, images_tab, alerts_tab, runs_tab):
            live = tab is runs_tab  # the page asks for the run's state only while this tab is open
            tab.select(_timer(live), None, runs.timer, **quietly)
        runs_tab.select(show_errors(runs.found), None, [runs.run, runs.others], **quietly)
    return page


def _timer(active: bool):
    return lambda: gr.Timer(active=active)
