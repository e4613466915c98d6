"""The generated task: chains of operations modulo 10.

    b=3 d=b+4 a=d*7 a?        steps 7, 9        answer 9

A start value, then k operations, each on the previous variable: +1 ... +9, *3, *7, *9. All are invertible modulo 10, so
the answer is uniform given any part of the chain, and guessing scores 10 %.

Train, validation and test are disjoint *as functions*: without its variable names a problem is a start value and k
operations, and a hash of these fixes its split (a fifth is test, a tenth validation). k = 1 has only 120 functions: 20
are test, two with each answer, 10 are validation, and a test set repeats them under other names. k = 4 has 207,360. A
test chain shares parts with training chains, never the whole function.

Distractors are statements after the chain about further variables, computed from earlier ones but never from the asked
variable. They make all prompts equally long, so the end of the chain has to be read from the asked name, or from the
first statement that does not use the variable before it.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from longshot_jax.data.problems import GeneratedProblems, Problem
from longshot_jax.errors import UserError
from longshot_jax.files import check_own, write_text

Split = Literal["train", "validation", "test"]

NAMES = "abcdefghijklmn"
OPERATIONS = ("+1", "+2", "+3", "+4", "+5", "+6", "+7", "+8", "+9", "*3", "*7", "*9")
MAX_OPERATIONS = 9
_SHARES = 10  # a hash falls into one of ten: two are test, one is validation
SPLITS: tuple[Split, ...] = ("train", "test", "validation")  # numbered in the seeds of the streams
# Tokens: 14 names, 10 digits, `=+*?`, and `#` for COCONUT's `###`. White space is dropped.
CHAIN_WORDS = (*NAMES, *"0123456789", *"=+*?#")


def split_of(start: int, operations: Sequence[str]) -> Split:
    """The split of a function such as 3, ("+4", "*7"); the same on every machine and in every version."""
    if len(operations) == 1:
        return _single_step_splits().get((start, operations[0]), "train")
    return hashed_split(_name(start, operations))


def hashed_split(function: str) -> Split:
    """The split of a generated problem, from the text that names its function."""
    place = _hash(function) % _SHARES
    return "test" if place in (0, 5) else "validation" if place == 1 else "train"


@functools.cache
def _single_step_splits() -> dict[tuple[int, str], Split]:
    """Held-out functions of one operation: of the 12 with each answer, 2 are test and 1 is validation.

    A hash alone makes some answers three times as frequent as others here, so guessing would score above 10 %.
    """
    chosen: dict[tuple[int, str], Split] = {}
    for answer in range(10):
        same = [(x, name) for x in range(10) for name in OPERATIONS if apply_operation(name, x) == answer]
        same.sort(key=lambda function: _hash(_name(function[0], function[1:])))
        chosen |= {same[0]: "test", same[1]: "test", same[2]: "validation"}
    return chosen


def _name(start: int, operations: Sequence[str]) -> str:
    return " ".join(["chains", str(start), *operations])


def _hash(function: str) -> int:
    return int.from_bytes(hashlib.sha256(function.encode()).digest()[:8], "big")


def chain_problem(seed: int, index: int, operations: int, split: Split, distractors: int = 0) -> Problem:
    """Problem `index` of the stream `seed`, a pure function of its arguments; 5 (k + distractors) + 5 prompt tokens.

    `operations` is k, 1 to 9; k + 1 + distractors must not exceed the 14 names.
    """
    rng = np.random.default_rng((seed, index, operations, distractors, SPLITS.index(split)))
    start, chain = draw_chain(rng, operations, split)
    names = [NAMES[choice] for choice in rng.permutation(len(NAMES))]
    value, steps = start, []
    statements = [f"{names[0]}={start}"]
    for position, operation in enumerate(chain, start=1):
        statements.append(f"{names[position]}={names[position - 1]}{operation}")
        value = apply_operation(operation, value)
        steps.append(str(value))
    for position in range(operations + 1, operations + distractors + 1):
        others = [*names[:operations], *names[operations + 1 : position]]
        source, operation = (others[int(rng.integers(len(others)))], OPERATIONS[int(rng.integers(len(OPERATIONS)))])
        statements.append(f"{names[position]}={source}{operation}")
    return Problem(" ".join([*statements, f"{names[operations]}?"]), tuple(steps), steps[-1])


def draw_chain(rng: np.random.Generator, operations: int, split: Split) -> tuple[int, list[str]]:
    """A start and that many operations whose function is of the split."""
    while True:
        start = int(rng.integers(10))
        chain = [OPERATIONS[choice] for choice in rng.integers(len(OPERATIONS), size=operations)]
        if split_of(start, chain) == split:
            return start, chain


class ChainProblems(GeneratedProblems):
    """`count` chains, generated on access; their lengths alternate through `operations`.

    If `distractors` is not 0, the longest chains have that number and a shorter chain one more for each operation that
    it lacks, so that all prompts are equally long. Raises UserError for numbers out of range.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        operations: tuple[int, ...] = (1, 2, 3, 4),
        split: Split = "train",
        distractors: int = 0,
    ):
        if not operations:
            raise UserError("operations names no chain length: give at least one from 1 to 9")
        longest = max(operations)
        for length in operations:
            if not 1 <= length <= MAX_OPERATIONS:
                raise UserError(f"operations must be from 1 to {MAX_OPERATIONS}, not {length}")
        if not 0 <= distractors <= len(NAMES) - 1 - longest:
            most = len(NAMES) - 1 - longest
            raise UserError(f"distractors must be from 0 to {most} beside {longest} operations, not {distractors}")

        def problem(index: int) -> Problem:
            length = operations[index % len(operations)]
            return chain_problem(seed, index, length, split, distractors + longest - length if distractors else 0)

        super().__init__(count, problem, stride=count)

    def filtered(self, wanted: Callable[[Problem], bool], fault: str = "") -> "ChainProblems":
        """The same: chains of one length have equally many tokens, so the first ones tell of all, and no later one is checked."""
        return self


def write_chains(path: str | Path, operations: int, count: int, seed: int, distractors: int = 0) -> None:
    """Writes `count` test chains to `path` in COCONUT's JSON form, which `load_problems` reads.

    Raises UserError if a count is out of range or the file cannot be written.
    """
    problems = ChainProblems(seed, count, (operations,), "test", distractors)
    rows = [{"question": p.question, "steps": list(p.steps), "answer": p.answer} for p in problems]
    text = json.dumps(rows)
    check_own(Path(path), text.__eq__, "the test file")
    write_text(path, text, advice="choose another folder")


def apply_operation(operation: str, value: int) -> int:
    """The result of an operation such as `+4` or `*7` on a value, modulo 10."""
    operand = int(operation[1:])
    return (value + operand if operation[0] == "+" else value * operand) % 10
