"""The page in a browser: Chromium and its driver, with selenium (`pip install -e '.[browser]'`).

On Debian: `apt-get install chromium chromium-driver`. LDM_SHOTS=FOLDER keeps screenshots.
"""

import http.server
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.ui.generating.png_settings import read_settings
from ldm.ui.generating.settings import Settings

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WebDriverException = pytest.importorskip("selenium.common.exceptions").WebDriverException
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver"),
]
PATIENCE = 120.0


class Page:
    """The few things that a user does."""

    def __init__(self, driver: Any, served: Any):
        self.driver, self.served = driver, served

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)

    def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once it gives something."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except WebDriverException:  # the page is being rendered again
                pass
            time.sleep(0.1)
        raise AssertionError(f"waited {PATIENCE} s; the page says: {self.text('#status')}")

    def one(self, css: str) -> Any:
        return self.until(lambda: next((e for e in self.all(css) if e.is_displayed()), None))

    def text(self, css: str) -> str:
        return " ".join(element.text for element in self.all(css))

    def write(self, css: str, text: str) -> None:
        box = self.one(css)
        box.clear()
        box.send_keys(text)

    def press(self, css: str) -> None:
        """Clicks once what is there, where nothing of a page that is still being rendered lies over it any more."""

        def clicked() -> bool:
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.one(css))
            self.one(css).click()
            return True

        self.until(clicked)

    def field(self, label: str) -> Any:
        return self.one(f"input[aria-label^='{label}'], input[aria-label^='number input for {label}']")

    def number(self, label: str, value: str) -> None:
        box = self.field(label)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value, Keys.TAB)

    def resize(self, width: int, height: int) -> None:
        """The size of what is seen, in pixels; of a window, it would depend on the window's frame."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def boxes(self, css: str) -> list[dict[str, float]]:
        """Where the elements are seen: left, top, right, bottom."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.getBoundingClientRect().toJSON())"
        return self.driver.execute_script(script, css)

    def box(self, css: str) -> dict[str, float]:
        return self.boxes(css)[0]

    def fold(self, name: str) -> None:
        button = self.until(lambda: next(b for b in self.all("button.label-wrap") if b.text.strip().startswith(name)))
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        time.sleep(1)

    def sent(self, path: str) -> int:
        """How many requests the page has sent to a path."""
        return self.driver.execute_script(
            "return performance.getEntriesByType('resource').filter(e => e.name.includes(arguments[0])).length", path
        )

    def draw_over(self) -> None:
        """A stroke in the drawing field."""
        canvas = self.one("#editor canvas")
        time.sleep(3)  # until the image is on the canvas
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        hand = webdriver.ActionChains(self.driver)
        hand.move_to_element_with_offset(canvas, -60, -40).click_and_hold()
        for x, y in ((40, 0), (40, 20), (-30, 30)):
            hand.move_by_offset(x, y)
        hand.release().perform()
        time.sleep(2)

    def tab(self, name: str) -> None:
        self.until(lambda: next((b for b in self.all("button[role=tab]") if b.text.strip() == name), None)).click()

    def generate(self) -> list[Path]:
        """Draws, and waits for it; the files that were kept."""
        before = set(self.served.app.store.recent_images())
        self.press("#generate")
        self.until(lambda: set(self.served.app.store.recent_images()) - before and "seed" in self.text("#status"))
        return sorted(set(self.served.app.store.recent_images()) - before)

    def shot(self, name: str) -> None:
        if folder := os.environ.get("LDM_SHOTS"):
            time.sleep(1)
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    alone = ("disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")
    plain = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "disable-sync")
    for word in (*plain, *alone, "window-size=1400,1300", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{word}")
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def page(driver: Any, served: Any) -> Iterator[Page]:
    driver.get_log("browser")  # what other tests left there
    driver.get(served.url)
    driver.execute_script("localStorage.clear()")
    driver.refresh()
    opened = Page(driver, served)
    opened.one("#prompt textarea")
    opened.until(lambda: opened.all("#prompt textarea")[0].is_enabled())
    time.sleep(2)  # its events are wired a moment after it is shown
    yield opened
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_text_becomes_images(page: Page) -> None:
    page.write("#prompt textarea", "a cat")
    assert len(page.generate()) == 4
    page.until(lambda: len(page.all("#images img")) >= 4)
    page.shot("draw")


def test_settings_of_an_image_generate_it_again(page: Page, tmp_path: Path) -> None:
    page.write("#prompt textarea", "a fish")
    first = page.generate()[0]
    kept = shutil.copy(first, tmp_path / "picture.png")
    page.driver.refresh()
    page.one("#prompt textarea")
    time.sleep(2)
    page.write("#prompt textarea", "something else")
    page.press("#restore-box button")
    page.until(lambda: page.all("#restore input[type=file]"))[0].send_keys(str(kept))
    page.until(lambda: page.all("#prompt textarea")[0].get_attribute("value") == "a fish")
    (again,) = page.generate()
    assert again != first and np.array_equal(pixels(again), pixels(first))


def test_a_mask_is_painted_and_inpainted(page: Page) -> None:
    page.write("#prompt textarea", "a dog")
    source = pixels(page.generate()[0])
    page.press("#to-inpaint")
    page.draw_over()
    page.shot("inpaint")
    for made in map(pixels, page.generate()):
        same = (made == source).all(-1)
        assert same[0].all() and same[-1].all(), "what isn't painted over is kept"
        assert 0.02 < (~same).mean() < 0.6


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_what_one_needs_is_in_sight(page: Page, width: int, height: int) -> None:
    """Prompt, buttons and status below one another, the results beside them, or below on a narrow screen."""
    page.resize(width, height)
    page.one("#prompt textarea").send_keys("a cat", Keys.CONTROL, Keys.ENTER)
    page.until(lambda: "seed" in page.text("#status") and len(page.all("#images img")) >= 4)
    page.driver.execute_script("window.scrollTo(0, 0)")
    page.shot(f"sight-{width}")
    prompt, go, stop, status, images = map(page.box, ("#prompt", "#generate", "#cancel", "#status", "#images"))
    assert prompt["bottom"] <= go["top"] and go["bottom"] <= status["top"] and status["bottom"] < height
    assert stop["top"] == go["top"] and stop["left"] >= go["right"]
    if width > 800:
        assert images["left"] >= stop["right"] and images["top"] < prompt["bottom"] and images["bottom"] <= height
    else:
        assert images["top"] >= status["bottom"]
        assert all(image["bottom"] < height for image in page.boxes("#images img")[:2]), "the first row isn't in sight"
    for image in page.boxes("#images img"):
        assert images["left"] <= image["left"] and image["right"] <= images["right"], "it is cropped"
        assert images["top"] <= image["top"] and image["bottom"] <= images["bottom"], "it is cropped"
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_results_are_there_after_a_reload(page: Page) -> None:
    generated = page.generate()
    time.sleep(2)  # until the browser has kept them
    page.driver.refresh()
    page.until(lambda: len(page.all("#images button img")) == len(generated))
    page.all("#images button img")[1].click()
    page.press("#to-image")
    time.sleep(2)
    initial = read_settings(page.generate()[0])[0].image
    assert initial and np.array_equal(pixels(page.served.app.store.input_path(initial)), pixels(generated[1]))


def test_each_line_of_the_prompt_is_a_request(page: Page) -> None:
    page.write("#prompt textarea", "a cat\na dog")
    page.one("#per-line input").click()
    page.number("Number of images", "1")
    page.generate()
    page.until(lambda: "2 images" in page.text("#status"))
    made = page.served.app.store.recent_images(2)
    assert [read_settings(path)[0].prompt for path in made] == ["a dog", "a cat"]


def test_an_image_grows_beyond_its_edges(page: Page) -> None:
    source = pixels(page.generate()[0])
    page.press("#to-inpaint")
    page.one("#editor canvas")
    time.sleep(3)
    page.fold("Outpaint")
    page.number("Left", "16")
    page.press("#extend")
    page.until(lambda: page.field("Width").get_attribute("value") == "32")
    time.sleep(3)
    for made in map(pixels, page.generate()):
        assert made.shape == (16, 32, 3) and np.array_equal(made[:, 16:], source)


def test_images_are_searched_deleted_and_sent_on(page: Page) -> None:
    page.write("#prompt textarea", "a fish of its own")
    first, *others = page.generate()
    page.tab("Images")
    page.write("#search textarea, #search input", "fish own")
    page.until(lambda: len(page.all("#all-images button img")) == 1 + len(others))
    page.all("#all-images button img")[-1].click()
    time.sleep(1)
    page.press("#delete")
    page.until(lambda: not first.exists())
    page.until(lambda: len(page.all("#all-images .grid-container button img")) == len(others))
    page.press("#send-image")
    page.until(lambda: page.one("#generate").is_displayed())
    time.sleep(2)
    assert read_settings(page.generate()[0])[0].image


def test_axe_finds_no_serious_fault(page: Page) -> None:
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    for dark in ("light", "dark"):
        page.driver.get(f"{page.served.url}?__theme={dark}")
        page.one("#prompt textarea")
        time.sleep(3)
        page.generate()
        for tab in ("Generate", "X/Y grid", "Images", "Runs", "Alerts"):
            page.tab(tab)
            time.sleep(2)
            page.shot(f"{dark}-{tab}".replace("/", ""))
            faults = axe.run(page.driver)["violations"]
            grave = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
            found = [f"{fault['id']}: {node['html'][:120]}" for fault in grave for node in fault["nodes"]]
            assert not found, (dark, tab)


def test_generating_is_cancelled(page: Page) -> None:
    before = page.served.app.store.recent_images()
    page.number("Steps", "150"), page.number("Number of images", "64")
    page.press("#generate")
    page.until(lambda: "Step" in page.text("#status"))
    page.press("#cancel")
    page.until(lambda: "Stopped" in page.text("#status"))
    assert "preview" in page.text("#images"), "the unfinished images are gone"
    page.shot("cancelled")
    assert page.served.app.store.recent_images() == before


def test_generating_that_waits_for_another_is_cancelled(page: Page) -> None:
    client = pytest.importorskip("gradio_client").Client(page.served.url, verbose=False)
    long = client.submit(prompt="a cat", n=1, steps=1000, api_name="/generate")
    page.until(lambda: any("Step" in out[0] for out in long.outputs()))
    page.press("#generate")
    page.until(lambda: "Waiting" in page.text("#status"))
    time.sleep(1)
    page.press("#cancel")
    page.until(lambda: "Stopped" in page.text("#status"))
    assert not long.done(), "the other's goes on"
    long.cancel()
    before = page.served.app.store.recent_images()
    time.sleep(3)
    assert page.served.app.store.recent_images() == before and "Stopped" in page.text("#status")
    assert page.generate()


def test_more_of_the_sampler_can_be_opened(page: Page) -> None:
    page.fold("Advanced sampling")
    for label in ("Width", "Height", "Shift", "Eta", "Rescale"):
        assert page.field(label).get_attribute("value") == ""
    page.shot("more")
    assert page.generate()
    page.number("Width", "32"), page.number("Height", "16")
    assert Image.open(page.generate()[0]).size == (32, 16)


def test_what_is_typed_is_taken_or_refused(page: Page) -> None:
    page.number("Guidance", "30")
    assert read_settings(page.generate()[0])[0].guidance == 30
    page.number("Seed", "3.7")
    page.press("#generate")
    page.until(lambda: "has to be a whole number" in page.text("body"))
    page.number("Seed", "3")
    page.number("Number of images", "65")
    page.press("#generate")
    page.until(lambda: "between 1 and 64 images" in page.text("body"))


def test_the_image_that_is_shown_is_sent_on(page: Page) -> None:
    generated = page.generate()
    page.until(lambda: len(page.all("#images button img")) >= 4)
    page.all("#images button img")[1].click()
    page.until(lambda: page.all("#images .preview"))
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    time.sleep(1)
    page.shot("shown")
    page.press("#to-image")
    time.sleep(2)
    initial = read_settings(page.generate()[0])[0].image
    assert initial and np.array_equal(pixels(page.served.app.store.input_path(initial)), pixels(generated[2]))


def test_a_restored_mask_stays_where_it_was(page: Page, tmp_path: Path) -> None:
    store, mask = page.served.app.store, np.zeros((16, 16), np.uint8)
    mask[2:6, 3:9] = 255
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    names = store.keep_input(image), store.keep_input(Image.fromarray(mask))
    settings = Settings("tiny", image=names[0], mask=names[1], strength=1.0, n=1, steps=2)
    (*_, made) = page.served.app.generator.generate(settings)
    kept = shutil.copy(made[0].path, tmp_path / "picture.png")
    page.fold("Settings from an image")
    page.until(lambda: page.all("#restore input[type=file]"))[0].send_keys(str(kept))
    canvas = page.one("#editor canvas")
    time.sleep(5)
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    webdriver.ActionChains(page.driver).move_to_element(canvas).click_and_hold().move_by_offset(
        2, 2
    ).release().perform()
    time.sleep(2)
    page.shot("mask")
    again = read_settings(page.generate()[0])[0].mask
    assert again
    found = (
        np.asarray(Image.open(store.input_path(again)).convert("L").resize((16, 16), Image.Resampling.NEAREST)) > 127
    )
    assert found[mask > 127].all(), "the mask has moved"
    stroke = found & (mask == 0)
    assert 0 < stroke.sum() < 20 and not stroke[:5].any()


def test_the_drawing_field_sends_nothing_while_nobody_draws(page: Page) -> None:
    page.generate()
    page.press("#to-inpaint")
    page.one("#editor canvas")
    page.draw_over(), page.generate()
    time.sleep(4)
    before = page.sent("/upload")
    time.sleep(12)
    assert page.sent("/upload") == before and page.sent("/queue/join") > 0


def test_an_unreadable_image_is_reported_and_leaves_the_rest_alone(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    page.tab("Image to image")
    page.until(lambda: page.all("input[type=file][accept*=image]"))
    shown = [e for e in page.all("input[type=file]") if "image" in (e.get_attribute("accept") or "")]
    for field in shown:
        if field.find_element("xpath", "./ancestor::*[@role='tabpanel'][1]").is_displayed():
            field.send_keys(str(tmp_path / "notes.png"))
            break
    time.sleep(2)
    page.press("#generate")
    page.until(lambda: "isn't an image of a known kind" in page.text("body"))
    page.shot("unreadable")
    assert "/tmp" not in page.text("body") and "ldm-page" not in page.text("body")
    page.tab("Text to image")
    time.sleep(1)
    assert page.generate()


def test_the_form_is_this_browsers(page: Page) -> None:
    page.write("#prompt textarea", "a fish of mine")
    page.generate()
    client = pytest.importorskip("gradio_client").Client(page.served.url, verbose=False)
    client.predict(prompt="another's dog", n=1, steps=2, api_name="/generate")
    page.driver.refresh()
    page.until(lambda: page.one("#prompt textarea").get_attribute("value") == "a fish of mine")


def test_curves_have_a_legend(page: Page) -> None:
    metrics = page.served.app.runs_dir / "ldm" / "tiny" / "metrics.csv"
    metrics.write_text("step,train/loss,val/loss\n1,2.0,\n2,1.5,1.7\n3,1.0,1.2\n")
    page.tab("Runs")
    box = page.one("#runs input")
    box.click()
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("ldm/tiny", Keys.ENTER)
    words = page.until(lambda: [e for e in page.all(".vega-embed text") if e.text in ("train/loss", "val/loss")])
    page.shot("legend")
    assert {word.text for word in words} == {"train/loss", "val/loss"}
    for word in words:
        block = word.find_element("xpath", "./ancestor::*[contains(@class, 'block')][1]")
        assert word.rect["y"] + word.rect["height"] <= block.rect["y"] + block.rect["height"], "it is cut off"


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of another web page."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<p>elsewhere</p><iframe id=inner></iframe>")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_no_other_page_reaches_this_one(page: Page, elsewhere: str) -> None:
    """A page of another port of this machine: it sends, uploads and frames, and nothing comes of it."""
    served, files = page.served, set(page.served.app.served_files.path.rglob("*"))
    page.driver.get(elsewhere)
    page.driver.set_script_timeout(20)
    answers = page.driver.execute_async_script(ATTACK, served.url)
    assert len(answers) == 4 and set(answers) <= {403, "refused"}
    page.driver.execute_script("document.querySelector('#inner').src = arguments[0]", served.url)
    time.sleep(3)
    page.driver.switch_to.frame("inner")
    assert not page.all("#prompt")
    page.driver.switch_to.default_content()
    assert served.app.launcher.started() == [] and set(served.app.served_files.path.rglob("*")) == files


ATTACK = """
const [url, done] = arguments;
const blob = new Blob([JSON.stringify({data: ["vae", "x", "data=digits", false]})]);
const form = new FormData();
form.append("files", new Blob(["x"]), "x.png");
(async () => {
const answers = await Promise.allSettled([
  fetch(url + "gradio_api/call/start_run", {method: "POST", mode: "no-cors", body: blob}),
  fetch(url + "gradio_api/upload", {method: "POST", mode: "no-cors", body: form}),
  fetch(url + "gradio_api/upload", {method: "POST", body: form}),
  fetch(url + "config"),
]);
done(answers.map((answer) => answer.value?.status ?? "refused"));
})();
"""


def test_a_mistake_is_shown(page: Page) -> None:
    page.tab("Inpaint")
    time.sleep(1)
    page.press("#generate")
    page.until(lambda: "Failed: Inpainting needs an initial image" in page.text("#status"))


@pytest.mark.skipif("LDM_RUNS" not in os.environ, reason="no trained run: LDM_RUNS=runs, with runs/ldm/emoji")
def test_a_trained_run_inpaints_on_the_image_of_the_docs(driver: Any) -> None:
    """Retakes docs/webpage.png: of an image, what is painted over is generated anew."""
    from ldm.ui.server.serve import serve
    from tests.ui.conftest import config

    served = serve(config(Path(os.environ["LDM_RUNS"]), run="emoji"))
    try:
        driver.get(f"{served.url}?__theme=light")
        page = Page(driver, served)
        page.resize(1400, 1150)
        page.one("#prompt textarea")
        time.sleep(4)
        page.write("#prompt textarea", "a rocket on a blue background")
        page.number("Seed", "3")
        source = pixels(page.generate()[0])
        page.until(lambda: len(page.all("#images button img")) >= 4)
        page.press("#to-inpaint")
        page.draw_over()
        page.write("#prompt textarea", "a burger on a blue background")
        generated = list(map(pixels, page.generate()))
        assert len(generated) == 4
        assert all((made == source).all(-1).mean() > 0.3 and (made != source).any() for made in generated)
        time.sleep(2)
        driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        driver.save_screenshot(str(Path(__file__).parents[2] / "docs" / "webpage.png"))
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        served.close()


def test_every_tab_opens(page: Page) -> None:
    for tab in ("X/Y grid", "Images", "Runs", "Alerts"):
        page.tab(tab)
        time.sleep(2)
        page.shot(tab.replace("/", ""))
    severe = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if page.served.url in message and "favicon" not in message]
