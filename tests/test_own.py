"""Code of the user: rewards, problems and graders of the examples in docs/own.md, and what is said of unusable ones."""

import json
import re
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, start
from tiny_run import skip_evaluations, stub_updates, tiny

from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.checkpoints.run_folder import settings_of_test
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.config.ppo import RewardWeights
from longshot_jax.data.equation_graph import parallel_steps
from longshot_jax.data.equations import evaluate, from_infix
from longshot_jax.data.loader import prefetched, problem_batches
from longshot_jax.data.own import OwnCodeError, load_code, own_grader, own_problems
from longshot_jax.data.problems import Problem, load_problems, question_key
from longshot_jax.data.sources import contamination, own_code, read_problems
from longshot_jax.data.sources import test_problems as problems_of_test
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import UNFINISHED, are_correct, grades
from longshot_jax.evaluation.results import results_table
from longshot_jax.ppo.rewards import Outcome, answer_rewards, check_rewards, own_rewards
from longshot_jax.train import train

EXAMPLES = dict(
    re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs" / "own.md").read_text(), flags=re.DOTALL)
)
SMALL = (
    "model.hidden_size=16 model.intermediate_size=32 model.num_hidden_layers=1 model.num_attention_heads=2 "
    "data.bpe_vocabulary=300 data.prompt_length=130 data.answer_length=16 data.generated_train=400 data.generated_test=40 "
    "ppo.iterations=3 ppo.questions=4 ppo.num_trajectories=2 ppo.max_thoughts=0 ppo.epochs=1 ppo.minibatches=1 "
    "evaluation.questions=8 evaluation.batch_size=8 evaluation.every_iterations=0 checkpoint.every=1 phases=ppo "
    "text.max_steps=2 text.batch_size=8 curriculum.max_steps_per_stage=2 curriculum.batch_size=8"
).split()


HEAD = "from itertools import count, cycle\nfrom longshot_jax.data.problems import Problem\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the project's configs, which is the current one."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def trained(config, *overrides):
    """Exit code of training a tiny model for a few updates; an answer length that the file sets stays."""
    kept = "config.data.answer_length =" in Path(config).read_text()
    small = [each for each in SMALL if not (kept and each.startswith("data.answer_length"))]
    given = [f"--config.{each}" for each in (*small, *overrides)]
    return start("train.py", "--config", config, "--workdir=run", *given)


def write(path, text):
    path.write_text(text)
    return str(path)


def logged(folder):
    """Scalars of a run, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_example_is_short():
    assert set(EXAMPLES) == {"my_rewards.py", "my_task.py", "my_grader.py", "my_fields.py", "my_gym.py"}
    assert all(len(text.splitlines()) < 20 for text in EXAMPLES.values())


@pytest.mark.parametrize(
    "name", ["my_rewards.py", *(pytest.param(name, marks=pytest.mark.slow) for name in ("my_task.py", "my_fields.py"))]
)
def test_the_examples_of_the_document_train(here, capsys, monkeypatch, name):
    write(here / name, EXAMPLES[name])
    rows = "".join(f'"{n} and {n} are",{2 * n},"{n}+{n}={2 * n}"\n' for n in range(60))
    for file in ("my_problems.csv", "my_test.csv"):
        write(here / file, f"prompt,target,working\n{rows}")
    phase = "ppo" if name == "my_rewards.py" else "text"
    if phase == "ppo":  # no evaluation asks for rewards
        skip_evaluations(monkeypatch.setattr)
    assert trained(name, f"phases={phase}") == 0
    said = capsys.readouterr().err
    assert f"{phase}: accuracy" in said and ("my_rewards:brevity: " in said) == (phase == "ppo")
    assert ("reward/brevity" in logged(here / "run")) == (phase == "ppo")


@pytest.mark.slow
def test_the_grader_of_the_document_decides_and_no_code_that_a_run_folder_names_runs(here, capsys, monkeypatch):
    skip_evaluations(monkeypatch.setattr)
    stub_updates(monkeypatch.setattr)
    write(here / "my_grader.py", EXAMPLES["my_grader.py"])
    write(here / "code.py", HEAD + "import pathlib\npathlib.Path('ran').touch()\nf = [Problem('a=1 a?', (), '1')]")
    assert trained("my_grader.py") == 0
    assert "reward/correct" in logged(here / "run")
    evaluation = ("eval.py", "--checkpoint", "run", "--output", "results.json", "--num_trajectories", 0)
    settings = json.loads((here / "run" / "config.json").read_text())
    capsys.readouterr()
    assert start(*evaluation) == 2
    said = capsys.readouterr().err
    assert "names the code my_grader:grade, which runs only if you name it: add --grader my_grader:grade" in said
    settings["data"]["test"] = "code:f"
    write(here / "run" / "config.json", json.dumps(settings))
    assert start(*evaluation, "--grader", "my_grader:grade") == 2
    assert "names the code code:f, which runs only if you name it: add --data code:f" in capsys.readouterr().err
    assert not (here / "ran").exists()
    assert start(*evaluation, "--data", "code:f", "--grader", "my_grader:grade") == 0
    assert (here / "ran").exists()
    results = json.loads((here / "results.json").read_text())
    assert results["config"]["grader"] == "my_grader:grade" and results["count"] == 1
    assert results["config"]["trained_on"] == ["chains"] == list(SavedReasoner.find("run").trained_on)
    to_hf("run", "export")
    from_hf("export", "converted")
    assert SavedReasoner.find("converted").trained_on == ("chains",)


REWARDS = {
    "return np.full(outcome.correct.shape, np.nan)": r"gives nan for the answer '.*' to 'q 0.*' for a first batch, before",
    "return outcome.correct[:, :1]": r"gives shape \[8, 1\] .*: give a number for each answer, \[8, 2\]",
    "return 1.0": r"gives shape \[\] ",
    "return answers": r"gives \[\[.* give numbers of shape \[8, 2\]",
    "return [[1.0], [1.0, 2.0]]": "gives rows of different lengths",
    "return None": "gives None",
    "return [[len(answer) / 0 for answer in row] for row in answers]": r"raises ZeroDivisionError \(division by zero\) in "
    r"rewards\.py, line 3 for a first batch, before training: fix it",
    "return np.random.default_rng().random(outcome.correct.shape)": "gives other rewards for the same answers",
    "raise SystemExit": r"raises SystemExit",
}
BATCH = [Problem(f"q {number}", (), str(number)) for number in range(8)]


@pytest.mark.parametrize("body", REWARDS)
def test_an_unusable_reward_is_named_before_training(tmp_path, body):
    file = write(tmp_path / "rewards.py", f"import numpy as np\ndef mine(problems, answers, outcome):\n    {body}\n")
    with pytest.raises(UserError, match=rf"rewards\.py:mine {REWARDS[body]}"):
        check_rewards(tiny(ppo__reward=f"{file}:mine"), BATCH, print)


def test_rewards_have_weights_and_their_time_is_told(tmp_path):
    file = write(
        tmp_path / "two.py", "def one(p, a, o):\n    return o.correct\ndef two(p, a, o):\n    return 2 * o.ended\n"
    )
    run = tiny(ppo__reward=(f"{file}:one", f"{file}:two"), ppo__reward_weights=(1.0, -0.5))
    said: list[str] = []
    check_rewards(run, BATCH, said.append)
    assert len(said) == 2 and re.search(r"two\.py:two: \d+\.\d ms for 8 x 2 answers", said[1])
    rewards = own_rewards(run)
    assert list(rewards) == ["one", "two"] and [each.weight for each in rewards.values()] == [1.0, -0.5]
    for key, value in {"reward_weights": (1.0,), "reward": (f"{file}:one", f"{file}:one")}.items():
        with pytest.raises(UserError, match=r"config\.ppo\.reward"):
            tiny(**{"ppo__reward": (f"{file}:one", f"{file}:two"), f"ppo__{key}": value})
    with pytest.raises(UserError, match="another reward 'correct'"):
        tiny(ppo__reward="mine:correct")


LATE = """
calls = 0
def late(problems, answers, outcome):
    global calls
    calls += 1
    {body}
    return 0.0 * outcome.correct
"""


@pytest.mark.slow
def test_a_reward_that_fails_later_leaves_the_checkpoint_and_a_changed_one_does_not_go_on(tmp_path, monkeypatch):
    skip_evaluations(monkeypatch.setattr)
    stub_updates(monkeypatch.setattr)
    file = tmp_path / "rewards.py"
    run = tiny(
        phases=("ppo",),
        ppo__reward=f"{file}:late",
        ppo__max_thoughts=0,
        checkpoint__every=2,
        evaluation__every_iterations=0,
    )
    write(file, LATE.format(body="if calls == 6: raise KeyError('odd')"))  # two calls are the check's
    words = r"late raises KeyError \('odd'\) in rewards\.py, line 6 in iteration 4: fix it; the checkpoint of step 3 is intact\.$"
    with pytest.raises(UserError, match=words):
        train(run, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    write(file, LATE.format(body="pass"))
    with pytest.raises(UserError, match=r"the code of config\.ppo\.reward\[0\] changed since the checkpoint"):
        train(run, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before


def test_comments_and_white_space_are_no_change(tmp_path):
    file = tmp_path / "rewards.py"
    texts = ("def f(p):\n    return 1\n", "# new\ndef f(p):\n\n    return  1  # one\n", "def f(p):\n    return 2\n")
    prints = [load_code(f"{write(file, text)}:f", "x").fingerprint for text in texts]
    assert prints[0] == prints[1] != prints[2]


def names(tmp_path, setting):
    return {
        "none:f": rf"{setting} 'none:f': there is no .*none\.py: give the path of a \.py file",
        "my_task:f": r"did you mean 'my_tasks'",
        "my_tasks.py:problms": r"my_tasks\.py has no 'problms': did you mean 'problems'",
        "broken.py:f": r"broken\.py raises SyntaxError \(.*\) in broken\.py, line 2: fix it",
        "raising:f": r"raising\.py raises ZeroDivisionError .* in raising\.py, line 1: fix it",
        "sys:path": "sys is no Python file",
    }


@pytest.mark.parametrize("setting", ["config.ppo.reward", "config.data.train"])
@pytest.mark.parametrize("named", names("", ""))
def test_code_that_is_not_there_is_named_with_the_nearest(tmp_path, monkeypatch, setting, named):
    monkeypatch.chdir(tmp_path)
    for name, text in {"my_tasks": "problems = 1", "broken": "x = 1\ny = (", "raising": "1 / 0"}.items():
        write(tmp_path / f"{name}.py", text)
    with pytest.raises(UserError, match=names(tmp_path, re.escape(setting))[named]):
        load_code(named, setting)


SOURCES = {
    "def f():\n    return iter(())": "yields no problem",
    "def f():\n    yield Problem('one', (), '1')\n    raise OSError('gone')": r"raises OSError \(gone\) in task\.py, line 5",
    "def f():\n    yield Problem('one', (), '1')\n    yield Problem(' ', (), '1')": r'problem 2: "question" is empty',
    "def f():\n    yield Problem('one', 'step', '1')": r'problem 1: "steps" must hold lists of texts',
    "def f():\n    yield Problem('one', (), 1)": r'problem 1: "answer" must be a text, not int',
    "f = cycle([Problem('one', (), '1')])": "repeats itself: its 50 problems have 1 different questions",
    "f = 3": "gives 3: give something that yields problems",
    "def f(a, b):\n    pass": "takes 2 arguments",
    "def f(index):\n    return Problem('one', (), '1')": "repeats itself: its first 64 problems have 1 different questions",
    "def f(index):\n    return None": "for index 0: None is no problem",
    "def f(index):\n    return [Problem('one', (), '1')][index]": r"raises IndexError .* in task\.py, line 4 for index 1",
    "c = count()\ndef f(index):\n    return Problem(f'q {next(c)}', (), '1')": "gives another problem for the same index",
}


@pytest.mark.parametrize("text", SOURCES)
def test_unusable_problems_are_named(tmp_path, text):
    file = write(tmp_path / "task.py", HEAD + text)
    with pytest.raises(UserError, match=f"task.py:f,? ?{SOURCES[text]}"):
        own_problems(load_code(f"{file}:f", "config.data.train"), 50, "train")


def test_a_function_of_an_index_has_splits_without_a_common_question(tmp_path):
    file = write(tmp_path / "task.py", HEAD + "def f(index):\n    return Problem(f' q {index % 50}', ('s',), '1')")
    source = f"{file}:f"
    run = tiny(data__train=source, data__test=source, data__generated_train=300, data__generated_test=100)
    train_problems, validation = read_problems(run)
    keys = [{question_key(each) for each in part} for part in (train_problems, validation, problems_of_test(run))]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert sum(map(len, keys)) == 50 and train_problems[0].question == train_problems[0].question.strip()
    listed = write(tmp_path / "list.py", HEAD + "f = [Problem(f'q {n}', (), '1') for n in range(30)]")
    train_problems, validation = read_problems(replace(run, data=replace(run.data, train=f"{listed}:f")))
    assert (len(train_problems), len(validation)) == (27, 3)


def test_problems_that_fail_later_name_their_index(tmp_path):
    """Also through the thread that reads ahead; `train` then adds which checkpoint is left."""
    text = "broken = []\ndef f(index):\n    return Problem(f'q {index}', (), 1 if broken else '1')"
    code = load_code(f"{write(tmp_path / 'task.py', HEAD + text)}:f", "config.data.train")
    problems = own_problems(code, 100, "train")
    with prefetched(problem_batches(problems, 8, 0), 0) as batches:
        assert len(next(batches)) == 8
        code.value.__globals__["broken"].append(True)
        with pytest.raises(OwnCodeError, match=r'task\.py:f for index \d+: "answer" must be a text, not int'):
            for _ in range(10):
                next(batches)


GRADERS = {
    "return 'yes'": r"gives 'yes' for the answer '' to 'q 0': give True, False or a number from 0 to 1",
    "return 1.5": "gives 1.5 for the answer",
    "return float('nan')": "gives nan for the answer",
    "return int(answer) == 3": r"raises ValueError .* in grader\.py, line 2 for the answer '' to 'q 0': fix it",
    "return False": "gives less than 1 for the problem's own answer '0' to 'q 0'",
}


@pytest.mark.parametrize("body", GRADERS)
def test_an_unusable_grader_is_named_before_training(tmp_path, body):
    file = write(tmp_path / "grader.py", f"def mine(problem, answer):\n    {body}\n")
    with pytest.raises(UserError, match=rf"grader\.py:mine {GRADERS[body]}"):
        own_grader(f"{file}:mine", BATCH)


def test_a_grade_of_one_is_right_and_no_unfinished_answer_is_asked_for(tmp_path):
    file = write(
        tmp_path / "grader.py", "def mine(problem, answer):\n    return 1.0 if answer in ('0', '1', 'x') else 0.5\n"
    )
    grade = own_grader(f"{file}:mine", BATCH[:2])
    answers = ["x", "y", f"x{UNFINISHED}", ""]
    np.testing.assert_array_equal(grades(answers, BATCH[:4], grade), [1, 0.5, 0, 0.5])
    np.testing.assert_array_equal(are_correct(answers, BATCH[:4], grade), [True, False, False, False])
    ended, thoughts = np.ones((1, 2), bool), np.ones((1, 2), int)
    partly = Outcome(
        np.array([[True, False]]), ended, thoughts, ended, thoughts, grade=np.array([[1, 0.5]], np.float32)
    )
    np.testing.assert_array_equal(answer_rewards(partly, RewardWeights(correct=2.0))["correct"], [[2, 1]])


ROWS = [{"q": "one", "a": 12, "s": "x\ny"}, {"q": "two", "a": 2.0, "s": ""}]


def test_fields_are_read_from_every_kind_of_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    files = {name: tmp_path / f"data.{name}" for name in ("json", "jsonl", "csv", "parquet")}
    files["json"].write_text(json.dumps(ROWS))
    files["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    files["csv"].write_text('q,a,s\none,12,"x\ny"\ntwo,2,\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), files["parquet"])
    for file in files.values():
        assert load_problems(str(file), ("q", "a", "s")) == [Problem("one", ("x", "y"), "12"), Problem("two", (), "2")]
        assert load_problems(str(file), ("q", "a"))[0] == Problem("one", (), "12")
        with pytest.raises(
            UserError, match=rf"{file.name}, .*: there is no field 'aa' of config\.data\.fields: did you mean 'a'"
        ):
            load_problems(str(file), ("q", "aa"))
    prose = write(tmp_path / "prose.jsonl", json.dumps({"q": "one", "a": "x\n#### 3"}) + "\n")
    assert load_problems(prose, ("q", "a")) == [Problem("one", ("x",), "3")]
    rows = [
        {"q": "one", "a": "x\n  #### 5", "s": None},
        {"q": "two", "a": 7, "s": "first\u2028part\n\nsecond"},
        {"q": "three", "a": 10**400, "s": [7, 9.0]},
    ]
    mixed = write(tmp_path / "mixed.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [(each.steps, each.answer) for each in load_problems(mixed, ("q", "a", "s"))] == [
        (("x",), "5"), (("first\u2028part", "second"), "7"), (("7", "9"), str(10**400)),
    ]  # fmt: skip
    infinite = write(tmp_path / "infinite.jsonl", '{"q": "one", "a": Infinity}\n')
    with pytest.raises(UserError, match='line 1: "a" must be a text'):
        load_problems(infinite, ("q", "a"))
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"q": "one", "a": Decimal("2.50")}, {"q": "two", "a": Decimal("3.00")}]),
        files["parquet"],
    )
    assert [each.answer for each in load_problems(str(files["parquet"]), ("q", "a"))] == ["2.5", "3"]
    for content in (b"PAR1", b""):
        files["parquet"].write_bytes(content)
        with pytest.raises(UserError, match=r"data\.parquet cannot be read as Parquet"):
            load_problems(str(files["parquet"]), ("q", "a"))
    (tmp_path / "config.json").write_text("{}")
    for fields in (("q",), ("q", "q"), ("q", "a", "s", "t")):
        with pytest.raises(UserError, match="name the fields of question and answer"):
            tiny(data__fields=fields)
        with pytest.raises(UserError, match="name the fields of question and answer"):
            settings_of_test(tmp_path, str(files["csv"]), None, fields=fields)


GYM = "reasoning_gym:"
WRONG = {
    ("chain_summ", ""): r"reasoning_gym:chain_summ is no task .* did you mean reasoning_gym:chain_sum",
    ("chain_sum", "{"): r"config\.data\.parameters is not JSON",
    ("chain_sum", "[1]"): r"config\.data\.parameters is \[1\]: give a JSON object",
    ("chain_sum", '{"max_term": 3}'): "has no parameter 'max_term': did you mean max_terms",
    ("chain_sum", '{"max_terms": 0}'): "does not fit reasoning_gym:chain_sum .*max_terms must be",
    ("chain_sum", '{"seed": 3}'): "has no parameter 'seed'",
    ("rubiks_cube", ""): "states no answers",
}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "parameters"), WRONG)
def test_a_wrong_task_or_parameter_is_named(task, parameters):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=WRONG[task, parameters]):
        read_problems(tiny(data__train=GYM + task, data__parameters=parameters))


@pytest.mark.slow
def test_tasks_are_split_by_question_and_templates(here):
    pytest.importorskip("reasoning_gym")
    for task, parameters in (("chain_sum", '{"max_terms": 2, "max_digits": 1}'), ("gsm_symbolic", "")):
        source = GYM + task
        run = tiny(data__train=source, data__test=source, data__parameters=parameters, data__generated_train=2000)
        parts = [[part[index] for index in range(400)] for part in (*read_problems(run), problems_of_test(run))]
        keys = [{question_key(each) for each in part} for part in parts]
        assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
        for each in parts[0][:50]:
            assert each.grade(each.answer) == 1 and each.grade(f"{each.answer}1") == 0 and each.grade("") == 0
        assert bool(parts[0][0].steps) == (task == "gsm_symbolic")
    assert (
        own_code(run) == {"data.train": own_code(run)["data.train"]} and "reasoning-gym" in own_code(run)["data.train"]
    )
    # What tells templates apart is their set of words, without names and numbers.
    words = [{frozenset(re.findall(r"\b[a-z]+\b", each.question)) for each in part} for part in parts]
    nearest = max(len(a & b) / len(a | b) for a in words[2] for b in words[0])
    assert nearest < 0.75
    write(here / "my_gym.py", EXAMPLES["my_gym.py"])
    assert trained("my_gym.py", "phases=curriculum,ppo", "ppo.max_thoughts=0") == 0


@pytest.mark.slow
def test_legs_are_counted_in_threads_and_added_in_joint_steps():
    pytest.importorskip("reasoning_gym")
    parameters = '{"min_animals": 2, "max_animals": 4}'
    problems = read_problems(tiny(data__train=GYM + "leg_counting", data__parameters=parameters)).train
    for number in range(50):
        problem = problems[number]
        threads, joint = parallel_steps(problem, 4)
        told = re.findall(r"(\d+) [a-z]", problem.question.partition("have ")[2])
        assert [step.partition("*")[0] for (step,) in threads] == told and len(joint) == len(told) - 1
        for step in problem.steps:
            left, _, right = step.partition("=")
            assert evaluate(from_infix(left)) == int(right)
        assert joint[-1].endswith(f"={problem.answer}") and problem.grade(problem.answer) == 1


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"needs the package reasoning-gym .*pip install -e '\.\[reasoning-gym\]'"):
        read_problems(tiny(data__train=GYM + "chain_sum"))


def test_a_figure_on_gsm8k_of_a_model_of_its_templates_says_so():
    trained_on = ["chains", GYM + "gsm_symbolic"]
    note = contamination(trained_on, "openai/gsm8k:main:test")
    assert "made of questions of GSM8K's test" in note
    assert not contamination(trained_on, GYM + "gsm_symbolic") and not contamination(["chains"], "test.jsonl")
    results = {
        "confidence_interval": [0.0, 1.0], "accuracy": 0.5, "count": 2, "mean_thoughts": 1.0, "by_steps": {}, "controls": {},
        "config": {"contamination": note},
    }  # fmt: skip
    assert results_table(results).splitlines()[2].strip().startswith("NOT HELD OUT")
    assert "controls" not in results_table(results)
    assert "none, since no question used a thought" in results_table(results | {"mean_thoughts": 0.0})
