"""Which problems a run trains on, and which choose its best checkpoint."""

import json
import random
import re
import unicodedata
from dataclasses import replace

import pytest
from child_process import NO_PROCESS
from tiny_run import tiny

from longshot_jax.data.problems import Problem, question_key
from longshot_jax.data.run_tokenizer import build_tokenizer, store_tokenizer
from longshot_jax.data.sources import Problems, build_layout, check_problems, read_problems
from longshot_jax.data.sources import test_problems as problems_of_test
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError


def problem_file(folder, count, name="problems.json"):
    rows = [{"question": f"{n}?", "steps": [], "answer": str(n)} for n in range(count)]
    (folder / name).write_text(json.dumps(rows))
    return str(folder / name)


def test_a_file_gives_a_tenth_for_validation(tmp_path):
    file = problem_file(tmp_path, 95)
    train, validation = read_problems(tiny(data__train=file))
    assert len(validation) == 9 and len(train) == 86
    assert sorted(int(p.answer) for p in [*train, *validation]) == list(range(95))
    # What a run may change when it goes on does not change its training data.
    again, _ = read_problems(tiny(data__train=file, evaluation__questions=3))
    assert again == train


def test_named_validation_leaves_the_training_data_whole(tmp_path):
    file = problem_file(tmp_path, 5)
    train, validation = read_problems(tiny(data__train=file, data__validation="chains"))
    assert len(train) == 5 and len(validation) == 1000
    with pytest.raises(UserError, match=r"5 different problems, too few .* config\.data\.validation"):
        read_problems(tiny(data__train=file))


def file_of(folder, name, questions):
    rows = [{"question": question, "steps": [], "answer": "1"} for question in questions]
    (folder / name).write_text(json.dumps(rows))
    return str(folder / name)


def same_question(text):
    """The question with other white space, case and Unicode form."""
    return unicodedata.normalize("NFD", text.upper().replace(" ", " \n\t").replace("2", "\uff12"))


def test_all_copies_of_a_question_are_on_one_side(tmp_path):
    questions = [f"Zo\u00eb has {n} pens, stra\u00dfe {n % 7}?" for n in range(60)]
    copies = questions + [same_question(question) for question in questions]
    assert not set(questions) & set(copies[60:])
    random.Random(0).shuffle(copies)
    train, validation = read_problems(tiny(data__train=file_of(tmp_path, "train.json", copies)))
    assert (len(train), len(validation)) == (108, 12)
    assert not {question_key(problem) for problem in train} & {question_key(problem) for problem in validation}
    assert sorted(p.question for p in [*train, *validation]) == sorted(" ".join(q.split(" ")) for q in copies)
    with pytest.raises(UserError, match="9 different problems, too few"):
        read_problems(tiny(data__train=file_of(tmp_path, "few.json", questions[:9] * 3)))


def test_a_file_without_copies_is_split_by_position(tmp_path):
    """A continued run needs the split that it was started with."""
    for count in (10, 19, 95, 6000):
        train, validation = read_problems(tiny(data__train=problem_file(tmp_path, count)))
        part = min(count // 10, 500)
        kept = [number * count // part for number in range(part)]
        assert [int(p.answer) for p in validation] == kept
        assert [int(p.answer) for p in train] == [n for n in range(count) if n not in kept]


@pytest.mark.parametrize("remove", [False, True])
def test_held_out_problems_among_the_training_problems_are_named_or_left_out(tmp_path, remove):
    train = file_of(tmp_path, "train.json", [f"q {n}" for n in range(20)])
    validation = file_of(tmp_path, "validation.json", ["Q  3", "new", "other", "third"])
    test = file_of(tmp_path, "test.json", ["q 5", "q 5", "q 3", "newer", "newest"])
    said: list[str] = []
    run = tiny(data__train=train, data__validation=validation, data__test=test, data__remove_overlap=remove)
    problems = read_problems(run, said.append)
    trained = {problem.question for problem in problems.train}
    assert trained == {f"q {n}" for n in range(20) if not remove or n not in (3, 5)}
    assert len(problems.validation) == 4
    advice = "they are left out" if remove else "set config.data.remove_overlap to True to leave them out"
    assert said == [
        f"warning: 1 of the 4 problems of config.data.validation ({validation}), 25.0%, are also in the training "
        f"problems ({train}): {advice} of training.",
        f"warning: 3 of the 5 problems of config.data.test ({test}), 60.0%, are also in the training problems "
        f"({train}): {advice} of training.",
    ]
    said.clear()
    if not remove:
        read_problems(replace(run, data=replace(run.data, validation="", test=train)), said.append)
        assert len(said) == 1 and said.pop().endswith("name another file as config.data.test.")
    read_problems(replace(run, data=replace(run.data, validation="chains", test="chains")), said.append)
    assert not said
    whole = replace(run, data=replace(run.data, test=train, validation=validation))
    if remove:
        with pytest.raises(UserError, match="leaves none to train on: name other problems"):
            read_problems(whole, said.append)
    else:
        assert len(read_problems(whole, said.append).train) == 20 and "100.0%" in said[-1]


def test_test_problems_that_cannot_be_read_do_not_end_training(tmp_path):
    said: list[str] = []
    run = tiny(data__train=problem_file(tmp_path, 30), data__test=str(tmp_path / "none.json"))
    assert len(read_problems(run, said.append).train) == 27
    assert (
        len(said) == 1 and said[0].startswith("warning: config.data.test was not compared") and "none.json" in said[0]
    )


@pytest.mark.parametrize(("key", "value"), [("operations", (10,)), ("distractors", 12)])
def test_settings_that_no_chain_has_are_named(key, value):
    with pytest.raises(UserError, match=rf"^config\.data\.{key} must be from"):
        read_problems(tiny(**{f"data__{key}": value}))


@pytest.mark.parametrize("kind", ["chains", "prosqa"])
def test_generated_validation_is_not_the_test(kind):
    run = tiny(data__train=kind, data__test=kind, data__generated_train=60, data__generated_test=40)
    train, validation = read_problems(run)
    sets = [{p.question for p in problems} for problems in (train, validation, problems_of_test(run))]
    assert [len(problems) for problems in (train, validation)] == [60, 40]
    assert not sets[0] & sets[2] and not sets[1] & sets[2] and not sets[0] & sets[1]
    other_seed = tiny(seed=1, data__train=kind, data__generated_train=60, data__generated_test=40)
    again = read_problems(other_seed)
    assert [p.question for p in again[1]] == [p.question for p in validation]
    assert [p.question for p in again[0]] != [p.question for p in train]


def layout_of(run):
    tokens = build_tokenizer(run, "unused", read_problems(run).train, None, resumed=False)
    return build_layout(run, tokens)


def checked(run, layout, problems):
    return check_problems(run, layout, Problems(problems, [])).train


def test_what_cannot_be_spelled_is_found_before_training(tmp_path):
    file = problem_file(tmp_path, 5)
    run = tiny(data__train=file, data__validation="chains")
    fine = Problem("a=1 b=a+1 b?", ("2",), "2")
    layout = layout_of(run)
    assert checked(run, layout, [fine]) == [fine]
    for broken in (replace(fine, question="x=1 x?"), replace(fine, answer="-2"), replace(fine, steps=("two",))):
        words = re.escape(file) + ", problem 2: tokenizer of single characters knows only .* cannot spell"
        with pytest.raises(UserError, match=words):
            checked(run, layout, [fine, broken])
    unseen = replace(fine, steps=("two",))  # PPO writes no steps
    assert checked(replace(run, phases=("ppo",)), layout, [unseen]) == [unseen]


def test_of_problems_that_are_too_long_the_longest_is_named(tmp_path):
    """So that one start tells the length that all need."""
    file = problem_file(tmp_path, 5)
    run = tiny(data__train=file, data__validation="chains")
    question = "a=1 b=a+1 b?"
    problems = [Problem(question, ("2",) * count, "2") for count in (1, 4, 7, 5)] + [Problem("x?", (), "1")]
    with pytest.raises(UserError, match=re.escape(file) + r", problem 3: steps and answer have 10 tokens but .* is 5:"):
        checked(run, layout_of(run), problems)
    asked = [replace(problems[0], question=question + "a" * more) for more in (2, 30, 9)]
    words = re.escape(file) + r", problem 2: a prompt has \d+ tokens but config\.data\.prompt_length is 15"
    with pytest.raises(UserError, match=words):
        checked(run, layout_of(run), asked)


def test_validation_problems_are_checked_under_their_own_name(tmp_path):
    train, validation = problem_file(tmp_path, 30), problem_file(tmp_path, 5, "validation.json")
    fine, broken = Problem("a=1 b=a+1 b?", ("2",), "2"), Problem("x=1 x?", (), "1")
    run = tiny(data__train=train, data__validation=validation)
    problems = Problems([fine], [fine, broken])
    with pytest.raises(UserError, match=re.escape(f"{validation}, problem 2: tokenizer of single characters")):
        check_problems(run, layout_of(run), problems)
    # Taken out of the training file, problems no longer have the numbers of the file.
    run = tiny(data__train=train)
    with pytest.raises(UserError, match=re.escape(f"{train}: tokenizer of single characters")):
        check_problems(run, layout_of(run), problems)


@pytest.mark.parametrize(
    ("markers", "sampled", "key"), [("answer", 2, "ppo"), ("coconut", 2, "ppo"), ("coconut", 0, "data")]
)
def test_a_gold_answer_that_no_rollout_can_give_is_refused(markers, sampled, key):
    run = tiny(phases=("ppo",), markers=markers, ppo__answer_length=sampled, data__answer_length=5 if sampled else 2)
    layout = layout_of(run)
    checked(run, layout, [Problem("a=1 a?", (), "1")])  # a digit and the end: just so
    with pytest.raises(UserError, match=rf"'12' has 3 tokens with its end, but config\.{key}\.answer_length is 2"):
        checked(run, layout, [Problem("a=1 a?", (), "12")])


def test_rollouts_may_be_longer_than_answers_in_the_curriculum():
    run = tiny(phases=("ppo",), ppo__answer_length=4, data__answer_length=2)
    checked(run, layout_of(run), [Problem("a=1 a?", (), "123")])


def test_a_generated_problem_that_is_too_long_gives_way_to_a_later_one():
    run = tiny(
        data__train="prosqa", data__tokenizer="bpe", data__bpe_vocabulary=400, data__generated_train=200,
        data__prompt_length=1000, data__answer_length=200, phases=("ppo",),
    )  # fmt: skip
    problems = read_problems(run).train
    layout = layout_of(run)
    lengths = [len(layout.question(problem)) for problem in problems]
    limit = max(lengths[:64])
    late = [index for index, length in enumerate(lengths) if length > limit]
    assert late, "the first problems have the longest prompt: take another seed"
    run = replace(run, data=replace(run.data, prompt_length=limit))
    kept = checked(run, replace(layout, prompt_length=limit), problems)
    assert len(kept) == 200
    assert all(len(layout.question(problem)) <= limit for problem in kept)
    assert [index for index in range(200) if kept[index] != problems[index]] == late


def test_what_a_killed_start_left_of_a_tokenizer_is_removed(tmp_path):
    (tmp_path / f".tokenizer.{NO_PROCESS}.part").mkdir()
    (tmp_path / f".tokenizer.{NO_PROCESS}.part" / "tokenizer.json").write_text("{")
    store_tokenizer(Tokenizer.for_chains(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
    assert Tokenizer.load(str(tmp_path / "tokenizer")).encode("a=1")
