"""The house: who may import what, how long a thing may be, and that the documents name files that
exist. What import-linter holds (pyproject.toml) is not repeated here."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("engine", "fem", "objectives", "scripts")
#: Lines, docstring included.
LONGEST_FUNCTION, LONGEST_FILE = 60, 450


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Name, file and syntax tree of every Python file of the product and its tests."""
    found = {}
    for top in (*PRODUCT, "tests"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path, ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> Iterator[tuple[str, str, ast.ImportFrom]]:
    """Every (module, name) that a file imports from this repository."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module.split(".")[0] in (*PRODUCT, "tests"):
                for alias in node.names:
                    yield node.module, alias.name, node


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_private_name_is_used_across_files():
    """Neither imported nor reached through the module; a module's own underscore (a family's
    `_stock`) is import-linter's matter."""
    wrong = []
    for name, (_, tree) in modules().items():
        bound = {}
        for module, what, node in imported(tree):
            if f"{module}.{what}" in modules():
                bound[what] = f"{module}.{what}"
            elif is_private(what):
                wrong.append(f"{name}:{node.lineno} imports {module}.{what}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in bound and is_private(node.attr):
                    wrong.append(f"{name}:{node.lineno} reaches {bound[node.value.id]}.{node.attr}")
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle():
    uses = {
        name: {
            full if (full := f"{module}.{what}") in modules() else module
            for module, what, _ in imported(tree)
        }
        - {name}
        for name, (_, tree) in modules().items()
    }
    assert not circles(uses)


def circles(uses: dict[str, set[str]]) -> list[str]:
    """What is left when files that import nothing that is left are taken away again and again."""
    left = {name: {n for n in needed if n in uses} for name, needed in uses.items()}
    while free := {name for name, needed in left.items() if not needed}:
        left = {name: needed - free for name, needed in left.items() if name not in free}
    # what only stands above a circle is not in it
    while tops := set(left) - {n for needed in left.values() for n in needed}:
        left = {name: needed for name, needed in left.items() if name not in tops}
    return sorted(left)


def test_the_search_for_circles_finds_one():
    chain = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circles(chain) == []
    assert circles(chain | {"c": {"b"}}) == ["b", "c"]


def test_only_commands_stand_at_the_root_of_scripts():
    """A command is started, never imported by the product."""
    commands = {p.stem for p in (ROOT / "scripts").glob("*.py")} - {"__init__"}
    for name in commands:
        text = (ROOT / "scripts" / f"{name}.py").read_text()
        assert '__name__ == "__main__"' in text, f"scripts/{name}.py cannot be started"
    wrong = [
        f"{name} imports scripts.{command}"
        for name, (path, tree) in modules().items()
        if path.relative_to(ROOT).parts[0] != "tests" and path.parent != ROOT / "scripts"
        for module, what, _ in imported(tree)
        for command in (module.removeprefix("scripts."), what if module == "scripts" else "")
        if command in commands and module.startswith("scripts")
    ]
    assert not wrong, wrong


def test_functions_end_on_the_screen_that_they_begin_on():
    long = [
        f"{path.relative_to(ROOT)}: {node.name}, {length} lines"
        for path, tree in modules().values()
        if path.relative_to(ROOT).parts[0] in PRODUCT
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not long, "\n".join(long)


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_files_are_about_one_thing():
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in tracked()
        if path.suffix in (".py", ".cc", ".h", ".js", ".j2") and ".min." not in path.name
        if path.exists() and (lines := path.read_text().count("\n")) > LONGEST_FILE
    ]
    assert not long, "\n".join(long)


DOCUMENTS = [
    "README.md",
    "docs/architecture.md",
    "docs/decisions.md",
    "docs/result_schema.md",
    "docs/validation.md",
    "docs/benchmarks.md",
    "docs/collection.md",
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_files_that_exist(document):
    text = (ROOT / document).read_text()
    tops = "|".join((*PRODUCT, "conf", "tests", "docs"))
    named = set(re.findall(rf"\b((?:{tops})/[\w/-]*\w(?:\.[a-z]+|/))", text))
    gone = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not gone, f"{document} names {', '.join(gone)}"


def test_nothing_is_pickled():
    """What is read from disk is data; a pickle is code."""
    wrong = [
        name
        for name, (path, tree) in modules().items()
        if path.relative_to(ROOT).parts[0] in PRODUCT
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(a.name in ("pickle", "dill") for a in node.names)
    ]
    assert not wrong, wrong
