"""The report in a real browser at the width of a phone and of a screen."""

import shutil

from mvlm.__main__ import main
from tests.evaluate.tiny import CAPTIONS
from tests.serve.test_page import browser  # noqa: F401 - a fixture, which skips without a browser

SCRIPT = """
const panel = document.querySelector(".scroll");
return [panel.innerText.includes("image_mask_ratio"), panel.scrollWidth - panel.clientWidth];
"""
WINDOW = {"width": 320, "height": 900, "deviceScaleFactor": 1, "mobile": True}
TOO_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_captions_without_spaces_do_not_widen_the_page(browser, page, tmp_path):  # noqa: F811
    text = page.read_text()
    for caption in CAPTIONS:
        text = text.replace(caption[0], "x" * 3000)
    (tmp_path / "wide.html").write_text(text)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", WINDOW | {"width": 1000, "mobile": False})
    browser.get((tmp_path / "wide.html").as_uri())
    assert browser.execute_script("return document.querySelectorAll('ol li').length") > 5
    assert browser.execute_script(TOO_WIDE) == 0


def test_the_table_of_differences_is_no_wider_than_its_panel(browser, brief_run, tmp_path):  # noqa: F811
    other = shutil.copytree(brief_run, tmp_path / "a_name_that_is_one_word_and_nothing_breaks")
    config = (other / "config.toml").read_text()
    config = config.replace("image_mask_ratio = 0.6", "image_mask_ratio = 0.5")
    (other / "config.toml").write_text(
        config.replace("where = []", 'where = ["words_of_the_longest_of_all_captions>0"]')
    )
    assert main(["report", str(brief_run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", WINDOW)
    browser.get((tmp_path / "both.html").as_uri())
    assert browser.execute_script(SCRIPT) == [True, 0]
