"""Pages of the site that docs/ does not have: of the code, the notebooks and what docs/ link to.

mkdocs.yml names this file as a hook of MkDocs, which calls the functions ``on_...``.
"""

from __future__ import annotations

import ast
import io
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from posixpath import relpath
from typing import Any

import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?:\.\./)+[^)#\s]+")  # up, and perhaps out of docs/
FOREIGN = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages, and a page for each file of the repository that docs/ link to."""
    pages = {
        **_notebooks(),
        "tutorials/examples.md": _examples(),
        "reference/params.md": _params(),
        "reference/api.md": _api(),
        "reference/modules.md": MODULES,
        "reference/errors.md": ERRORS,
        "reference/command-line.md": _command_line(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    linked = {f"examples/{path.name}" for path in _example_files()}
    for page in DOCS.rglob("*.md"):
        for target in LINK.findall(page.read_text()):
            path = (page.parent / target).resolve()
            if path.is_file() and not path.is_relative_to(DOCS):
                linked.add(str(path.relative_to(ROOT)))
    for name in sorted(linked):
        text = f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n{_fenced(name)}"
        page_of = File.generated(
            config, f"source/{name}.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page_of)
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to the pages that stand for their files."""
    here = (DOCS / page.file.src_uri).parent

    def lead(match: re.Match[str]) -> str:
        path = (here / match[0]).resolve()
        if path.is_relative_to(DOCS) or not path.is_relative_to(ROOT) or not path.exists():
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        target = f"source/{name}.md"
        if name.startswith("notebooks"):
            target = f"tutorials/{path.stem if path.suffix else 'adult'}.md"
        return relpath(target, Path(page.file.src_uri).parent.as_posix())

    return LINK.sub(lead, markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Refuse a page that loads anything from elsewhere; write citations without their markup."""
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return re.sub(r"(?<=\[\d\])_|(?<=<p>)\.\. (?=\[\d\])", "", output)


MODULES = """# Modules

Public beside the names of `spark_fm` itself.

::: spark_fm.datasets

::: spark_fm.recordio

::: spark_fm.mlflow

::: spark_fm.serving.Predictor
"""

ERRORS = """# Errors

Each inherits from `SparkFMError` and from the built-in exception that a caller would expect.

::: spark_fm.errors
    options:
      show_root_heading: false
      show_root_toc_entry: false
"""


def _notebooks() -> dict[str, str | bytes]:
    """Return the page of each notebook, and its pictures."""
    pages: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.language_info = {"name": "python"}
        body, resources = MarkdownExporter().from_notebook_node(
            notebook, resources={"unique_key": path.stem}
        )
        pages[f"tutorials/{path.stem}.md"] = body
        pages |= {f"tutorials/{name}": picture for name, picture in resources["outputs"].items()}
    return pages


def _api() -> str:
    import spark_fm

    def section(name: str) -> str:
        is_other_name = name in ("FMClassifier", "FMRegressor")  # for FactorizationMachine
        return f"::: spark_fm.{name}\n" + "    options:\n      members: false\n" * is_other_name

    names = [name for name in spark_fm.__all__ if not name.startswith("_")]
    names.sort(key=lambda name: not name.startswith("FactorizationMachine"))
    head = "# Python\n\nThe names of `spark_fm`. [Params](params.md) have a page of their own."
    return "\n\n".join([head, *map(section, names)])


def _params() -> str:
    from spark_fm import FactorizationMachine
    from spark_fm.ml.params import PARAMS

    def table(*, basic: bool) -> str:
        rows = ["| Param | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
        for row in PARAMS:
            if row.is_basic == basic:
                default = "unset" if row.default is None else f"`{row.default!r}`"
                doc = getattr(FactorizationMachine, row.name).doc.replace("<", "&lt;")
                name = f'<code id="{row.name}">{row.name}</code>'
                rows.append(f"| {name} | {row.kind.__name__} | {default} | {doc} |")
        return "\n".join(rows)

    return (
        "# Params\n\nKeyword arguments of `FactorizationMachine`, each with a getter and a setter. "
        "On the command line `--set NAME=VALUE` takes each.\n\n"
        f"## Basic\n\n{table(basic=True)}\n\n"
        f"## Advanced\n\n{table(basic=False)}\n"
    )


def _command_line() -> str:
    from spark_fm.cli.main import COMMANDS, main

    os.environ.update(COLUMNS="88", NO_COLOR="1")
    parts = ["# Command line"]
    for command in ([], *([name] for name in COMMANDS)):
        with redirect_stdout(io.StringIO()) as text:
            main([*command, "--help-all" if command in (["train"], ["tune"]) else "--help"])
        title = f"## spark-fm {command[0]}\n\n" if command else ""
        parts.append(f"{title}```text\n{text.getvalue()}```")
    return "\n\n".join(parts)


def _example_files() -> list[Path]:
    return sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")


def _examples() -> str:
    rows = ["# Examples\n\nOne job in each file.\n\n| File | What it does |\n| --- | --- |"]
    for path in _example_files():
        what = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
        what = what.replace("\n", " ")
        rows.append(f"| [{path.name}](../source/examples/{path.name}.md) | {what} |")
    return "\n".join(rows)


def _fenced(name: str) -> str:
    text = (ROOT / name).read_text()
    return f"````{Path(name).suffix.removeprefix('.')}\n{text}\n````"
