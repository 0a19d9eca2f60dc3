"""Take bodies out of a source file; every other byte stays where it is.

Definitions are found by name in the syntax tree, and cut out of the text by their lines, so that
formatting and comments survive and the code needs no marks.
"""

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterable, Iterator

from course.handout.blanks import Blank
from engine.errors import InputError

WIDTH = 100  # columns


def blanked(source: str, blanks: Iterable[Blank]) -> str:
    """The source without these bodies and their helpers; all blanks are of this file."""
    lines = source.splitlines(keepends=True)
    edits = []
    for blank in blanks:
        body = statements(find(source, blank.name), blank.part)
        edits.append((_first_line(body[0]), body[-1].end_lineno, stand_in(blank, body[0])))
        for name in blank.helpers:
            helper = find(source, name)
            start = _first_line(helper)
            while start > 1 and not lines[start - 2].strip():
                start -= 1
            edits.append((start, helper.end_lineno, ""))
    for first, last, text in sorted(edits, reverse=True):
        lines[first - 1 : last] = [text]
    return "".join(lines)


def answers(source: str, blanks: Iterable[Blank]) -> Iterator[str]:
    """The text of each body, and of each helper, that `blanked` takes out."""
    lines = source.splitlines(keepends=True)
    for blank in blanks:
        taken = [statements(find(source, blank.name), blank.part)]
        taken += [[find(source, name)] for name in blank.helpers]
        for nodes in taken:
            yield "".join(lines[_first_line(nodes[0]) - 1 : nodes[-1].end_lineno])


def find(source: str, name: str) -> ast.stmt:
    """The definition of "function", "Class.method" or "CONSTANT"."""
    node = ast.parse(source)
    for part in name.split("."):
        inside = [child for child in node.body if part in _defined(child)]
        if not inside:
            raise InputError(f"{name}: no such definition: mend course/handout/blanks.py")
        node = inside[0]
    return node


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def statements(definition: ast.FunctionDef, part: tuple[str, ...] = ()) -> list[ast.stmt]:
    """The body of a function without its docstring; of it, those that mention a name of `part`."""
    body = definition.body[1:] if ast.get_docstring(definition) else definition.body
    if not part:
        return body
    mentions = [i for i, node in enumerate(body) if any(n in _words(node) for n in part)]
    if not mentions or mentions != list(range(mentions[0], mentions[-1] + 1)):
        raise InputError(
            f"{definition.name}: found no run of statements that mention {' or '.join(part)}: mend "
            f"course/handout/blanks.py"
        )
    return [body[i] for i in mentions]


def _words(node: ast.AST) -> set[str]:
    """The names, attributes and strings in a statement."""
    kinds = {ast.Name: "id", ast.Attribute: "attr", ast.Constant: "value"}
    return {getattr(n, kinds[type(n)]) for n in ast.walk(node) if type(n) in kinds}


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def stand_in(blank: Blank, statement: ast.stmt) -> str:
    """What stands where a body was: the hint, and an error that says whose turn it is."""
    indent = " " * statement.col_offset
    hint = textwrap.wrap(
        blank.hint, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
    message = f'"{blank.name}: handout.md, section {blank.section}"'
    error = [f"{indent}raise NotImplementedError({message})"]
    if len(error[0]) > WIDTH:
        error = [f"{indent}raise NotImplementedError(", f"{indent}    {message}", f"{indent})"]
    return "\n".join([*hint, *error, ""])


def code_lines(text: str) -> list[str]:
    """The lines of a text that have code on them, without comments and white space."""
    kept: dict[int, str] = {}
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(text)).readline):
        if token.type not in skipped:
            kept[token.start[0]] = kept.get(token.start[0], "") + "".join(token.string.split())
    return list(kept.values())
