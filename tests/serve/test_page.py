"""The page in a real browser: by mouse, by touch, by keyboard, and at a phone's width."""

import dataclasses
import shutil
import signal
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH  # noqa: E402
from selenium.webdriver.common.actions.pointer_input import PointerInput  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from mvlm.__main__ import main  # noqa: E402
from tests.evaluate.tiny import CONFIG, make_shards  # noqa: E402
from tests.export.conftest import write_run  # noqa: E402
from tests.serve.process import start  # noqa: E402

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
if not (Path(CHROMIUM).exists() and Path(DRIVER).exists()):
    pytest.skip("Debian's chromium and chromium-driver are not installed", allow_module_level=True)

OPTIONS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
OPTIONS += "disable-component-update disable-sync"
MARKUP = '<img src=x onerror="document.title=1">'
ON_A_PHONE = pytest.mark.parametrize("page", [375], indirect=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    profile = tmp_path_factory.mktemp("profile")
    for option in (*OPTIONS.split(), f"user-data-dir={profile}"):
        options.add_argument(f"--{option}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


class Page:
    """What a person does on the page."""

    def __init__(self, browser, address, width):
        self.browser, self.address = browser, f"{address}/"
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(address)
        self.wait(lambda: self.source("without-sentence") and self.all("#guesses table"))
        self.settle()

    def wait(self, condition):
        """Elements may be redrawn while they are inspected."""
        patient = WebDriverWait(self.browser, 60, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return patient.until(lambda _: condition())

    def settle(self):
        """Wait until no request or drawing is under way."""
        script = "return document.querySelectorAll('[aria-busy], .waiting').length"
        self.wait(lambda: self.browser.execute_script(script) == 0)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, name):
        return self.browser.find_element(By.ID, name)

    def source(self, name):
        return self.one(name).get_attribute("src")

    def hidden(self):
        return [cell.get_attribute("aria-selected") == "true" for cell in self.all("[role=gridcell]")]

    def press(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    def after(self, act):
        """Act and wait for a restored picture, which may equal the previous one: the first squares are random."""
        self.browser.execute_script("arguments[0].removeAttribute('src')", self.one("with-sentence"))
        act()
        self.wait(lambda: self.source("with-sentence"))
        self.settle()

    def guesses(self):
        return [row.text for row in self.all("#guesses tbody tr")]


@pytest.fixture
def page(browser, served, request):
    """The page at a desktop's width, or at that of `parametrize("page", [width], indirect=True)`."""
    page = Page(browser, served[1], getattr(request, "param", 1280))
    yield page
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in severe if "status of 400" not in entry["message"]] == []


@pytest.mark.parametrize("page", [1280, 375], indirect=True)
def test_the_page_never_scrolls_sideways(page):
    page.one("query").send_keys("red circle " + "x" * 80, Keys.ENTER)
    page.wait(lambda: page.all("#found li"))
    page.one("sentence").send_keys("y" * 120)
    page.wait(lambda: any("y" * 120 in chip.text for chip in page.all("#chips button")))
    widths = page.browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert widths[0] == widths[1]


def test_squares_are_hidden_by_mouse(page):
    page.one("clear").click()
    assert page.hidden() == [False] * 4
    cells = page.all("[role=gridcell]")
    page.after(cells[1].click)
    assert page.hidden() == [False, True, False, False]
    shown = [page.one(name).text.removeprefix("L1 ") for name in ("l1-with", "l1-without")]
    said = "L1 is {} with the sentence and {} without it."
    assert page.one("patches-status").text == said.format(*shown)  # read out by screen readers
    drag = ActionChains(page.browser).click_and_hold(cells[0]).move_to_element(cells[2]).release()
    page.after(drag.perform)
    assert page.hidden() == [True, True, True, False]
    page.after(cells[1].click)
    assert page.hidden() == [True, False, True, False]
    assert page.source("with-sentence") != page.source("without-sentence")
    page.after(lambda: page.one("sentence").send_keys(" green star"))


@ON_A_PHONE
def test_squares_are_hidden_by_touch_without_scrolling_the_page(page):
    page.one("clear").click()
    cells = page.all("[role=gridcell]")
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cells[2])
    scrolled = page.browser.execute_script("return window.scrollY")
    touch = ActionBuilder(page.browser, mouse=PointerInput(POINTER_TOUCH, "finger"))
    touch.pointer_action.move_to(cells[2]).pointer_down().move_to(cells[0]).pointer_up()
    page.after(touch.perform)
    assert page.hidden() == [True, False, True, False]
    assert page.browser.execute_script("return window.scrollY") == scrolled


def test_squares_are_hidden_by_keyboard(page):
    page.one("clear").click()
    page.browser.execute_script("arguments[0].focus()", page.one("sentence"))
    for _ in range(30):  # reach the grid as a person without a mouse does
        page.press(Keys.TAB)
        if page.browser.switch_to.active_element.get_attribute("role") == "gridcell":
            break
    page.after(lambda: page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, " "))
    assert page.hidden() == [False, False, False, True]
    focused = page.browser.switch_to.active_element
    assert focused.get_attribute("aria-label") == "row 2, column 2, hidden"
    assert focused.value_of_css_property("outline-style") == "solid"
    page.after(lambda: page.press(Keys.ARROW_UP, " "))
    page.after(lambda: page.press(Keys.ARROW_DOWN, " "))
    assert page.hidden() == [False, True, False, False]


def test_guesses_of_hidden_words_change_with_the_picture(page):
    assert [chip.get_attribute("aria-pressed") for chip in page.all("#chips button")][:2] == ["true", "false"]
    first = page.guesses()
    best = first[0].split()[0]
    assert page.one("words-status").text == f"Likeliest with the picture: “{best}”."  # read out by screen readers
    page.all("#chips button")[1].send_keys(" ")
    page.wait(lambda: len(page.all("#guesses table")) == 2)
    page.all("#chips button")[1].click()
    page.wait(lambda: len(page.all("#guesses table")) == 1)
    assert page.guesses() == first
    page.all("#others button")[3].click()
    page.wait(lambda: len(page.all("#guesses th")) == 3)
    rows = [[cell.text for cell in row.find_elements("css selector", "td")] for row in page.all("#guesses tbody tr")]
    assert len(set(zip(*rows, strict=True))) == 3, "with the picture, without one, with the other"


@ON_A_PHONE
def test_a_picture_found_by_search_can_be_opened_with_its_caption(page):
    page.one("query").send_keys("red circle top left", Keys.ENTER)
    page.wait(lambda: len(page.all("#found img")) == 32)
    script = "return [...document.querySelectorAll('#found img')].every((i) => i.complete && i.naturalWidth > 0)"
    assert page.wait(lambda: page.browser.execute_script(script))
    caption = page.all("#found li p")[0].text
    page.after(lambda: page.all("#found button")[0].send_keys(Keys.ENTER))
    assert page.one("sentence").get_attribute("value") == caption


@ON_A_PHONE
def test_more_results_are_shown_and_going_back_restores_the_query(page):
    def captions():
        return [item.text for item in page.all("#found li p:first-of-type")]

    page.one("query").send_keys("red circle top left", Keys.ENTER)
    page.wait(lambda: len(captions()) == 32)
    first, address = captions(), page.browser.current_url
    page.one("more").click()
    page.wait(lambda: len(captions()) == 64)
    assert captions()[:32] == first and captions()[32:] != first
    page.one("query").clear()
    page.one("query").send_keys("blue star", Keys.ENTER)
    page.wait(lambda: len(captions()) == 32 and captions() != first)
    page.browser.back()
    page.wait(lambda: captions() == first)
    assert page.browser.current_url == address
    assert page.one("query").get_attribute("value") == "red circle top left"
    page.browser.refresh()
    page.wait(lambda: captions() == first)
    assert page.one("more").is_displayed()
    page.browser.execute_script("window.fetch = () => new Promise(() => {})")  # never answers
    page.one("query").send_keys(" and blue star", Keys.ENTER)
    page.wait(lambda: not page.one("more").is_displayed())


def test_going_back_leads_from_similar_pictures_to_the_sentence_to_an_empty_search(page):
    page.one("query").send_keys("red circle top left", Keys.ENTER)
    page.wait(lambda: len(page.all("#found li")) == 32)
    first, address = page.one("found").text, page.browser.current_url
    page.all("#found .deeds button")[5].click()
    page.wait(lambda: page.one("found").text != first)
    assert page.browser.current_url == page.address
    page.browser.back()
    page.wait(lambda: page.one("found").text == first)
    assert page.browser.current_url == address
    assert page.one("query").get_attribute("value") == "red circle top left"
    page.browser.back()
    page.wait(lambda: not page.all("#found li"))
    assert page.one("query").get_attribute("value") == page.one("search-status").text == ""
    assert not page.one("more").is_displayed()


@ON_A_PHONE
def test_a_drawing_by_mouse_touch_and_keyboard_is_searched_for(page):
    board = page.one("drawing")

    def after(act):
        page.browser.execute_script("document.querySelector('#found').replaceChildren()")
        act()
        page.wait(lambda: len(page.all("#found img")) == 32)
        page.settle()
        dark = "const c = arguments[0]; return c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        return page.browser.execute_script(f"{dark}.filter((v, i) => i % 4 === 0 && v < 128).length", board)

    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", board)
    scrolled = page.browser.execute_script("return window.scrollY")
    mouse = ActionChains(page.browser).move_to_element_with_offset(board, -60, -60).click_and_hold()
    one = after(mouse.move_by_offset(100, 0).release().perform)
    touch = ActionBuilder(page.browser, mouse=PointerInput(POINTER_TOUCH, "finger"))
    pointer = touch.pointer_action.move_to(board, -60, 40).pointer_down().move_to(board, 60, 60)
    pointer.pointer_up()
    two = after(touch.perform)
    assert two > 1.5 * one > 0 and page.browser.execute_script("return window.scrollY") == scrolled
    page.browser.execute_script("arguments[0].focus()", board)
    three = after(lambda: page.press(" ", *[Keys.ARROW_RIGHT] * 3, " "))
    assert three > two
    assert after(lambda: page.press(Keys.BACKSPACE)) < three
    page.one("wipe").click()
    assert not page.one("undo").is_enabled()


def test_a_refused_picture_leaves_the_previous_one(page, tmp_path):
    bad = tmp_path / "<b>bad.png"
    bad.write_text("no picture")
    seen = page.source("view")
    page.one("file").send_keys(str(bad))
    page.wait(lambda: "This is not a picture that can be shown" in page.one("pair-status").text)
    assert page.source("view") == seen
    assert page.all("#samples button")[0].get_attribute("aria-pressed") == "true"
    page.after(page.one("random").click)
    assert page.one("patches-status").text.startswith("L1 is ")


@pytest.mark.parametrize("sentence", ["a " * 1000, "\u6f22" * 2000])
def test_the_longest_sentence_the_field_takes_is_answered(page, sentence):
    field = page.one("sentence")
    page.browser.execute_script("arguments[0].value = arguments[1]", field, sentence[:-1])
    field.send_keys(sentence[-1])
    count = len(sentence.split())
    page.wait(lambda: len(page.all("#chips button")) == count)
    page.wait(lambda: "are longer" in page.one("words-status").text)
    assert "Guesses" in page.one("guesses").text


def test_markup_is_shown_as_text(page):
    page.one("sentence").clear()
    page.one("sentence").send_keys(MARKUP)
    page.wait(lambda: [chip.text for chip in page.all("#chips button")] == MARKUP.split())
    page.all("#chips button")[1].click()
    page.wait(lambda: MARKUP.split()[1] in page.one("guesses").text)
    assert page.browser.title == "MaskVLM" and not page.all("#guesses img, #chips img")


def test_every_control_and_picture_has_an_accessible_name(page):
    script = """return [...document.querySelectorAll('button, input, [role=gridcell], img[src]')].filter((e) =>
        !(e.textContent.trim() || e.alt || e.ariaLabel || e.labels?.length || e.querySelector('img')?.alt)).length"""
    assert page.browser.execute_script(script) == 0


@contextmanager
def slow_for(name, address):
    """A proxy to the server at `address` that delays the file `name`; yields its own address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.pass_on()

        def do_POST(self):
            self.pass_on(content=self.rfile.read(int(self.headers["content-length"])))

        def pass_on(self, **sent):
            if self.path == name:
                time.sleep(1)
            kind = {"content-type": self.headers.get("content-type", "")}
            answer = httpx.request(self.command, address + self.path, headers=kind, timeout=60, **sent)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_model_without_reconstruction_says_what_it_cannot_do(browser, tmp_path):
    objectives = dataclasses.replace(CONFIG.objectives, image=0.0, text=0.0)
    process, address = start(write_run(tmp_path / "run", dataclasses.replace(CONFIG, objectives=objectives)))
    try:
        browser.get(address)
        for panel, task in (("patches", "reconstructing images"), ("words", "filling in words")):
            said = WebDriverWait(browser, 30).until(
                lambda driver, panel=panel: driver.find_element(By.CSS_SELECTOR, f"#{panel} h2 + .wrong")
            )
            assert f"may know nothing about {task}" in said.text
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(100)


def test_captions_follow_their_writing_direction_and_long_ones_leave_room_for_others(browser, tmp_path):
    hebrew = "\u05db\u05dc\u05d1 \u05d7\u05d5\u05dd."
    shards, run = make_shards(tmp_path / "corpus", [[hebrew], ["word " * 400]]), write_run(tmp_path / "run", CONFIG)
    assert main(["index", str(shards), "--checkpoint", str(run), "--out", str(tmp_path / "index")]) == 0
    process, address = start(run, "--index", tmp_path / "index")
    try:
        page = Page(browser, f"{address}#find=dog", 1280)
        page.wait(lambda: len(page.all("#found li")) == 2)
        sides = {item.value_of_css_property("direction") for item in page.all("#found .caption")}
        assert sides == {"ltr", "rtl"} and all(item.rect["height"] < 400 for item in page.all("#found li"))
        sentence, chips = page.one("sentence"), page.one("chips")
        assert sentence.get_attribute("value") == hebrew
        assert {item.value_of_css_property("direction") for item in (sentence, chips)} == {"rtl"}
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(100)


def test_a_script_may_load_after_the_first_answer(browser, served):
    browser.get_log("browser")
    with slow_for("/search.js", served[1]) as address:
        page = Page(browser, f"{address}#find=red+circle", 1280)
        page.wait(lambda: len(page.all("#found img")) == 32)
        browser.get("about:blank")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_answer_is_dropped_once_nothing_is_hidden(page):
    page.browser.execute_script("""
        const fetched = window.fetch;
        window.fetch = async (...args) => {
          await new Promise((done) => setTimeout(done, 400));
          return fetched(...args);
        };""")
    chip = page.all("#chips button")[0]
    chip.click()
    page.wait(lambda: not page.all("#guesses table"))
    chip.click()
    chip.click()
    page.all("[role=gridcell]")[0].click()
    time.sleep(0.3)  # the request has begun
    page.one("clear").click()
    time.sleep(1)
    assert page.all("#guesses table") == [] and page.one("words-status").text == "No word is hidden yet."
    assert page.one("patches-status").text == "Nothing is hidden yet." and not page.all("[aria-busy]")


def test_a_file_can_be_chosen_again_after_something_else(page, tmp_path):
    own = tmp_path / "own.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(own)
    page.after(lambda: page.one("file").send_keys(str(own)))
    seen = page.source("view")
    page.after(page.all("#samples button")[1].click)
    page.after(lambda: page.one("file").send_keys(str(own)))
    assert page.source("view") == seen
    page.one("query-file").send_keys(str(own))
    page.wait(lambda: len(page.all("#found img")) == 32)
    first = page.one("found").text
    page.all("#found .deeds button")[0].click()
    page.wait(lambda: page.one("found").text != first)
    page.one("query-file").send_keys(str(own))
    page.wait(lambda: page.one("found").text == first)


def test_a_truncated_sentence_is_reported_beside_the_results(page):
    page.one("query").send_keys("red circle " * 20, Keys.ENTER)
    page.wait(lambda: len(page.all("#found img")) == 32)
    assert "pictures, best first. This model reads" in page.one("search-status").text
    page.after(lambda: page.one("sentence").send_keys(" red circle" * 20))
    for panel in ("patches", "words"):
        page.wait(lambda panel=panel: "are longer" in page.one(f"{panel}-status").text)
