"""The documents say what the code says: settings that messages name, commands, links."""

import ast
import os
import pkgutil
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from longshot_jax import cli
from longshot_jax.config import RunConfig
from longshot_jax.config.declarations import declared
from longshot_jax.train import _MAY_CHANGE

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


# Commands.

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
MAKEFILE = (ROOT / "Makefile").read_text()
_START = re.compile(
    r"(?:(?:^|\s)(?:[A-Z_]+=\S*\s+)*)((?:\S*python3?\s+scripts/|longshot\s+(?=[a-z])|make\s+(?=[\w-]))\S.*)"
)


class Parsed(Exception):
    """Stands for what a command would do after its arguments were read."""


def commands(text: str) -> list[str]:
    """Commands of a Markdown text, in blocks and in spans of code, each on one line; what stands for anything is left out."""
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks.append("\n".join(re.findall(r"^(?: {4}|\t)(.*)", prose, re.MULTILINE)))
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    found = [match[1].partition(" #")[0].strip() for line in lines if (match := _START.match(line))]
    return [command for command in found if not re.search(r"\.\.\.|\b[A-Z]{3,}\b(?!=)|\[", command.replace("[1]", ""))]


def places() -> list[tuple[str, str]]:
    texts = [(path.name, path.read_text()) for path in DOCUMENTS]
    for path in sorted((ROOT / "configs").glob("*.py")):
        texts.append((path.name, ast.get_docstring(ast.parse(path.read_text())) or ""))
    return list(dict.fromkeys((name, command) for name, text in texts for command in commands(text)))


def test_the_search_for_commands_finds_them():
    text = "a `python scripts/plan.py --config a.py\n--devices 8`\n\n    make lint  # x\n\n```\nA=1 longshot train --config \\\n b\nmake ...\n```\n"
    assert sorted(commands(text)) == [
        "longshot train --config  b",
        "make lint",
        "python scripts/plan.py --config a.py --devices 8",
    ]
    assert {name for name, _ in places()} >= {"README.md", "training.md", "parallel.md", "performance.md", "tiny.py"}


@pytest.mark.parametrize(("name", "command"), places())
def test_every_command_can_be_given_as_it_stands(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Its options, its config file, and its settings are read by the parsers of the command, which then does nothing.

    The files that a document shows lie beside the folder `configs/`, as the document says.
    """
    shown = [path for path in DOCUMENTS if path.name == name]
    for document in shown:
        for file, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", document.read_text(), re.DOTALL):
            (tmp_path / file).write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = shlex.split(command)
    if words[0] == "make":
        check_make(words[1:])
        return
    script = f"scripts/{words[1]}.py" if words[0] == "longshot" else words[1]
    read_options, read_config = cli.OptionParser.parse_args, cli.parse_command

    def parse_args(parser, *given):
        read_options(parser, *given)
        raise Parsed

    def parse_command(*given):
        read_config(*given)
        raise Parsed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *words[2:]])
    monkeypatch.setattr(cli.OptionParser, "parse_args", parse_args)
    monkeypatch.setattr(cli, "parse_command", parse_command)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # commands set variables
    try:
        runpy.run_path(str(ROOT / script))["main"]()
    except SystemExit as ended:
        assert "--help" in words and not ended.code
    except Parsed:
        pass
    else:
        raise AssertionError("the command reads its arguments in another way")


def check_make(words: list[str]) -> None:
    """Each target has a rule, each variable a value in the Makefile."""
    for word in words:
        variable, equals, _ = word.partition("=")
        wanted = rf"^{re.escape(variable)} *[?:]?=" if equals else rf"^{re.escape(word)}:"
        assert re.search(wanted, MAKEFILE, re.MULTILINE), f"the Makefile has no {word}"


def test_the_settings_that_a_resumed_run_may_change_are_named():
    row = re.search(
        r"`was made with another config` \| a setting outside ([^;]*) differs",
        (ROOT / "docs/troubleshooting.md").read_text(),
    )
    assert row and tuple(re.findall(r"`(\w+)`", row[1])) == _MAY_CHANGE


@pytest.mark.parametrize("name", re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
def test_the_interface_in_python_exists_and_is_described(name: str):
    assert pkgutil.resolve_name(name).__doc__


# Links. `make docs` checks those between the documents, but not those of the README.


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a Markdown text, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path):
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = path.parent / file if file else path
        if not there.is_file() or (anchor and anchor not in anchors(there.read_text())):
            lost.append(target)
    assert not lost


_TAG = re.compile(r"`((?:text|curriculum|evaluation|stability|rollout|reward|ppo|temperature|final)/\w[\w/]*)`")


def test_the_tags_of_tensorboard_that_the_guides_name_are_those_of_metrics():
    known = [
        tag.replace("KIND", r"\w+").replace("N", r"\d+") for tag in _TAG.findall((ROOT / "docs/metrics.md").read_text())
    ]
    named = {
        tag for name in ("training", "troubleshooting") for tag in _TAG.findall((ROOT / f"docs/{name}.md").read_text())
    }
    assert len(named) > 12
    assert [tag for tag in sorted(named) if not any(re.fullmatch(pattern, tag) for pattern in known)] == []
