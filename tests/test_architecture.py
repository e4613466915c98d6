"""The structure of the package: folders import downward, files are short, and docs/architecture.md tells the tree."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "longshot_jax"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
MAX_LINES = 400
MAX_TOP_LEVEL = 7

# Each imports only from those before it. A name is a folder or a module at the top level.
ORDER = (
    "errors",
    "files",
    "tables",
    "distributed",
    "config",
    "cli",
    "data",
    "model",
    "thoughts",
    "checkpoints",
    "evaluation",
    "training",
    "curriculum",
    "ppo",
    "train",
    "longshot",
    "planning",
    "benchmarks",
    "experiments",
)
# Imports against the order: none.
ALLOWED: set[tuple[str, str]] = set()


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, at the top or inside functions, as dotted names below it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "longshot_jax":
            base = (node.module or "").split(".")[1:]
            for alias in node.names:
                whole = PACKAGE.joinpath(*base, alias.name)
                is_module = whole.with_suffix(".py").exists() or whole.is_dir()
                found.add(".".join([*base, alias.name] if is_module else base))
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("longshot_jax.")}
    return found - {""}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_order_names_every_folder_and_module():
    top = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert top | folders == set(ORDER)
    assert len(top) <= MAX_TOP_LEVEL


def test_no_import_runs_upward():
    upward = set()
    for path in [*MODULES, *PACKAGE.rglob("*/__init__.py")]:
        here = name_of(path)
        for other in imports_of(path):
            if ORDER.index(other.split(".")[0]) > ORDER.index(here.split(".")[0]):
                upward.add((here, other))
    assert upward == ALLOWED


def test_no_circle_of_imports():
    graph = {name_of(path): {name for name in imports_of(path) if name != name_of(path)} for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join([*trail, name])}"
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_mathematics_holds_no_weights():
    """Files of pure mathematics import neither modules with weights nor the rest of the package above them."""
    assert imports_of(PACKAGE / "ppo" / "objective.py") == set()
    assert imports_of(PACKAGE / "thoughts" / "densities.py") == set()
    assert imports_of(PACKAGE / "model" / "rope.py") == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_one_subject_a_file(path: Path):
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    assert len(path.read_text().splitlines()) <= MAX_LINES, "one subject a file: this one holds more"


def rows_of_table(head: str) -> list[list[str]]:
    """Cells of the Markdown table with this first head cell in docs/architecture.md."""
    lines = ARCHITECTURE.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows


def test_the_architecture_names_every_file_in_its_folder_and_no_other():
    named = {row[0].strip("`/"): set(re.findall(r"`(\w+)`", row[2])) for row in rows_of_table("folder")}
    there: dict[str, set[str]] = {}
    for path in [*MODULES, *(ROOT / "scripts").glob("*.py")]:
        there.setdefault(path.parent.relative_to(ROOT).as_posix(), set()).add(path.stem)
    assert {folder: sorted(files) for folder, files in named.items()} == {
        folder: sorted(files) for folder, files in there.items()
    }


def test_the_table_of_changes_names_files_and_names_that_exist():
    """`| to change | open |`: each file is given by its path, with the names to look for behind it."""
    rows = rows_of_table("to change")
    assert len(rows) >= 12
    for change, places in rows:
        found = re.findall(r"`([\w/]+\.py)`(?: \(((?:`[\w.]+`(?:, )?)+)\))?", places)
        assert 1 <= len(found) <= 3, f"{change}: a change touches at most three files"
        for file, names in found:
            path = ROOT / file if (ROOT / file).exists() else PACKAGE / file
            assert path.is_file(), f"{change}: {file} does not exist"
            for name in re.findall(r"`([\w.]+)`", names):
                assert re.search(rf"\b{re.escape(name.split('.')[-1])}\b", path.read_text()), f"{file} has no {name}"
