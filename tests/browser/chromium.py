"""A headless Chromium for tests: where it is, how it starts, what it saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SCREENSHOTS = Path(__file__).parent / "screenshots"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SETTINGS = (
    "--headless=new",
    "--no-sandbox",  # root has none, and the pages are ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-crash-reporter",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


class Browser:
    """One page in a Chromium of its own. `driver` is selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._requested: list[str] = []

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        phone = width < 600
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """The value of `script`, which is the body of a function."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """What a person reads there; empty where nothing is."""
        script = """
            const found = document.querySelector(arguments[0]);
            return found && found.getClientRects().length ? found.innerText : '';
        """
        found = self.run(script, selector)
        return str(found or "")

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def write(self, selector: str, text: str) -> None:
        """Replace what stands in a field, as a person would type."""
        from selenium.webdriver.common.by import By

        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def wait(self, selector: str, said: str, timeout_s: float = 20) -> None:
        """Until the text of `selector` contains `said`."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, timeout_s, poll_frequency=0.05).until(
            lambda _: said in self.text(selector),
            f"{selector} never said {said!r}, but {self.text(selector)!r}",
        )

    def screenshot(self, name: str) -> Path:
        """The whole page, below the fold too, as `screenshots/NAME.png`."""
        import base64

        SCREENSHOTS.mkdir(exist_ok=True)
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def console(self) -> list[str]:
        """Errors and warnings since the last call."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def origins(self) -> set[str]:
        """Of every request since the start: `http://127.0.0.1:8080`."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requested.append(message["params"]["request"]["url"])
        urls = [urlsplit(url) for url in self._requested]
        return {f"{url.scheme}://{url.netloc}" for url in urls if url.scheme not in ("data", "chrome")}


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test, saying why, where there is no Chromium, no chromedriver or no selenium."""
    binary = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    driver_path = shutil.which("chromedriver")
    if binary is None or driver_path is None:
        pytest.skip("no Chromium here (as root: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for setting in _SETTINGS:
        options.add_argument(setting)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    try:
        driver.set_script_timeout(20)
        yield Browser(driver)
    finally:
        driver.quit()
