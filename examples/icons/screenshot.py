"""A screenshot of `mvlm serve` over icons: python examples/icons/screenshot.py ADDRESS OUT.png [WORDS]

It draws an arrow with the mouse, or searches for WORDS, in Debian's chromium (needs `chromium-driver` and selenium).
"""

from __future__ import annotations

import argparse
import base64
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ARROW = (((-80, 0), (80, 0)), ((-80, 0), (-20, -60)), ((-80, 0), (-20, 60)))
"""Strokes on the board, relative to its centre: an arrow to the left."""
WIDTH, HEIGHT, SCALE = 1120, 760, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("out", type=Path)
    parser.add_argument("words", nargs="?")
    args = parser.parse_args()
    options = webdriver.ChromeOptions()
    for option in ("headless=new", "no-sandbox", "disable-gpu"):
        options.add_argument(f"--{option}")
    options.binary_location = "/usr/bin/chromium"
    browser = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
    try:
        args.out.write_bytes(shot(browser, args.address, args.words))
    finally:
        browser.quit()


def shot(browser: webdriver.Chrome, address: str, words: str | None) -> bytes:
    """PNG of the page's upper part, once all images are drawn."""
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)
    wait = WebDriverWait(browser, 60, 0.1)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#guesses table"))
    if words:
        browser.find_element(By.ID, "query").send_keys(f"{words}\n")
    else:
        board = browser.find_element(By.ID, "drawing")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", board)
        for (x, y), (to_x, to_y) in ARROW:
            chain = ActionChains(browser).move_to_element_with_offset(board, x, y).click_and_hold()
            chain.move_by_offset(to_x - x, to_y - y).release().perform()
    time.sleep(2)  # the page searches a moment after the last stroke
    drawn = "[...document.querySelectorAll('#found img')].every((image) => image.matches('.drawn'))"
    listed = "document.getElementById('search-status').textContent.includes('best first')"
    wait.until(lambda _: browser.execute_script(f"return {listed} && {drawn}"))
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return base64.b64decode(taken["data"])


if __name__ == "__main__":
    main()
