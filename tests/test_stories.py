"""The generated stories: right equations, disjoint splits, purity, words for every operand."""

import re
from collections import Counter
from typing import get_args

import pytest

from longshot_jax.data.chains import Split
from longshot_jax.data.stories import (
    _WORDINGS,
    FRACTIONS,
    LARGEST,
    MEN,
    THINGS,
    TIMES,
    WOMEN,
    Operation,
    StoryProblems,
    split_of,
    story_problem,
)
from longshot_jax.errors import UserError

EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
WORDS = {"twice": 2, **{word.split()[-1]: factor for factor, word in FRACTIONS.items()}}


def solve(problem):
    """Evaluates the steps: (start, operations), checked to be whole, in range, chained and to end in the answer."""
    value, operations = None, []
    for step in problem.steps:
        left, kind, operand, result = EQUATION.fullmatch(step).groups()
        assert value in (None, int(left)) and eval(f"{left}{kind}{operand}") == int(result)
        value = int(result)
        assert 0 <= int(left) <= LARGEST and 0 < int(operand) <= LARGEST and 0 <= value <= LARGEST
        operations.append(Operation(kind, int(operand)))
    assert problem.answer == str(value)
    return int(EQUATION.fullmatch(problem.steps[0])[1]), tuple(operations)


def numbers(question):
    """All numbers of a question in order, in digits or as a word such as "twice"."""
    found = re.findall(r"\d+|" + "|".join(rf"\b{word}\b" for word in WORDS), question)
    return [int(word) if word.isdigit() else WORDS[word] for word in found]


@pytest.mark.parametrize("distractors", [0, 2])
def test_steps_and_answers_are_right_and_the_question_holds_each_operand(distractors):
    problems = StoryProblems(3, 400, (1, 2, 3, 4), "test", distractors)
    for index, problem in enumerate(problems):
        start, operations = solve(problem)
        assert len(operations) == index % 4 + 1 and split_of(start, operations) == "test"
        told, needed = numbers(problem.question), [start, *(operand for _, operand in operations)]
        if distractors:
            assert len(told) == len(needed) + distractors and not Counter(needed) - Counter(told)
        else:  # in the order of the equations
            assert told == needed
        assert problem.question.endswith("?") and "{" not in problem.question and "  " not in problem.question


@pytest.mark.parametrize("largest", [9, 50])
def test_stories_with_smaller_numbers(largest):
    with_equations = StoryProblems(3, 400, (2, 3, 4), "test", 1, largest)
    results_alone = StoryProblems(3, 400, (2, 3, 4), "test", 1, largest, equations=False)
    reached = set()
    for problem, short in zip(with_equations, results_alone, strict=True):
        start, operations = solve(problem)
        assert split_of(start, operations) == "test"
        values = [start, *(int(step.split("=")[1]) for step in problem.steps)]
        assert max(values + numbers(problem.question)) <= largest
        assert short.question == problem.question and short.answer == problem.answer
        assert [int(step) for step in short.steps] == values[1:]
        reached |= set(values)
    assert len(reached) > 0.9 * largest, "all values occur"


# What is told, by an ordered cue: the value after the sentence, from the value before and the number.
CUES = (
    (r"has [\w ]+ more \w+ than (?P<who>\w+)", "+", "-"),
    (r"has [\w ]+ fewer \w+ than (?P<who>\w+)", "-", "+"),
    (r"Soon", "*", "*"),
    (r"has (?:twice|\d+ times) as many \w+ as (?P<who>\w+)", "*", "/"),
    (r"has an? \w+ as many \w+ as (?P<who>\w+)|has half as many \w+ as (?P<who2>\w+)", "/", "*"),
    (r"buys|finds|wins|\bto (?P<who>\w+)|as a gift", "+", "-"),
    (r"loses|sells|takes away|throws away", "-", "-"),
    (r"trades every|For each", "*", "*"),
    (r"shares all|packs all|keeps only|trades all", "/", "/"),
)


def test_each_sentence_tells_its_operation():
    """An independent reading of the sentences: what a relation does depends on which of the two persons is known."""
    seen = Counter()
    for problem in StoryProblems(8, 900, (3,)):
        first, *sentences, question = re.split(r"(?<=[.?]) ", problem.question)
        known = next(name for name in WOMEN + MEN if re.search(rf"\b{name}\b", first))
        for sentence, (kind, _) in zip(sentences, solve(problem)[1], strict=True):
            match, forward, backward = next(
                (match, *kinds) for cue, *kinds in CUES if (match := re.search(cue, sentence))
            )
            base = next((name for name in match.groupdict().values() if name), known)
            expected = forward if base == known else backward
            assert kind == expected, (known, sentence)
            seen[kind] += 1
            others = [name for name in WOMEN + MEN if re.search(rf"\b{name}\b", sentence) and name != known]
            if others and (" has " in sentence or "one of them" in sentence):
                known = others[0]
        assert re.search(rf"\b{known}\b", question)
    assert min(seen.values()) > 200


def test_names_things_and_wordings_vary():
    assert len(WOMEN + MEN) >= 15 and len(THINGS) >= 12 and all(len(told) >= 4 for told in _WORDINGS.values())
    questions = [problem.question for problem in StoryProblems(0, 2000)]
    text = " ".join(questions)
    assert all(
        re.search(rf"\b{word}\b", text) for word in [*WOMEN, *MEN, *THINGS, *TIMES.values(), *FRACTIONS.values()]
    )
    assert len(set(questions)) > 1995


def test_splits_share_no_function():
    splits = {split: {solve(p) for p in StoryProblems(7, 1500, (1, 2), split)} for split in get_args(Split)}
    for one in splits:
        assert len(splits[one]) > 900
        assert not any(splits[one] & splits[other] for other in splits if other != one)
    tests = [k for k in range(2, 40) if split_of(12, (Operation("+", k),)) == "test"]
    assert tests == [
        3,
        5,
        14,
        15,
        23,
        25,
        26,
        27,
        30,
        31,
    ]  # another hash would move test problems into the training of older checkpoints


def test_pure_and_random_access():
    problems = StoryProblems(3, 40, (1, 3))
    assert problems[17] == StoryProblems(3, 1000, (1, 3))[17] == story_problem(3, 17, 3, "train")
    assert problems[17] != StoryProblems(4, 40, (1, 3))[17]
    short = problems.filtered(lambda problem: len(problem.question) < 150)
    assert [len(problem.steps) for problem in short] == [len(problem.steps) for problem in problems]
    assert max(len(problem.question) for problem in short) < 150 <= max(len(problem.question) for problem in problems)
    kept = [index for index, problem in enumerate(problems) if len(problem.question) < 150]
    assert kept and all(short[index] == problems[index] for index in kept)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"operations": ()}, "operations"),
        ({"operations": (0,)}, "operations"),
        ({"operations": (5,)}, "from 1 to 4"),
        ({"count": 0}, "count"),
        ({"distractors": 5}, "from 0 to 4"),
        ({"largest": 8}, "largest_number must be from 9 to 999"),
        ({"largest": 29}, "leave 1 out of operations, or raise largest_number to at least 30"),
        ({"largest": 1000}, "largest_number must be from 9 to 999"),
    ],
)
def test_bad_settings(arguments, named):
    with pytest.raises(UserError, match=named):
        StoryProblems(**{"seed": 0, "count": 10, **arguments})
