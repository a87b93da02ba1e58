"""A headless Chromium for these tests; without one, or without its driver, they are skipped."""

import os
import shutil
from pathlib import Path

import pytest

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path():
    """The browser of AWQBENCH_CHROMIUM, or the first on the path; None without one."""
    given = os.environ.get("AWQBENCH_CHROMIUM")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


# One for each module: the driver's event loop must be gone before other tests run kernels.
@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    path = chromium_path()
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} on the path, no AWQBENCH_CHROMIUM")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Open pages that note what they ask for and what goes wrong on them."""
    contexts = []

    def open_(**settings):
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        )
        page = contexts[-1].new_page()
        page.problems, page.requested = [], []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: page.requested.append(request.url))
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def screenshots():
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
