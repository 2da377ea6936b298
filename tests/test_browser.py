"""The built book in a browser, as its readers open it: from the disk, off line."""

import gzip
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import record
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from test_book import PAGES
from test_language import DONE
from test_plot import Elements, gray, slider, sliders

from unet_lib import plot

pytestmark = pytest.mark.book

# The folder for pictures of all pages, where somebody wants to look at them.
SCREENSHOTS = os.environ.get("UNET_BOOK_SCREENSHOTS")
# The pages of the modules are made alike: these stand for all of them.
ALIKE = {name for name in PAGES if name.startswith("reference-")}
SHOWN = [*PAGES, "search"]
SHOWN = [name for name in SHOWN if name not in ALIKE - {"reference-metrics"}]
# Opens all that a reader can open, as a reader does.
UNFOLD = """() => document.querySelectorAll(
  "details:not([open]) > summary, .toggle-hidden > .admonition-title"
).forEach(title => title.click())"""


@pytest.fixture(scope="module")
def browser():
    """The installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("UNET_BOOK_CHROMIUM") or next(
        filter(None, map(shutil.which, names)), None
    )
    if found is None:
        pytest.skip("no Chromium or Chrome; UNET_BOOK_CHROMIUM can name one")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found)


class Visit:
    """A page in a window of its own, with what it loaded and what went wrong."""

    def __init__(self, browser, file, width=1280, height=900, **how):
        self.file, self.name = file, file.stem
        self.loaded, self.problems = set(), []
        self.window = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", **how
        )
        # There is no network. What is aborted is among what failed.
        self.window.route(re.compile("^https?:"), lambda route: route.abort())
        self.page = self.window.new_page()
        self.page.on("request", lambda request: self.loaded.add(request.url))
        self.page.on("requestfailed", lambda request: self.problems.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self.listen)
        self.page.goto(file.as_uri())
        self.page.evaluate("window.MathJax?.startup.promise.then(() => 0)")
        self.page.evaluate("document.fonts.ready.then(() => 0)")

    def listen(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def take_picture(self, name):
        if SCREENSHOTS:
            path = Path(SCREENSHOTS) / f"{self.name}-{name}.jpeg"
            self.page.screenshot(path=path, full_page=True, quality=80)

    def unfold(self):
        self.page.evaluate(UNFOLD)
        # The theme looks 0.3 s later for what scrolls now.
        self.page.wait_for_timeout(500)


@pytest.fixture(scope="module", params=SHOWN)
def desktop(request, browser, site):
    """A page on a desktop, in the light theme, everything unfolded."""
    visit = Visit(browser, site / f"{request.param}.html")
    visit.take_picture("desktop")
    visit.unfold()
    yield visit
    visit.window.close()


@pytest.fixture(scope="module", params=SHOWN)
def phone(request, browser, site):
    """A page on a phone, in the dark theme, everything unfolded."""
    how = {"is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    visit = Visit(browser, site / f"{request.param}.html", 390, 844, **how)
    visit.take_picture("phone-dark")
    visit.unfold()
    yield visit
    visit.window.close()


def test_a_page_opens_without_an_error(desktop):
    assert desktop.problems == []


def test_a_page_weighs_less_than_3_MB(desktop):
    """With all that its first visitor loads, text compressed as servers send it."""
    weights = {}
    for url in desktop.loaded:
        if url.startswith("file:"):
            file = Path(unquote(urlsplit(url).path))
            packed = file.read_bytes()
            if file.suffix in (".html", ".css", ".js"):
                packed = gzip.compress(packed)
            weights[file.name] = len(packed)
    assert desktop.file.name in weights
    assert sum(weights.values()) < 3_000_000, weights


def test_formulas_are_set(desktop):
    written = len(re.findall(r'class="math ', desktop.file.read_text("utf-8")))
    found = desktop.page.evaluate("""() => ({
      set: [...document.querySelectorAll(".math mjx-container")]
        .filter(box => box.getBoundingClientRect().width > 0).length,
      wrong: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
      raw: /\\\\\\(|\\\\\\[/.test(
        [...document.querySelectorAll("article .math")].map(e => e.innerText).join()),
    })""")
    assert found == {"set": written, "wrong": 0, "raw": False}


def test_each_slider_changes_its_picture_by_keyboard(desktop):
    source = record.BOOK / f"{desktop.name}.md"
    boxes = desktop.page.locator("[data-explore]").all()
    written = source.read_text("utf-8").count("plot.explore(") if source.exists() else 0
    assert len(boxes) == written
    for box in boxes:
        picture = box.locator("img")
        for group in box.locator("fieldset").all():
            seen = []
            for button in group.locator("input").all():
                button.focus()
                desktop.page.keyboard.press("Space")
                picture.evaluate("picture => picture.decode()")
                seen.append(picture.get_attribute("src"))
            assert len(seen) > 1
            assert len(set(seen)) == len(seen)
        for control in box.locator("input[type=range]").all():
            last = int(control.get_attribute("max"))
            control.focus()
            seen = []
            for key in ["Home"] + ["ArrowRight"] * last:
                desktop.page.keyboard.press(key)
                picture.evaluate("picture => picture.decode()")
                text = control.get_attribute("aria-valuetext")
                label = control.get_attribute("aria-label")
                written = control.locator("xpath=..").inner_text()
                assert written.strip() == f"{label}: {text}"
                assert f"{label} {text}" in picture.get_attribute("alt")
                seen.append(picture.get_attribute("src"))
            assert len(set(seen)) == last + 1
            ring = control.evaluate("""control => {
              const style = getComputedStyle(control);
              return style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
            }""")
            assert ring >= 1


def test_inline_code_is_not_broken_on_a_desktop(desktop):
    """But in tables, whose columns would crowd one another."""
    broken = desktop.page.locator("article code .pre").evaluate_all("""words => words
      .filter(word => !word.closest("td"))
      .filter(word =>
        new Set([...word.getClientRects()].map(line => line.top)).size > 1)
      .map(word => word.textContent)""")
    assert broken == []


# By the rules of WCAG 2, levels A and AA.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# Of the colored words of the code one of each kind is left: a page has thousands.
ONE_OF_A_KIND = """() => {
  const seen = new Set();
  document.querySelectorAll("pre span").forEach(word => {
    if (word.childElementCount) return;
    if (seen.has(word.className)) word.replaceWith(...word.childNodes);
    seen.add(word.className);
  });
  document.body.normalize();
}"""


def faults(page, rules):
    """What axe finds on the page: of each rule, what it is and where."""
    page.evaluate(ONE_OF_A_KIND)
    options = {"preload": False, "resultTypes": ["violations"], "runOnly": rules}
    found = Axe().run(page, options=options).response["violations"]
    return {
        rule["id"]: [
            f"{node['target']}: {node['failureSummary']}" for node in rule["nodes"]
        ]
        for rule in found
    }


def brightness(page):
    """Of the page's paper, from 0 to 255."""
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


def test_a_page_is_accessible(desktop):
    assert brightness(desktop.page) > 240
    assert faults(desktop.page, RULES) == {}


def test_a_page_has_contrast_in_the_dark(phone):
    """The elements are those of the desktop: only their colors are others."""
    assert brightness(phone.page) < 40
    assert faults(phone.page, ["color-contrast"]) == {}


def test_nothing_is_cut_off_on_a_phone(phone):
    """Nor does the page scroll sideways; a part of it may."""
    assert phone.problems == []
    found = phone.page.evaluate("""() => {
      const across = element => getComputedStyle(element).overflowX;
      const scrolls = element => element && (
        /auto|scroll/.test(across(element)) || scrolls(element.parentElement));
      const name = element =>
        `${element.tagName} ${element.className} ${element.textContent.trim()}`;
      // What MathJax writes for screen readers is not seen.
      document.querySelectorAll("mjx-assistive-mml").forEach(math => math.remove());
      const seen = [...document.querySelectorAll("article *")];
      return {
        width: Math.max(
          document.documentElement.scrollWidth, document.body.scrollWidth),
        outside: seen.filter(element =>
          element.getBoundingClientRect().right > innerWidth + 1 &&
          !scrolls(element)).map(name),
        hidden: seen.filter(element =>
          element.clientWidth && element.scrollWidth > element.clientWidth + 1 &&
          /hidden|clip/.test(across(element))).map(name),
      };
    }""")
    assert found == {"width": 390, "outside": [], "hidden": []}


def test_code_of_the_main_line_fits_a_phone(phone):
    """What is folded may scroll."""
    if phone.name not in [*DONE, "index"]:
        pytest.skip("this page's code is still wider")
    wide = phone.page.locator("article pre").evaluate_all("""blocks => blocks
      .filter(block => !block.closest("details, .deeper, .solution"))
      .filter(block => block.scrollWidth > block.clientWidth + 1)
      .map(block => block.textContent)""")
    assert wide == []


def test_tables_fit_a_phone(phone):
    tables = phone.page.locator("article table")
    wide = tables.evaluate_all("""tables => tables
      .filter(table => table.getBoundingClientRect().right > innerWidth)
      .map(table => table.textContent.trim())""")
    assert wide == []


def test_figures_are_as_wide_as_a_phone(phone):
    """So that 12 points in a figure of 7 inches are more than 9 pixels.

    A picture that is stored at twice its width is shown at half its pixels at the most.
    """
    widths = phone.page.locator(".cell_output > figure img, [data-explore] img")
    narrow = widths.evaluate_all("""pictures => pictures.filter(picture => {
      const style = getComputedStyle(picture);
      const inside = parseFloat(style.width) - parseFloat(style.paddingLeft) -
        parseFloat(style.paddingRight);
      return inside < Math.min(389, 0.95 * picture.naturalWidth / 2) &&
        !picture.closest(".admonition");
    }).map(picture => `${picture.width}: ${picture.alt}`)""")
    assert narrow == []


def test_no_line_begins_with_the_comma_after_a_formula(phone):
    torn = phone.page.locator("article span.math").evaluate_all("""formulas =>
      formulas.filter(formula => {
        const after = formula.nextSibling;
        if (!/^[.,:;!?)]/.test(after?.data ?? "")) return false;
        const sign = document.createRange();
        sign.setStart(after, 0);
        sign.setEnd(after, 1);
        return sign.getBoundingClientRect().left <
          formula.getBoundingClientRect().left;
      }).map(formula => formula.parentElement.textContent)""")
    assert torn == []


def test_search_finds_a_page(browser, site):
    visit = Visit(browser, site / "index.html")
    visit.page.keyboard.press("Control+k")
    visit.page.keyboard.type("overlap-tile")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_text("Search finished").wait_for()
    links = visit.page.locator("#search-results li > a")
    found = links.evaluate_all("links => links.map(link => link.pathname)")
    assert (site / "overlap-tile.html").as_posix() in found
    assert visit.problems == []
    visit.window.close()


def test_next_and_previous_lead_through_the_book(browser, site):
    page = browser.new_page(java_script_enabled=False)  # ten times as fast
    address = (site / "index.html").as_uri()
    for way, expected in [("right-next", PAGES), ("left-prev", PAGES[::-1])]:
        seen = []
        while True:
            page.goto(address)
            seen.append(Path(urlsplit(address).path).stem)
            link = page.locator(f"a.{way}")
            if len(seen) == len(PAGES) or not link.count():
                break
            address = link.evaluate("link => link.href")
        assert seen == expected
        assert not link.count()
    page.close()


def test_two_sliders_move_and_the_same_slider_twice_moves_apart(browser):
    one = slider(gray, {"x": [0.1, 0.9]}, start={"x": 0.9})
    two = slider(lambda a, b: gray((3 * a + b) / 9), {"a": [1, 2], "b": [1, 2, 3]})
    page = browser.new_page()
    page.set_content(f"{one}{two}{one}")
    first, second, again = page.locator("[data-explore]").all()

    def seen(box):
        picture = box.locator("img")
        return (
            picture.get_attribute("alt"),
            picture.get_attribute("src"),
            box.locator("output").all_inner_texts(),
        )

    def move(box, which, index):
        box.locator("input").nth(which).fill(str(index))
        return seen(box)

    a, b = Elements(one).data["frames"], Elements(two).data["frames"]
    assert len({*a, *b}) == 8
    assert seen(first) == ("A square, x 0.9", a[1], ["0.9"])
    assert move(first, 0, 0) == ("A square, x 0.1", a[0], ["0.1"])
    assert move(second, 1, 2) == ("A square, a 1, b 3", b[2], ["1", "3"])
    assert move(second, 0, 1) == ("A square, a 2, b 3", b[5], ["2", "3"])
    assert seen(again) == ("A square, x 0.9", a[1], ["0.9"])
    assert move(again, 0, 0) == ("A square, x 0.1", a[0], ["0.1"])
    page.close()


def test_buttons_text_and_divider(browser):
    values = {"side": ["left", "right"], "x": [0, 1]}
    notes = [f"<b>note {number}</b>" for number in range(4)]
    moving = slider(
        lambda side, x: gray(("r" in side) / 2 + x / 4), values, notes=notes
    )
    pictures = [plot._pixels(gray(value), 64) for value in (0.2, 0.8)]
    page = browser.new_page()
    page.set_content(
        moving + sliders.divider(pictures, ("before", "after"), "A square", 400)
    )
    box = page.locator("[data-explore]")
    assert box.locator("b").inner_text() == "note 0"
    box.get_by_label("right").check()
    box.locator("input[type=range]").fill("1")
    assert box.locator("b").inner_text() == "note 3"
    assert box.locator("img").get_attribute("alt") == "A square, side right, x 1"
    frames = Elements(moving).data["frames"]
    assert box.locator("img").get_attribute("src") == frames[3]

    stage = page.locator("[data-compare] > div")
    over = stage.locator("img").nth(1)
    page.locator("[data-compare] input").fill("20")
    assert over.evaluate("image => image.style.clipPath") == "inset(0px 0px 0px 20%)"
    place = stage.bounding_box()
    page.mouse.move(place["x"] + 0.75 * place["width"], place["y"] + 5)
    page.mouse.down()
    assert over.evaluate("image => image.style.clipPath") == "inset(0px 0px 0px 75%)"
    page.close()
