"""Results with credits in a real browser: names, licences, an SVG on the clipboard, dark mode."""

import shutil
import signal

import pytest

from mvlm.__main__ import main
from tests.serve import icons
from tests.serve.process import start

pytest.importorskip("selenium")
from tests.serve.test_page import Page, browser  # noqa: F401 - a fixture

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def address(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("icons")
    shards, out = icons.made(folder), folder / "index"
    assert main(["index", str(shards), "--checkpoint", str(trained), "--out", str(out)]) == 0
    process, address = start(trained, "--index", out)
    yield address
    process.send_signal(signal.SIGINT)
    process.wait(100)
    shutil.rmtree(folder)


@pytest.mark.parametrize("width", [1280, 375])
def test_credits_are_shown_and_drawings_copied(browser, address, width):  # noqa: F811
    page = Page(browser, address, width)
    page.one("query").send_keys("bar 3\n")
    page.wait(lambda: len(page.all("#found li")) == icons.COUNT)
    page.wait(lambda: len(page.all("#found img.drawn")) == icons.COUNT - 1)
    items = {item.find_element("tag name", "p").text: item for item in page.all("#found li")}
    assert "bars:bar-3" in items["bar 3"].text and "Bars by Ann <b>" in items["bar 3"].text
    link = items["bar 3"].find_element("css selector", "a")
    assert (link.text, link.get_attribute("href")) == ("MIT", "https://example.org/licence")
    assert not items["bar 1"].find_elements("css selector", "a") and "MIT" in items["bar 1"].text
    assert "Copy SVG" not in items[f"bar {icons.COUNT - 1}"].text
    rights = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": address}
    browser.execute_cdp_cmd("Browser.grantPermissions", rights)
    items["bar 3"].find_element("css selector", ".deeds button:last-child").click()
    page.wait(lambda: "copied" in page.one("search-status").text)
    read = "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))"
    assert browser.execute_async_script(read) == icons.SVG.format(16)
    items["bar 3"].find_element("css selector", ".deeds button").click()
    page.wait(lambda: page.all("#found li p") and page.all("#found li p")[0].text == "bar 3")
    widths = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert widths[0] == widths[1]
    for colours in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": colours}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        board = browser.execute_script("return getComputedStyle(document.getElementById('drawing')).backgroundColor")
        assert board == "rgb(255, 255, 255)" and (paper == "rgb(20, 23, 27)") == (colours == "dark")
