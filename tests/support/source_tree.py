"""Reads the repository as text: its files, how long they are, which shapes they name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = ("operator", "runtime", "tests", "examples", "bench", "charts", "e2e")
PACKAGES = ("operator/graft_operator", "runtime/graft_runtime", "runtime/graft_protocol")

# x_TD, q_KGnD, cos_T1D: each letter names a dimension, a digit is its own size.
_SHAPED_NAME = re.compile(r"[a-z][a-z0-9_]*_(?P<dims>[A-Z][A-Za-z0-9]{0,5})")
# In a comment or in the module's docstring: up to the first line that is blank or code.
_LEGEND = re.compile(
    r"^# Shape legend:.*(?:\n#.*)*|^Shape legend:.*(?:\n\w.*)*",
    re.MULTILINE,
)


def python_files(root: Path = ROOT) -> Iterator[Path]:
    """Yield every Python file of the project, none of an environment or a cache."""
    for folder in CODE_FOLDERS:
        yield from sorted((root / folder).rglob("*.py"))


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of lines of each function, its docstring not counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.name, node.end_lineno - node.lineno + 1 - _docstring_lines(node)


def working_asserts(source: str) -> Iterator[int]:
    """Yield the line of each assert that does more than tell the type checker what is so.

    `python -O` leaves asserts out, so none of them may hold off anything.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and not _narrows(node.test):
            yield node.lineno


def _narrows(test: ast.expr) -> bool:
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id == "isinstance"
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name | ast.Attribute)
        and [type(one) for one in test.ops] == [ast.IsNot]
        and ast.unparse(test.comparators[0]) == "None"
    )


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    docstring = node.body[0]
    return (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1


def named_dimensions(source: str) -> set[str]:
    """Return the dimensions in the suffixes of variables and arguments: x_TD names T and D."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    suffixes = [match["dims"] for name in names if (match := _SHAPED_NAME.fullmatch(name))]
    return {letter for suffix in suffixes for letter in suffix if letter.isalpha()}


def explained_dimensions(source: str) -> set[str]:
    """Return the dimensions that the file's shape legends explain."""
    legends = " ".join(match.group() for match in _LEGEND.finditer(source))
    return set(re.findall(r"\b[A-Za-z]\b", legends))
