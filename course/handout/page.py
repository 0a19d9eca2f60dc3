"""Turn handout.md into one page that needs no other file: `python -m course.handout.page OUT.html`.

Print it, or let a browser make the PDF: `chromium --headless --print-to-pdf OUT.html`.
"""

from engine.errors import InputError, Parser, command, optional

# isort: split

import base64
import html
import re
from itertools import pairwise
from pathlib import Path

from course.handout.formulas import formula
from engine.files import ROOT, atomic_write

SOURCE = ROOT / "course" / "handout.md"
STYLE = Path(__file__).with_name("page.css")
MATH = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$", re.DOTALL)


def page(source: Path) -> str:
    """The whole HTML of a Markdown file; pictures and formulas are inside."""
    tokens, render = parsed(source)
    top, _, text = render(tokens).partition("</h1>\n")
    contents = "\n".join(
        f"<li class='level-{level}'><a href='#{anchor}'>{html.escape(words)}</a></li>"
        for level, anchor, words in headings(tokens)
        if level > 1
    )
    [title] = [words for level, _, words in headings(tokens) if level == 1]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}"
        f"</style>\n</head>\n<body>\n<main>\n{top}</h1>\n"
        f"<nav aria-label='Contents'>\n<ol>\n{contents}\n</ol>\n</nav>\n"
        f"{text}</main>\n</body>\n</html>\n"
    )


def parsed(source: Path):
    """(tokens, render): markdown-it's tokens of a file, and what makes HTML of them."""
    library = optional("markdown_it", "course.handout.page", "markdown-it-py")
    reader = library.MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.inline.ruler.before("escape", "math", _math)
    reader.add_render_rule("math", lambda self, tokens, i, *_: _drawn(tokens[i]))
    reader.add_render_rule("image", lambda self, tokens, i, *_: _image(tokens[i], source))
    reader.add_render_rule("table_open", lambda *_: "<div class='wide'><table>\n")
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = reader.parse(source.read_text(encoding="utf-8"))
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor_of(inline.content))
    return tokens, lambda tokens: reader.renderer.render(tokens, reader.options, {})


def headings(tokens) -> list[tuple[int, str, str]]:
    """Level, anchor and words of every heading."""
    pairs = [
        (token, tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open"
    ]
    return [(int(token.tag[1]), token.attrGet("id"), inline.content) for token, inline in pairs]


def anchor_of(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _math(state, silent: bool) -> bool:
    """markdown-it's rule for $…$ and $$…$$."""
    match = MATH.match(state.src, state.pos)
    if not match:
        return False
    if not silent:
        token = state.push("math", "math", 0)
        token.content = (match[1] or match[2]).strip()
        token.block = match[1] is not None
    state.pos = match.end()
    return True


def _drawn(token) -> str:
    try:
        return formula(token.content, block=token.block)
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{SOURCE}: ${token.content}$: {reason}: write it otherwise") from error


def _image(token, source: Path) -> str:
    """A figure; the picture's text is its caption, too."""
    path = source.parent / token.attrGet("src")
    if not path.is_file():
        raise InputError(f"{path}: no such figure: python -m course.handout.figures")
    data = base64.b64encode(path.read_bytes()).decode()
    words = html.escape(token.content, quote=True)
    return f"<img src='data:image/svg+xml;base64,{data}' alt='{words}'>"


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, help="the HTML file")
    args = parser.parse_args(argv)
    with atomic_write(args.out) as file:
        file.write(page(SOURCE))
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
