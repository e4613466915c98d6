"""The command line: settings, the config file, help, and what each mistake is called."""

import argparse
import re
import sys
import typing
from pathlib import Path

import pytest
from commands import ROOT, TINY

from longshot_jax.cli import command_parser, load_config, parse_command, settings_help, whole_number
from longshot_jax.config import RunConfig
from longshot_jax.config.declarations import declared, declared_groups
from longshot_jax.config.parse import RENAMED
from longshot_jax.errors import UserError

SETTINGS = declared(RunConfig)
HEAD = "from longshot_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"


def parsed(*arguments: str, config: str | Path = TINY) -> tuple[RunConfig, argparse.Namespace]:
    """Settings and own options of a command with the options --workdir and --count."""
    parser = command_parser("What it does.")
    parser.add_argument("--workdir")
    parser.add_argument("--count", type=whole_number(1))
    run, file, options = parse_command(parser, ["--config", str(config), *arguments])
    assert file == Path(config)
    return run, options


def refusal(*arguments: str, config: str | Path = TINY) -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(UserError) as error:
        parsed(*arguments, config=config)
    said = str(error.value)
    assert "\n" not in said and said.endswith((".", "?"))
    return said


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--config.thoughts.stop_bias", "-2.5"], "thoughts.stop_bias", -2.5),
        (["--config.thoughts.stop_bias=-2.5"], "thoughts.stop_bias", -2.5),
        (["--config.ppo.thought_std[1]=0.3"], "ppo.thought_std", (0.2, 0.3)),
        (["--config.ppo.thought_std=(0.4,0.3)", "--config.ppo.thought_std[0]", "1"], "ppo.thought_std", (1.0, 0.3)),
        (["--config.ppo.thought_std=0.3,0.1"], "ppo.thought_std", (0.3, 0.1)),
        (["--config.phases=text,ppo"], "phases", ("text", "ppo")),
        (["--config.phases", "('ppo',)"], "phases", ("ppo",)),
        (["--config.phases=(text,ppo)"], "phases", ("text", "ppo")),
        (["--config.phases", "[ppo]"], "phases", ("ppo",)),
        (["--config.phases='text,ppo'"], "phases", ("text", "ppo")),
        (["--config.phases[1]='ppo'", "--config.phases[0]", "text"], "phases", ("text", "ppo")),
        (["--config.thoughts.stop_bias", "-1e-3"], "thoughts.stop_bias", -1e-3),
        (["--config.data.operations=(3)"], "data.operations", (3,)),
        (["--config.phases=ppo"], "phases", ("ppo",)),
        (["--config.ppo.target_thoughts="], "ppo.target_thoughts", ()),
        (["--config.data.operations=[1, 3]"], "data.operations", (1, 3)),
        (["--config.model.remat"], "model.remat", True),
        (["--config.model.remat=false"], "model.remat", False),
        (["--config.model.tie_word_embeddings", "False"], "model.tie_word_embeddings", False),
        (["--config.data.instruction=give x=1"], "data.instruction", "give x=1"),
        (["--config.data.train=12"], "data.train", "12"),
        (["--config.seed=3", "--config.seed=4"], "seed", 4),
    ],
)
def test_a_setting_of_the_command_line(arguments, key, value):
    run, options = parsed(*arguments, "--workdir", "here", "--config.ppo.iterations=7")
    assert options.workdir == "here" and run.ppo.iterations == 7, "what stands beside it is read too"
    found = run
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "configs/multi.py"], f"--config is given 2 times ({TINY}, configs/multi.py): give one config file."),
        ([f"--config={TINY}"], f"--config is given 2 times ({TINY}, {TINY}): give one config file."),
        (["--config.ppo.iterations"], "--config.ppo.iterations has no value: give it as --config.ppo.iterations=value."),
        (["--config.ppo.iterations", "--config.seed", "3"], "--config.ppo.iterations has no value"),
        (["--config.ppo.thought_std[2]=0.3"], "--config.ppo.thought_std[2] names no item of config.ppo.thought_std, which is (0.2, 0.2)"),
        (["--config.ppo.thought_std[-1]=0.3"], "names no item of config.ppo.thought_std"),
        (["--config.seed[0]=3"], "--config.seed[0] names no item of config.seed"),
        (["--config.ppo.thought_std[0]=-1"], "config.ppo.thought_std is (-1.0, 0.2): each must be at least 0."),
        (["--config.ppo.thought_std[" + "9" * 5000 + "]=0.3"], "names no item of config.ppo.thought_std, which is (0.2, 0.2)"),
        (["--config.data.train[0]=x"], "--config.data.train[0] names no item of config.data.train"),
        (["--config.model.remat=yes"], "config.model.remat is 'yes': it must be of type bool."),
        (["--config.ppo.rewards.natural_stop=False"], "config.ppo.rewards.natural_stop is 'False': it must be of type float."),
        (["--config.ppo.thought_std=0.3"], "config.ppo.thought_std is (0.3,): it must hold 2 values."),
        (["--config.ppo.thought_std=(0.3,"], "config.ppo.thought_std is '(0.3,': it must be a tuple"),
        (["--config.phases="], "config.phases is empty"),
        (["--config.seed=__import__('os')"], "config.seed is \"__import__('os')\": it must be of type int."),
        (["--config.ppo.max_thoughts=" + "(" * 300 + "3" + ")" * 300], "config.ppo.max_thoughts is '(((("),
        (["--config.ppo.optimiser.learning_rate=1"], "did you mean config.ppo.optimizer.learning_rate?"),
        (["--config.curriculum.optimzer.schedule=1"], "did you mean config.curriculum.optimizer.schedule?"),
        (["--config..seed=3"], "config..seed is not a setting: did you mean config.seed?"),
        (["--count=1", "--counts=2"], "--counts is not an option: did you mean --count?"),
        (["--zzz"], "--zzz is not an option: there are --config, --workdir, --count."),
    ],
)  # fmt: skip
def test_refusals_name_the_option(arguments, sentence):
    assert sentence in refusal(*arguments)


NUMBERS = [key for key, setting in SETTINGS.items() if setting.bound is not None]


@pytest.mark.parametrize("text", ["-1", "-1e-3"])
def test_a_negative_number_may_be_a_word_of_its_own(text):
    for key in NUMBERS:
        alone, joined = (_outcome(key, words) for words in ([f"--config.{key}", text], [f"--config.{key}={text}"]))
        assert alone == joined
        assert isinstance(alone, RunConfig) or key.rpartition(".")[2] in alone, alone


def _outcome(key: str, words: list[str]) -> RunConfig | str:
    """The settings, or the sentence that refuses them."""
    try:
        return parsed(*words, "--workdir", "here")[0]
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("key", [key for key, setting in SETTINGS.items() if typing.get_origin(setting.kind) is tuple])
def test_every_tuple_is_read_in_each_way_of_writing_it(key):
    items = typing.get_args(SETTINGS[key].kind)
    first = typing.get_args(items[0])[0] if typing.get_origin(items[0]) is typing.Literal else items[0](1)
    many = (first,) if items[-1] is Ellipsis else (first,) * len(items)
    plain = ",".join(map(str, many))
    quoted = ",".join(f"'{item}'" for item in many)
    ways = [
        plain,
        f"({plain})",
        f"[{plain}]",
        f"'{plain}'",
        f'"{plain}"',
        quoted,
        f"({quoted},)",
        f" {plain} ",
        str(many),
    ]
    # The config under test may refuse the value; then it refuses it in every way of writing.
    outcomes = [_outcome(key, [f"--config.{key}={way}"]) for way in ways]
    assert all(outcome == outcomes[0] for outcome in outcomes), outcomes
    one = _outcome(
        key, [f"--config.{key}={plain}", f"--config.{key}[0]={first}", f"--config.{key}[{len(many) - 1}]", str(first)]
    )
    assert one == outcomes[0]


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize("key", ["seed", "ppo.iterations", "ppo.gamma", "thoughts.stop_bias", "ppo.rewards.correct"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_of_hundreds_of_digits_is_refused_in_a_line(key, digits, sign):
    said = refusal(f"--config.{key}={sign}{'9' * digits}")
    assert said.startswith(f"config.{key} is ") and "it must be " in said and len(said) < 250
    pair = refusal(f"--config.ppo.thought_std=(0.1, {sign}{'9' * digits})")
    assert pair.startswith("config.ppo.thought_std is ") and len(pair) < 250


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
@pytest.mark.parametrize("form", ["--config.{}=1", "--config.{}[0]=1"])
def test_an_old_key_is_answered_with_the_new_one(old, new, form):
    said = refusal(form.format(old))
    if new is None:
        assert said.startswith(f"config.{old} is not a setting")
    else:
        assert said == f"config.{old} has a new name: config.{new}."


def test_own_options_of_a_command():
    assert parsed("--count", "3")[1].count == 3 and parsed()[1].count is None
    for text in ("0", "-1", "many", "1.5", "1e3", "９", "9" * 12, str(2**31)):
        assert (
            refusal(f"--count={text}") == f"--count: {text!r} is not a whole number from 1 to 2147483647: see --help."
        )
    assert refusal("--count") == "--count: expected one argument: see --help."
    read = whole_number(0, "own", "steps")
    assert read("own") == "own" and read("0") == 0 and read(str(2**31 - 1)) == 2**31 - 1
    with pytest.raises(
        argparse.ArgumentTypeError, match="'often' is not one of own, steps, a whole number from 0 to 2147483647"
    ):
        read("often")


def test_a_config_file_is_one_of_the_users(tmp_path):
    assert "no config file was given" in _refused_without_file()
    assert refusal(config=tmp_path / "none.py").startswith(f"there is no config file {tmp_path}/none.py")
    assert refusal(config=tmp_path).startswith(f"there is no config file {tmp_path}")


def _refused_without_file() -> str:
    with pytest.raises(UserError) as error:
        parse_command(command_parser(None), [])
    return str(error.value)


def test_a_config_file_extends_another_beside_it_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "base.py").write_text(HEAD + "    config.seed = 7\n    return config\n")
    derived = tmp_path / "derived.py"
    derived.write_text(
        "from longshot_jax.config import extend\n\n\ndef get_config():\n    config = extend('base.py')\n"
        "    config.ppo.iterations = 3\n    return config\n"
    )
    monkeypatch.chdir("/")
    config = load_config(derived)
    assert (config.seed, config.ppo.iterations) == (7, 3)
    (tmp_path / "base.py").unlink()
    assert (
        refusal(config=derived)
        == f"{derived} extends base.py, and there is no config file {tmp_path}/base.py: give a path that is relative to "
        "that folder, or one of configs/."
    )


def test_a_config_file_in_any_folder_extends_one_of_the_project(tmp_path, monkeypatch):
    """As the examples of docs/own.md do; a file beside it of the same name comes first."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from longshot_jax.config import extend\n\n\ndef get_config():\n    return extend('configs/tiny.py')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_config(mine).model.hidden_size == 64
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text(HEAD + "    config.seed = 7\n    return config\n")
    assert load_config(mine).seed == 7


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD + "    raise ValueError('of mine.\\nMore')\n", "mine.py, line 6 raises ValueError (of mine): fix it."),
        (HEAD + "    config.update(seed=helper())\n\n\ndef helper():\n    return 1 / 0\n", "mine.py, line 10 raises ZeroDivisionError"),
        ("\n\nimport nothing_of_this_name\n", "mine.py, line 3 raises ModuleNotFoundError"),
        ("x = 1\n\ndef get_config(:\n", "(mine.py, line 3)"),
        (HEAD + "    config.seed = 'many'\n    return config\n", "mine.py, line 6 raises TypeError"),
        (HEAD + "    return config.ppo.max_steps\n", "mine.py, line 6 raises AttributeError (\"'max_steps'\"); its new name is config.ppo.max_thoughts"),
        ("x = 1\n", "mine.py raises AttributeError"),
        ("def get_config():\n    return {'seed': 1}\n", "mine.py returns a dict: start from default_config()."),
    ],
)  # fmt: skip
def test_a_broken_config_file_is_named_with_its_line(tmp_path, monkeypatch, text, sentence, relative):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    file = Path("mine.py") if relative else tmp_path / "mine.py"
    assert sentence in refusal(config=file)
    with pytest.raises(UserError, match=re.escape(str(file))):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("config.ppo.noise = (0.1, 0.1)", "config.ppo.noise has a new name: config.ppo.thought_std."),
        ("config.stages = ('ppo',)", "config.stages has a new name: config.phases."),
        ("config.update({'ppo': {'max_steps': 3}})", "config.ppo.max_steps has a new name: config.ppo.max_thoughts."),
        ("config.ppo.iteration = 3", "config.ppo.iteration is not a setting: did you mean config.ppo.iterations?"),
    ],
)
def test_a_config_file_that_sets_what_is_not_a_setting(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(f"{HEAD}    {text}\n    return config\n")
    assert refusal(config=tmp_path / "mine.py") == sentence
    assert refusal("--config.seed=3", config=tmp_path / "mine.py") == sentence


def test_a_config_file_may_define_dataclasses_and_return_a_frozen_config(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n\nfrom dataclasses import dataclass\n\nimport ml_collections\n\n"
        + HEAD.replace("    config = default_config()\n", "")
        + "    return ml_collections.FrozenConfigDict(default_config())\n\n\n@dataclass\nclass Mine:\n    x: float = 0.1\n"
    )
    before = set(sys.modules)
    assert parsed("--config.seed=3", config=file)[0].seed == 3
    assert not [name for name in set(sys.modules) - before if "mine" in name]


def test_what_is_no_python_file_is_no_config_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "config.json is not a Python file: give a config file" in refusal(config=tmp_path / "config.json")


def test_bytes_that_are_no_utf8_are_refused():
    assert refusal("--config.data.instruction=r\udce9ponse").startswith("config.data.instruction is 'r\\udce9ponse'")
    assert parsed("--config.data.instruction=réponse")[0].data.instruction == "réponse"


def test_a_config_file_without_a_group_has_no_setting_of_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 5})\n")
    assert parsed(config=file)[0] == RunConfig(seed=5)
    assert parsed("--config.markers=answer", config=file)[0] == RunConfig(seed=5, markers="answer")
    for setting in ("thought_std=(0.1,0.1)", "thought_std[0]=0.1"):
        said = refusal(f"--config.ppo.{setting}", config=file)
        assert said == "the config file has no group config.ppo: start from default_config()."


def shown_by(capsys, *arguments: str) -> str:
    """What a command with these arguments prints before it ends with code 0."""
    with pytest.raises(SystemExit) as ended:
        parse_command(command_parser("What it does."), arguments)
    assert not ended.value.code
    return capsys.readouterr().out


def test_help_names_every_setting_with_its_default_and_meaning(capsys):
    shown = shown_by(capsys, "--help")
    assert shown.startswith("What it does.\n")
    flat = " ".join(shown.split())
    for key, setting in SETTINGS.items():
        start = f"--config.{key}={setting.default!r} ({setting.allowed})"
        assert f"{start} {setting.meaning}" in flat, key
    assert shown.count("--config.") == len(SETTINGS)
    assert max(map(len, shown.splitlines())) <= 160
    assert shown_by(capsys, "-h") == shown
    for arguments in (["--config", "none.py", "--help"], ["--help", "--config", "none.py"]):
        assert shown_by(capsys, *arguments).startswith(
            shown + "\nThese are the defaults: there is no config file none.py"
        )


def test_help_shows_the_values_of_the_config_file(capsys):
    """Those of the files that it extends and of overrides too, with the default where they differ."""
    command = ("--config", str(ROOT / "configs" / "multi.py"), "--config.ppo.questions=8")
    for arguments in ((*command, "--help"), ("-h", *command)):
        shown = shown_by(capsys, *arguments)
        assert "* --config.ppo.questions=8   (whole number, at least 1; default 32)" in shown
        assert "* --config.ppo.gradient='score'" not in shown and "  --config.ppo.gradient='score'   (one of" in shown
        assert "* --config.thoughts.feedback='vocabulary'   (one of" in shown  # of the file that single.py extends
        assert shown.count("--config.") == len(SETTINGS) + shown.partition("\n")[0].count("--config.")
        assert shown.endswith("* differs from the default.\n")
    group = shown_by(capsys, *command, "--help", "ppo")
    assert "--config.ppo.questions=8 " in group and "--config.thoughts" not in group


@pytest.mark.parametrize("group", [name for name in declared_groups(RunConfig) if name])
def test_help_of_one_group(capsys, group):
    shown = shown_by(capsys, "--help", group)
    found = re.findall(r"^  --config\.([\w.]+)=", shown, re.MULTILINE)
    assert found and set(found) == {key for key in SETTINGS if key.startswith(group + ".")}
    assert shown_by(capsys, "--help", f"config.{group}") == shown
    assert settings_help(group) in shown


def test_help_of_the_settings_in_no_group(capsys):
    shown = shown_by(capsys, "--help", "run")
    found = re.findall(r"^  --config\.([\w.]+)=", shown, re.MULTILINE)
    assert found == [key for key in SETTINGS if "." not in key]


def test_help_of_an_unknown_group_names_those_there_are():
    for name in ("zzz", "ppo.iterations", "pp"):
        with pytest.raises(
            UserError, match=f"--help {name}: the groups of settings are run, model, model.lora, data, "
        ):
            parse_command(command_parser(None), ["--help", name])
    with pytest.raises(UserError):
        settings_help("zzz")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_every_config_file_is_read_as_it_is_written(name):
    run, _ = parsed(config=ROOT / "configs" / name)
    again, _ = parsed(*(f"--config.{key}={_text(run, key)}" for key in SETTINGS))
    assert again == run, "every setting can be given on the command line"


def _text(run: RunConfig, key: str) -> str:
    for name in key.split("."):
        run = getattr(run, name)
    return str(run)
