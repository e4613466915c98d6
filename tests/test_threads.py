"""Generated problems of several chains: right results, chains of their own split, and refusals."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.data.chains import split_of
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import load_problems
from longshot_jax.data.threads import NAMES, THREAD_WORDS, ThreadProblems, thread_problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError

TOKENS = Tokenizer.for_chains(words=THREAD_WORDS)


def chain_of(question, name):
    """Start, operations and values of a name, followed back through the statements by an independent reader."""
    *statements, _ = question.split(" ")
    defined = dict(statement.split("=") for statement in statements)
    assert len(defined) == len(statements)
    operations = []
    while defined[name][0] in NAMES:
        operations.append(defined[name][1:])
        name = defined[name][0]
    start, values = int(defined[name]), []
    value = start
    for operation in reversed(operations):
        value = eval(f"{value}{operation}") % 10
        values.append(str(value))
    return start, operations[::-1], tuple(values)


@settings(max_examples=100)
@given(st.integers(0, 2**40), st.integers(1, 5), st.integers(1, 4), st.sampled_from(["train", "test"]), st.booleans())
def test_every_thread_is_the_chain_of_its_asked_name(seed, threads, operations, split, interleaved):
    problem = thread_problem(seed, 7, threads, operations, split, interleaved)
    asked = problem.question.split(" ")[-1].removesuffix("?").split(",")
    assert len(asked) == len(problem.threads) == threads
    for name, steps in zip(asked, problem.threads, strict=True):
        start, chain, values = chain_of(problem.question, name)
        assert steps == values and split_of(start, chain) == split
    assert problem.answer == ",".join(steps[-1] for steps in problem.threads)
    assert problem.steps == tuple(value for steps in problem.threads for value in steps)
    together = thread_problem(seed, 7, threads, operations, split, interleaved, together=True)
    assert together.question == problem.question and together.threads == problem.threads
    assert together.steps == tuple(",".join(values) for values in zip(*problem.threads, strict=True))
    layout = Layout(TOKENS, "answer", "coconut", threads * (5 * operations + 5))
    assert len(layout.question(problem)) == layout.prompt_length


@settings(max_examples=50)
@given(
    st.integers(0, 2**40),
    st.integers(2, 4),
    st.sampled_from([(2,), (3,), (2, 4)]),
    st.sampled_from(["train", "test", "validation"]),
)
def test_chains_that_cross_add_the_next_ones_result(seed, threads, crossings, split):
    problem = thread_problem(seed, 7, threads, 4, split, crossings=crossings)
    *statements, asked = problem.question.split(" ")
    values, chains = {}, {}
    for number, statement in enumerate(statements):  # an independent reader, in the order of the text
        name, right = statement.split("=")
        position, thread = divmod(number, threads)
        if not position:
            values[name], chains[name] = int(right), (int(right), [])
            continue
        source, operand = right[0], right[2:]
        other = operand in values
        assert other == (position in crossings)
        if other:
            assert operand == statements[number - thread - threads + (thread + 1) % threads][0]
        operation = f"{right[1]}{values[operand] if other else operand}"
        values[name] = eval(f"{values[source]}{operation}") % 10
        start, before = chains[source]
        chains[name] = start, [*before, operation]
    names = asked.removesuffix("?").split(",")
    assert problem.answer == ",".join(str(values[name]) for name in names)
    assert [steps[-1] for steps in problem.threads] == problem.answer.split(",")
    assert all(split_of(*chains[name]) == split for name in names)
    for steps, name in zip(problem.threads, names, strict=True):
        start, operations = chains[name]
        expected = []
        for position, operation in enumerate(operations, start=1):
            start = eval(f"{start}{operation}") % 10
            expected += [operation[1:], str(start)] if position in crossings else [str(start)]
        assert steps == tuple(expected)


@pytest.mark.parametrize(
    ("threads", "crossings", "mixed", "message"),
    [
        ((1, 2), (2,), False, "crossings need problems of 2 to 4 chains"),
        ((5,), (2,), False, "crossings need problems of 2 to 4 chains"),
        ((2,), (2,), True, "whose statements are not interleaved"),
        ((2,), (1,), False, "must name operations after the first of every chain: the shortest has 3"),
        ((2,), (4,), False, "must name operations after the first of every chain: the shortest has 3"),
    ],
)
def test_crossings_that_cannot_be_are_refused(threads, crossings, mixed, message):
    with pytest.raises(UserError, match=message):
        ThreadProblems(0, 10, threads, (3,), interleaved=mixed, crossings=crossings)


def test_statements_are_interleaved_and_the_same_at_every_reading():
    problems = ThreadProblems(3, 40, (2, 3), (2,), interleaved=True)
    assert [problems[i] for i in range(40)] == [problems[i] for i in range(40)]
    assert [len(problem.threads) for problem in (problems[0], problems[1], problems[2])] == [2, 3, 2]
    apart = [thread_problem(3, i, 2, 2, "train").question for i in range(40)]
    assert all(chain.split(" ")[3][0].isalpha() and chain.split(" ")[3][2].isdigit() for chain in apart)
    assert any(problems[i].question.split(" ")[1][2].isdigit() for i in range(0, 40, 2))


@pytest.mark.parametrize(
    ("threads", "operations", "message"),
    [
        ((), (2,), "threads must name numbers"),
        ((2,), (0,), "operations must be from 1 to 9"),
        ((5,), (6,), "need 35 names, and there are 26"),
    ],
)
def test_numbers_out_of_range_are_refused(threads, operations, message):
    with pytest.raises(UserError, match=message):
        ThreadProblems(0, 10, threads, operations)


def test_threads_are_read_from_a_file(tmp_path):
    problem = ThreadProblems(0, 1, (2,), (2,))[0]
    row = {"question": problem.question, "steps": problem.steps, "answer": problem.answer, "threads": problem.threads}
    file = tmp_path / "threads.json"
    file.write_text(json.dumps([row]))
    assert load_problems(str(file)) == [problem]
    for wrong in ("3", [[]], [["3"], [4]], [["3", " "]]):
        file.write_text(json.dumps([row | {"threads": wrong}]))
        with pytest.raises(UserError, match=r'item 1: "threads" must'):
            load_problems(str(file))
