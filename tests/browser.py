"""A headless Chromium that opens pages from disk and tells what they asked for, said and drew."""

import base64
import json
import shutil
from pathlib import Path

import pytest

OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Containers often have little of it.
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A :class:`Browser`; skips where there is no Chromium, no chromedriver or no selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(
            f"no {'chromium' if program is None else 'chromedriver'}: install chromium and chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for one in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    started.set_script_timeout(120)
    started.set_page_load_timeout(120)
    yield Browser(started)
    started.quit()


class Browser:
    """One window. Opening a page forgets what was said before."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path, *, width=1280, height=900, dark=False):
        """Open a page of tdpo from disk, and wait until its charts are drawn."""
        self.driver.get("about:blank")
        self._logged("performance"), self._logged("browser")
        self.size(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.url = Path(path).resolve().as_uri()
        self.driver.get(self.url)
        self.wait("tdpo.ready")
        return self

    def size(self, width, height=900):
        """The size of the window's inside, in CSS pixels; also narrower than a window can be."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def cdp(self, command, **arguments):
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, expression, *values):
        """The value of a JavaScript expression; ``arguments`` are the values."""
        return self.driver.execute_script(f"return {expression}", *values)

    def wait(self, promise):
        """Wait for a JavaScript promise, then for two frames, so that what it changed is on the screen."""
        self.driver.execute_async_script(
            f"""const done = arguments[arguments.length - 1];
            Promise.resolve({promise}).then(
              () => requestAnimationFrame(() => requestAnimationFrame(() => done())), done)"""
        )

    def find(self, selector):
        """The first element of a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector):
        """All elements of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def point(self, x, y):
        """Move the mouse to a point of the window."""
        self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.wait("0")

    def press(self, *keys):
        """Press keys, by selenium's names of them or as texts, where the focus is."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key, key)).perform()

    def requests(self):
        """The URLs asked for since the page was opened, its own among them; data: and blob: are none."""
        messages = [json.loads(entry["message"])["message"] for entry in self._logged("performance")]
        asked = [
            m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def errors(self):
        """What the console was told since the page was opened: errors and warnings."""
        return [one["message"] for one in self._logged("browser") if one["level"] in ("SEVERE", "WARNING")]

    def points(self, chart):
        """Rows of each data set of a chart's view: ``{name: count}``."""
        return self.run(
            """(() => {
              const view = tdpoViews[arguments[0]];
              const {data} = view.getState({data: () => true, signals: () => false});
              return Object.fromEntries(Object.keys(data).map((name) => [name, view.data(name)?.length]));
            })()""",
            chart,
        )

    def overflows(self):
        """Pixels by which the page is wider than the window."""
        return self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def screenshot(self, path, *, whole=False):
        """A PNG of the window, or of the whole page."""
        area = {}
        if whole:
            width, height = self.run(
                "[document.documentElement.clientWidth, document.documentElement.scrollHeight]"
            )
            area = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=whole, **area)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path):
        """The page printed."""
        printed = self.cdp("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        Path(path).write_bytes(base64.b64decode(printed["data"]))

    def _logged(self, kind):
        return self.driver.get_log(kind)
