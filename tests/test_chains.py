"""The generated chains: right values, disjoint splits, purity, prompts that do not tell the number of steps."""

import json
import re
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.data.chains import (
    CHAIN_WORDS,
    NAMES,
    OPERATIONS,
    ChainProblems,
    chain_problem,
    split_of,
    write_chains,
)
from longshot_jax.data.problems import load_problems
from longshot_jax.errors import UserError

STATEMENT = re.compile(r"([a-n])=(?:([0-9])|([a-n])([+*])([0-9]))")


def solve(question):
    """An independent solver: (start, operations, values) of the asked variable, by following it back."""
    *statements, asked = question.split(" ")
    defined, values = {}, {}
    for statement in statements:
        name, digit, source, kind, operand = STATEMENT.fullmatch(statement).groups()
        assert name not in defined
        defined[name] = (source, f"{kind}{operand}")
        if digit is not None:
            values[name], defined[name] = int(digit), None
        else:  # only earlier variables may be used
            values[name] = eval(f"({values[source]}{kind}{operand}) % 10")
    operations, reached, name = [], [], asked.removesuffix("?")
    while defined[name] is not None:
        reached.append(str(values[name]))
        name, operation = defined[name]
        operations.append(operation)
    return values[name], tuple(operations[::-1]), tuple(reached[::-1])


@settings(max_examples=200)
@given(
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(1, 9),
    st.sampled_from(["train", "test"]),
    st.integers(0, 4),
)
def test_steps_and_answer_are_right(seed, index, operations, split, distractors):
    problem = chain_problem(seed, index, operations, split, distractors)
    start, chain, values = solve(problem.question)
    assert problem.steps == values and problem.answer == values[-1]
    assert len(chain) == operations and set(chain) <= set(OPERATIONS)
    assert split_of(start, chain) == split
    assert len(problem.question.replace(" ", "")) == 5 * (operations + distractors) + 5
    assert problem == chain_problem(seed, index, operations, split, distractors)


def test_without_distractors_each_statement_uses_the_one_before():
    *statements, asked = chain_problem(0, 0, 4, "train").question.split(" ")
    assert asked == statements[-1][0] + "?"
    assert [statement[2] for statement in statements[1:]] == [statement[0] for statement in statements[:-1]]


def test_the_split_is_frozen():
    """Another hash would move test problems into the training of older checkpoints."""
    tests = [start for start in range(10) if split_of(start, ("+1", "*3")) == "test"]
    assert tests == [2, 3, 5]
    assert [name for name in OPERATIONS if split_of(8, (name,)) == "test"] == ["+3", "+4", "*7"]


def test_a_fifth_of_the_functions_is_test():
    for length in (2, 3):
        functions = list(product(range(10), product(OPERATIONS, repeat=length)))
        share = sum(split_of(start, chain) == "test" for start, chain in functions) / len(functions)
        assert 0.17 < share < 0.23


def test_single_operations_have_both_splits_and_even_answers():
    tests = [(x, name) for x in range(10) for name in OPERATIONS if split_of(x, (name,)) == "test"]
    answers = Counter(eval(f"({x}{name}) % 10") for x, name in tests)
    assert len(tests) == 20 and set(answers.values()) == {2}
    chosen = [(x, name) for x in range(10) for name in OPERATIONS if split_of(x, (name,)) == "validation"]
    assert Counter(eval(f"({x}{name}) % 10") for x, name in chosen) == dict.fromkeys(range(10), 1)
    seen = {solve(problem.question)[:2] for problem in ChainProblems(0, 2000, (1,), "test")}
    assert seen == {(x, (name,)) for x, name in tests}  # repeated under other names
    trained = {solve(problem.question)[:2] for problem in ChainProblems(0, 3000, (1,))}
    assert len(trained) == 90 and not trained & {*seen, *((x, (name,)) for x, name in chosen)}


def test_streams_differ_and_answers_are_even():
    problems = ChainProblems(0, 4000, (4,))
    other = ChainProblems(1, 4000, (4,))
    assert sum(one == two for one, two in zip(problems, other, strict=True)) < 5
    assert len({problem.question for problem in problems}) > 3990
    shares = Counter(problem.answer for problem in problems)
    assert all(300 < shares[str(digit)] < 500 for digit in range(10))  # 400 expected, spread 19


def test_splits_share_no_function():
    for operations in (1, 2, 3):
        train, validation, test = (
            {solve(p.question)[:2] for p in ChainProblems(7, 2000, (operations,), split)}
            for split in ("train", "validation", "test")
        )
        assert train and validation and test
        assert not train & test and not train & validation and not validation & test


def test_mix_is_even_and_random_access():
    problems = ChainProblems(3, 40, (1, 2, 3, 4))
    assert len(problems) == 40
    assert Counter(len(problem.steps) for problem in problems) == {1: 10, 2: 10, 3: 10, 4: 10}
    assert problems[17] == ChainProblems(3, 1000)[17] == chain_problem(3, 17, 2, "train")
    for outside in (-1, 40):
        with pytest.raises(IndexError):
            problems[outside]


def test_distractors_make_prompts_equally_long():
    problems = ChainProblems(0, 200, (1, 2, 3, 4), distractors=2)
    assert len({len(problem.question) for problem in problems}) == 1
    assert {len(problem.steps) for problem in problems} == {1, 2, 3, 4}
    # The asked variable is at every place but the last two: one has to read.
    places = Counter(
        [part[0] for part in problem.question.split(" ")].index(problem.question[-2]) for problem in problems
    )
    assert set(places) == {1, 2, 3, 4} and min(places.values()) > 20


def test_written_file_reads_back(tmp_path):
    path = tmp_path / "chains.json"
    write_chains(path, operations=3, count=25, seed=5)
    assert load_problems(str(path)) == list(ChainProblems(5, 25, (3,), "test"))
    assert set(json.loads(path.read_text())[0]) == {"question", "steps", "answer"}
    with pytest.raises(UserError, match="cannot be written"):
        write_chains(tmp_path / "no" / "chains.json", operations=3, count=2, seed=5)


def test_words_spell_every_problem():
    words = CHAIN_WORDS
    assert len(words) == len(set(words)) == 29 and all(len(word) == 1 for word in words)
    for problem in ChainProblems(0, 300, (1, 5, 9), distractors=1):
        assert set("".join([problem.question, *problem.steps, problem.answer]).replace(" ", "")) <= set(words)
    assert len(NAMES) == 14 and len(OPERATIONS) == 12


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"operations": ()}, "operations"),
        ({"operations": (0,)}, "operations"),
        ({"operations": (10,)}, "operations"),
        ({"count": 0}, "count"),
        ({"distractors": -1}, "distractors"),
        ({"operations": (1, 9), "distractors": 5}, "from 0 to 4"),
    ],
)
def test_bad_settings(arguments, named):
    with pytest.raises(UserError, match=named):
        ChainProblems(**{"seed": 0, "count": 10, **arguments})
