"""The documents say what the code says: settings that messages name, commands, links."""

import ast
import re
from pathlib import Path

import pytest

from longshot_jax.config import RunConfig
from longshot_jax.config.declarations import declared

ROOT = Path(__file__).parents[1]
SETTINGS = set(declared(RunConfig))
GROUPS = {key.rpartition(".")[0] for key in SETTINGS} - {""}
_HOLE = "\0"  # where an f-string has a value
_KEY = re.compile(rf"\bconfig((?:\.(?:\w+|{_HOLE}))+)")


def literals(path: Path) -> list[str]:
    """Strings of a source file that are not docstrings; f-strings with a hole for each value."""
    found, tree = [], ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(p.value) if isinstance(p, ast.Constant) else _HOLE for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            found.append(node.value)
    return found


def named_settings(text: str) -> set[str]:
    """Settings and groups that a literal names as `config.x`; a hole before the last part stands for any name."""
    found = set()
    for match in _KEY.finditer(text):
        key = match[1].removeprefix(".")
        if key.endswith(_HOLE):  # the names are in other literals
            key = key.removesuffix(_HOLE).removesuffix(".")
        pattern = re.compile(re.escape(key).replace(_HOLE, r"\w+"))
        found |= {known for known in SETTINGS | GROUPS if pattern.fullmatch(known)}
    return found


def test_every_setting_that_a_message_names_is_in_the_table_of_troubles_and_no_other_is():
    named = {
        key for path in (ROOT / "longshot_jax").rglob("*.py") for text in literals(path) for key in named_settings(text)
    }
    assert len(named) > 80
    _, _, table = (ROOT / "docs/troubleshooting.md").read_text().partition("\n## Settings that messages name\n")
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    told = {key for row in rows for key in re.findall(r"`config\.([\w.]+)`", row)}
    assert sorted(named - told) == []
    assert sorted(told - SETTINGS - GROUPS) == [], "these are no settings"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("set config.ppo.clip.", {"ppo.clip"}),
        (f"config.{_HOLE}.answer_length is 3", {"data.answer_length", "ppo.answer_length"}),
        (f"config.mesh.{_HOLE} does not divide", {"mesh"}),
        ("put config.json there", set()),
    ],
)
def test_the_search_for_settings_finds_them(text: str, named: set[str]):
    assert named_settings(text) == named
