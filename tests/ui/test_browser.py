"""The page in a browser: Chromium and its driver, with selenium (`pip install -e '.[browser]'`).

On Debian: `apt-get install chromium chromium-driver`. LDM_SHOTS=FOLDER keeps screenshots.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
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
            except WebDriverException:  # the page is being drawn anew
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
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.one(css))
        self.one(css).click()

    def tab(self, name: str) -> None:
        self.until(lambda: next((b for b in self.all("button[role=tab]") if b.text.strip() == name), None)).click()

    def draw(self) -> list[Path]:
        """Draws, and waits for it; the files that were kept."""
        before = set(self.served.app.store.pictures())
        self.press("#draw")
        self.until(lambda: set(self.served.app.store.pictures()) - before and "seed" in self.text("#status"))
        return sorted(set(self.served.app.store.pictures()) - before)

    def shot(self, name: str) -> None:
        if folder := os.environ.get("LDM_SHOTS"):
            time.sleep(1)
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,1300"):
        options.add_argument(f"--{word}")
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def page(driver: Any, served: Any) -> Page:
    driver.get(served.url)
    opened = Page(driver, served)
    opened.one("#prompt textarea")
    opened.until(lambda: opened.all("#prompt textarea")[0].is_enabled())
    time.sleep(2)  # its events are wired a moment after it is shown
    return opened


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_text_becomes_pictures(page: Page) -> None:
    page.write("#prompt textarea", "a cat")
    assert len(page.draw()) == 4
    page.until(lambda: len(page.all("#pictures img")) >= 4)
    page.shot("draw")


def test_settings_of_a_picture_draw_it_again(page: Page, tmp_path: Path) -> None:
    page.write("#prompt textarea", "a fish")
    first = page.draw()[0]
    kept = shutil.copy(first, tmp_path / "picture.png")
    page.driver.refresh()
    page.one("#prompt textarea")
    time.sleep(2)
    page.write("#prompt textarea", "something else")
    page.press("#restore-box button")
    page.until(lambda: page.all("#restore input[type=file]"))[0].send_keys(str(kept))
    page.until(lambda: page.all("#prompt textarea")[0].get_attribute("value") == "a fish")
    (again,) = page.draw()
    assert again != first and np.array_equal(pixels(again), pixels(first))


def test_a_mask_is_drawn_and_inpainted(page: Page) -> None:
    page.write("#prompt textarea", "a dog")
    source = pixels(page.draw()[0])
    page.press("#to-inpaint")
    canvas = page.one("#editor canvas")
    time.sleep(3)  # until the picture is on the canvas
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    brush = next((b for b in page.all("#editor button") if "raw" in (b.get_attribute("aria-label") or "")), None)
    if brush:
        brush.click()
    hand = webdriver.ActionChains(page.driver)
    hand.move_to_element_with_offset(canvas, -60, -40).click_and_hold()
    for x, y in ((40, 0), (40, 20), (-30, 30)):
        hand.move_by_offset(x, y)
    hand.release().perform()
    time.sleep(2)
    page.shot("inpaint")
    for made in map(pixels, page.draw()):
        same = (made == source).all(-1)
        assert same[0].all() and same[-1].all(), "what isn't drawn over is kept"
        assert 0.02 < (~same).mean() < 0.6


def test_a_drawing_is_cancelled(page: Page) -> None:
    box = page.one("input[aria-label*='Steps']")
    box.clear()
    box.send_keys("1000\t")
    page.press("#draw")
    page.until(lambda: "step" in page.text("#status"))
    page.press("#cancel")
    page.until(lambda: "cancelled at step" in page.text("#status"))
    page.shot("cancelled")


def test_a_mistake_is_shown(page: Page) -> None:
    page.tab("Inpaint")
    time.sleep(1)
    page.press("#draw")
    page.until(lambda: "needs a picture" in page.text("body"))


def test_every_tab_opens(page: Page) -> None:
    for tab in ("X/Y grid", "Pictures", "Runs", "Alerts"):
        page.tab(tab)
        time.sleep(2)
        page.shot(tab.replace("/", ""))
    severe = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if page.served.url in message and "favicon" not in message]
