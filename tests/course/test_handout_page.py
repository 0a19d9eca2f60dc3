"""The handout as one page: its figures, its formulas, on every screen."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from course.handout import figures, page
from engine.files import ROOT

HANDOUT = page.SOURCE.read_text(encoding="utf-8")


def test_the_figures_are_those_that_the_text_shows():
    shown = re.findall(r"!\[[^\]]{40,}\]\(figures/(\w+)\.svg\)", HANDOUT)
    assert sorted(shown) == sorted(figures.FIGURES)
    assert all((figures.FOLDER / f"{name}.svg").is_file() for name in shown)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_is_drawn_the_same_every_time(name):
    pytest.importorskip("matplotlib")
    draw = figures.FIGURES[name]
    drawn = draw().svg()
    assert drawn == draw().svg()
    assert "var(--ink)" in drawn and "prefers-color-scheme: dark" in drawn
    if f"matplotlib=={version('matplotlib')}\n" in (ROOT / "requirements.txt").read_text("utf-8"):
        kept = (figures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn == kept, "python -m course.handout.figures"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    pytest.importorskip("markdown_it")
    path = tmp_path_factory.mktemp("html") / "handout.html"
    page.main([str(path)])
    return path


def test_the_page_needs_no_other_file(html):
    text = html.read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=['\"](?!data:|#)[^'\"]*", text) == []
    assert "@import" not in text and "url(" not in text and "<script" not in text


def test_the_page_is_the_same_every_time(html, tmp_path):
    page.main([str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_bytes() == html.read_bytes()


def test_every_formula_is_drawn_and_can_be_read_aloud(html):
    text, count = html.read_text(encoding="utf-8"), len(page.MATH.findall(HANDOUT))
    assert count > 50 and text.count("<svg class='formula") == count
    assert r"aria-label='d = h\,k'" in text
    assert "$" not in re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.DOTALL)


def test_the_contents_lead_to_every_section(html):
    text = html.read_text(encoding="utf-8")
    links = re.findall(r"href='#([\w-]+)'", text)
    anchors = re.findall(r"<h[23] id=\"([\w-]+)\"", text)
    assert links == anchors and len(links) > 12


def test_a_formula_that_cannot_be_drawn_is_named(tmp_path, refused, monkeypatch):
    pytest.importorskip("markdown_it")
    source = tmp_path / "wrong.md"
    source.write_text("# One\n\n$\\nosuch{x}$\n", encoding="utf-8")
    monkeypatch.setattr(page, "SOURCE", source)
    with refused(r"$\nosuch{x}$"):
        page.main([str(tmp_path / "out.html")])
    assert not (tmp_path / "out.html").exists()


def test_the_library_that_makes_the_page_is_named_if_it_is_missing(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    with refused("pip install markdown-it-py"):
        page.main([str(tmp_path / "out.html")])


@pytest.mark.slow
def test_the_page_can_be_read_on_any_screen(html):
    """No sideways scrolling of the page, and text that stands out from its ground."""
    pytest.importorskip("playwright")
    program = "import sys; from playwright.sync_api import sync_playwright as p\n" + LOOK
    done = subprocess.run(
        [sys.executable, "-c", program, html.as_uri()], capture_output=True, text=True
    )
    if "Executable doesn't exist" in done.stderr or "not found" in done.stderr:
        pytest.skip("no Chromium is here")
    assert done.returncode == 0, done.stderr


LOOK = """
import shutil
with p() as play:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
    for width in (360, 1366):
        for scheme in ("light", "dark"):
            tab = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            ).new_page()
            tab.goto(sys.argv[1])
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            text, paper = tab.evaluate(
                "[getComputedStyle(document.body).color, "
                "getComputedStyle(document.body).backgroundColor]"
            )
            lights = [sum(map(int, c[4:-1].split(","))) / 3 for c in (text, paper)]
            assert abs(lights[0] - lights[1]) > 180, (text, paper)
            assert (lights[1] < 128) == (scheme == "dark")
"""
