"""The leaderboard's pages in a browser: sorting, filtering, keyboard, contrast, 500 teams."""

import shutil

import pytest
from boards import HOSTILE, history_of, site_of
from submissions import write_answers, write_submissions

from course.leaderboard import __main__ as program

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
PHONE, LAPTOP = {"width": 375, "height": 812}, {"width": 1280, "height": 800}
NAMES = ["Zebra", "ant 10", "ant 9", "Ärger", *HOSTILE]
SHOWN = "[...document.querySelectorAll('#board tbody tr')].filter((row) => row.checkVisibility())"
CONTRASTS = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb(color).map(part);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || !element.checkVisibility() || element.closest(".sr, .skip")) continue;
    let behind = element;
    const clear = (e) => rgb(getComputedStyle(e).backgroundColor)[3] === 0;
    while (behind && clear(behind)) behind = behind.parentElement;
    const values = [element, behind || document.body].map((e, i) => {
      const style = getComputedStyle(e);
      return light(i ? style.backgroundColor : style.color);
    });
    const ratio = (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
    if (ratio < 4.5) found.push([element.className, element.textContent.slice(0, 30), ratio]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    site_of(folder, history_of(folder, NAMES))
    return folder / "site"


@pytest.fixture
def visit(browser):
    """Open a page; at the end, nothing may have been logged, asked for or popped up."""
    said, contexts = [], []

    def visit(path, viewport=LAPTOP, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: said.append(request.url) if said_of(request) else None)
        page.goto(path.as_uri())
        return page

    def said_of(request):
        return not request.url.startswith(("file:", "data:"))

    yield visit
    for context in contexts:
        context.close()
    assert said == []


def column(page, number):
    return page.evaluate(f"{SHOWN}.map((row) => row.cells[{number}].innerText.split('\\n')[0])")


def sorted_by(page):
    return page.evaluate(
        "[...document.querySelectorAll('th[aria-sort]:not([aria-sort=none])')]"
        ".map((th) => [th.innerText.trim().split(' ')[0], th.ariaSort])"
    )


def test_a_header_sorts_and_tells_so_and_the_ranks_follow_the_task(site, visit):
    page = visit(site / "index.html")
    figures = [float(text) for text in column(page, 2)]
    assert len(figures) == len(NAMES) and sorted_by(page) == [["Overall", "descending"]]
    header = page.locator("thead button", has_text="Paraphrase")
    header.click()
    assert sorted_by(page) == [["Paraphrase", "descending"]]
    ranks = [int(rank) for rank in column(page, 0)]
    assert ranks == sorted(ranks) and ranks[0] == 1
    header.click()
    assert sorted_by(page) == [["Paraphrase", "ascending"]]
    assert [int(rank) for rank in column(page, 0)] == ranks[::-1]
    assert page.locator(".chips [aria-pressed=true]").inner_text() == "Paraphrase"
    page.locator("thead button", has_text="Team").click()
    places = [column(page, 1).index(name) for name in ("ant 9", "ant 10", "Ärger", "Zebra")]
    assert sorted_by(page) == [["Team", "ascending"]] and places == sorted(places)


def test_the_filter_keeps_matching_teams_and_counts_them(site, visit):
    page = visit(site / "index.html")
    page.fill("#find", "ANT")
    assert sorted(column(page, 1)) == ["ant 10", "ant 9"]
    assert page.locator("#count").inner_text() == "2 teams"
    page.locator("thead button", has_text="Sonnets").click()
    assert sorted(column(page, 1)) == ["ant 10", "ant 9"]
    page.fill("#find", "")
    assert len(column(page, 1)) == len(NAMES)


def test_the_keyboard_does_it_all(site, visit):
    page = visit(site / "index.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "SST"
    page.keyboard.press("Enter")
    assert sorted_by(page) == [["SST", "descending"]]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for _ in range(7):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert sorted_by(page) == [["Team", "ascending"]]


@pytest.mark.parametrize("viewport", [PHONE, LAPTOP], ids=["phone", "laptop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_their_width_can_be_read_and_show_names_as_text(site, visit, scheme, viewport):
    for path in ("index.html", "sonnets.html", "teams/5.html"):
        page = visit(site / path, viewport, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"], path
        assert page.evaluate(CONTRASTS) == [], path
    page = visit(site / "index.html", viewport, scheme)
    assert "<script>alert(1)</script>" in column(page, 1)
    assert page.locator("thead th:visible").count() == (3 if viewport is PHONE else 10)
    page.evaluate("document.querySelectorAll('tbody tr')[3].scrollIntoView()")
    assert page.evaluate("document.querySelector('thead th').getBoundingClientRect().top") == 0


def test_500_submissions_are_scored_and_sorted(tmp_path, visit):
    write_submissions(tmp_path / "zips", 500)
    gold = write_answers(tmp_path / "gold", splits=["dev"])
    program.main([*map(str, [tmp_path / "zips", "--gold", gold, "--out", tmp_path / "site"])])
    assert (tmp_path / "site" / "index.html").stat().st_size < 600_000
    page = visit(tmp_path / "site" / "index.html", PHONE)
    before = column(page, 1)
    for button in page.locator(".chips button").all():
        button.click()
        assert len(set(column(page, 1))) == 500
    assert column(page, 1) != before
