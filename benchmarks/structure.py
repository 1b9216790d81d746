"""What the package is made of: files, lines, functions called once, modules imported once, circles.

``python -m benchmarks.structure [CHECKOUT ...]`` prints a column for each checkout; default: this
one. Imports under TYPE_CHECKING and inside functions count. Calls are counted by name: a method
counts as called once where its name occurs once in the package, its definition apart.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sources(root: Path) -> dict[str, str]:
    """Return the text of each module of the package by dotted name, generated ones left out."""
    package = root / "spark_fm"
    files = [p for p in sorted(package.rglob("*.py")) if not p.stem.endswith("_pb2")]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): (
            path.read_text(encoding="utf-8")
        )
        for path in files
    }


def imports(modules: dict[str, str]) -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, wherever it does."""
    found: dict[str, set[str]] = {}
    for name, text in modules.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    targets.add(full if full in modules else node.module)
        found[name] = (targets & modules.keys()) - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            component = []
            while not component or component[-1] != name:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def code_lines(text: str) -> int:
    """Return the lines that hold code: neither blank, nor comment, nor docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
                   tokenize.DEDENT, tokenize.ENDMARKER)  # fmt: skip
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def measure(root: Path) -> dict[str, int]:
    """Return the figures of a checkout."""
    modules = sources(root)
    names = Counter(word for text in modules.values() for word in re.findall(r"\w+", text))
    defined = Counter(
        node.name
        for text in modules.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__")
    )
    private = [name for name in defined if name.startswith("_")]
    graph = imports(modules)
    importers = Counter(target for targets in graph.values() for target in targets)
    found = circles(graph)
    return {
        "files": len(modules),
        "lines": sum(text.count("\n") for text in modules.values()),
        "lines of code": sum(map(code_lines, modules.values())),
        "functions": sum(defined.values()),
        "private functions with one call site": sum(
            defined[name] == 1 and names[name] == 2 for name in private
        ),
        "modules with one importer": sum(count == 1 for count in importers.values()),
        "import circles": len(found),
        "modules in circles": sum(map(len, found)),
    }


def main() -> None:
    """Print the figures."""
    roots = [Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT]
    columns = [measure(root) for root in roots]
    print(" " * 40 + "".join(f"{root.name[-16:]:>18}" for root in roots))
    for name in columns[0]:
        print(f"{name:40}" + "".join(f"{column[name]:>18,}" for column in columns))
    for root in roots:
        for circle in circles(imports(sources(root))):
            print(f"circle in {root.name}: {', '.join(circle)}")


if __name__ == "__main__":
    main()
