"""The report in a real browser at the width of a phone."""

import shutil

from mvlm.__main__ import main
from tests.serve.test_page import browser  # noqa: F401 - a fixture, which skips without a browser

SCRIPT = """
const panel = document.querySelector(".scroll");
return [panel.innerText.includes("image_mask_ratio"), panel.scrollWidth - panel.clientWidth];
"""


def test_the_table_of_differences_is_no_wider_than_its_panel(browser, brief_run, tmp_path):  # noqa: F811
    other = shutil.copytree(brief_run, tmp_path / "a_name_that_is_one_word_and_nothing_breaks")
    config = (other / "config.toml").read_text()
    config = config.replace("image_mask_ratio = 0.6", "image_mask_ratio = 0.5")
    (other / "config.toml").write_text(
        config.replace("where = []", 'where = ["words_of_the_longest_of_all_captions>0"]')
    )
    assert main(["report", str(brief_run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    metrics = {"width": 320, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((tmp_path / "both.html").as_uri())
    assert browser.execute_script(SCRIPT) == [True, 0]
