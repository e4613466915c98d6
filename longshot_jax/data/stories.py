"""Generated word problems: one to four operations on whole numbers, by default from 0 to 999, told in English.

    Nora has 12 shells. She finds 7 more shells. Ben has twice as many shells as Nora. How many shells does Ben have now?
    steps 12+7=19, 19*2=38      answer 38

A start value, then k operations, each on the value before it. Relations ("twice as many", "5 fewer than") pass the value
on to another person, other wordings ("trades every shell for 3 beads") to another thing, and some relations are told
backwards ("Nora has 5 fewer than Ben"). Steps are equations in the form of GSM8K's (arXiv:2110.14168), or their results alone.

Train, validation and test are disjoint *as functions*, as those of `data.chains`: a hash of start value and operations
fixes the split (a fifth is test, a tenth validation), whatever the names, things and wordings. Distractors are sentences
with a number about another thing.
"""

from typing import NamedTuple

import numpy as np

from longshot_jax.data.chains import SPLITS, Split, hashed_split
from longshot_jax.data.problems import GeneratedProblems, Problem
from longshot_jax.errors import UserError

MAX_OPERATIONS, MAX_DISTRACTORS, SMALLEST_RANGE, LARGEST = 4, 4, 9, 999
FEWEST_FOR_ONE = 30  # with which 180 functions of one operation are for tests
WOMEN = "Ada Nora Mia Lucy Emma Olga Ruth Zoe Ines Clara Maya Tina".split()
MEN = "Ben Tom Omar Leo Hugo Ivan Paul Sam Noah Felix Adam Kofi".split()
THINGS = {  # plural: singular
    one + "s": one
    for one in "apple marble shell sticker coin pencil button card stamp cookie book ribbon bead stone token".split()
}
CONTAINERS = ("boxes", "bags", "jars", "baskets")
FACTORS = range(2, 10)
FRACTIONS = dict(
    zip(FACTORS, "half|a third|a quarter|a fifth|a sixth|a seventh|an eighth|a ninth".split("|"), strict=True)
)
TIMES = {2: "twice", **{factor: f"{factor} times" for factor in FACTORS if factor > 2}}
_DIGITS = ((2, 10), (10, 100), (100, LARGEST + 1))  # ranges of starts, of what is added and of what is taken away
_DIGIT_SHARES = (0.4, 0.5, 0.1)

# {A} is the person of the last sentence (by name, or "She" at the start of a sentence), {a} the same by name, {B} someone
# new, {t} the things and {one} one of them, {u} other things, {c} containers. The value then belongs to {B} where the
# wording is marked "B", and counts {u} or {c} where it is marked so.
_START = (
    "{A} has {n} {t}.",
    "{A} starts with {n} {t}.",
    "There are {n} {t} in {A}'s drawer.",
    "{A} collected {n} {t}.",
)
_WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "+": (
        ("{A} buys {n} more {t}.", ""),
        ("{A} finds {n} more {t}.", ""),
        ("{A} wins {n} {t} in a game.", ""),
        ("{B} gives {n} {t} to {a}.", ""),
        ("{A} gets {n} {t} as a gift.", ""),
        ("{B} has {n} more {t} than {a}.", "B"),
        ("{A} has {n} fewer {t} than {B}.", "B"),
    ),
    "-": (
        ("{A} gives {n} {t} to {B}.", ""),
        ("{A} loses {n} {t}.", ""),
        ("{A} sells {n} of the {t}.", ""),
        ("{B} takes away {n} of {a}'s {t}.", ""),
        ("{A} throws away {n} old {t}.", ""),
        ("{B} has {n} fewer {t} than {a}.", "B"),
        ("{A} has {n} more {t} than {B}.", "B"),
    ),
    "*": (
        ("{B} has {times} as many {t} as {a}.", "B"),
        ("{A} trades every {one} for {n} {u}.", "u"),
        ("For each {one}, {a} gets {n} {u}.", "u"),
        ("Soon {a} has {times} as many {t} as before.", ""),
        ("{A} has {fraction} as many {t} as {B}.", "B"),
    ),
    "/": (
        ("{B} has {fraction} as many {t} as {a}.", "B"),
        ("{A} shares all {t} equally among {n} children, and {B} is one of them.", "B"),
        ("{A} packs all {t} into {c}, {n} in each.", "c"),
        ("{A} keeps only {fraction} of the {t}.", ""),
        ("{A} trades all {t} for {u}, at {n} {t} for one.", "u"),
        ("{A} has {times} as many {t} as {B}.", "B"),
    ),
}
_DISTRACTORS = (
    "{A} also has {n} {u}.",
    "{B} has {n} {u}.",
    "{B} is {n} years old.",
    "There are {n} {u} in a shop.",
    "The road to the shop is {n} miles long.",
)
_QUESTIONS = (
    "How many {t} does {a} have now?",
    "How many {t} does {a} have in the end?",
    "What is the number of {t} that {a} has now?",
    "With how many {t} does {a} end up?",
)


class Operation(NamedTuple):
    """One of `+ - * /` and its operand: 2 to 999 for the first two, 2 to 9 for the others."""

    kind: str
    operand: int


def apply_operation(operation: Operation, value: int) -> int:
    """The result of an operation; a division that leaves a remainder is not one of the generator's."""
    kind, operand = operation
    match kind:
        case "+":
            return value + operand
        case "-":
            return value - operand
        case "*":
            return value * operand
    return value // operand


def split_of(start: int, operations: tuple[Operation, ...]) -> Split:
    """The split of a function such as 12, (("+", 7), ("*", 2)); the same on every machine and in every version."""
    return hashed_split(" ".join(["stories", str(start), *(f"{kind}{operand}" for kind, operand in operations)]))


def story_problem(
    seed: int,
    index: int,
    operations: int,
    split: Split,
    distractors: int = 0,
    largest: int = LARGEST,
    equations: bool = True,
) -> Problem:
    """Problem `index` of the stream `seed`, a pure function of its arguments.

    `operations` is k, 1 to 4, `distractors` is 0 to 4, and no value of the story is above `largest`. Steps are
    `equations`, or their results alone.
    """
    rng = np.random.default_rng((seed, index, operations, distractors, SPLITS.index(split)))
    while True:  # until a function of this split is drawn
        start, chain = _function(rng, operations, largest)
        if split_of(start, chain) == split:
            break
    value, steps = start, []
    for operation in chain:
        before, value = value, apply_operation(operation, value)
        steps.append(f"{before}{operation.kind}{operation.operand}={value}" if equations else str(value))
    return Problem(_Teller(rng, largest).tell(start, chain, distractors), tuple(steps), str(value))


def _function(rng: np.random.Generator, operations: int, largest: int) -> tuple[int, tuple[Operation, ...]]:
    start = value = _number(rng, largest)
    chain: list[Operation] = []
    for _ in range(operations):
        factors = [factor for factor in FACTORS if 0 < value * factor <= largest]
        divisors = [factor for factor in FACTORS if value and value % factor == 0]
        possible = [(kind, choices) for kind, choices in (("*", factors), ("/", divisors)) if choices]
        kinds = [*(kind for kind, _ in possible), *("+" * (value <= largest - 2)), *("-" * (value >= 2))]
        kind = kinds[int(rng.integers(len(kinds)))]
        choices = dict(possible).get(kind)
        operand = (
            choices[int(rng.integers(len(choices)))]
            if choices
            else _number(rng, largest - value if kind == "+" else value)
        )
        chain.append(Operation(kind, operand))
        value = apply_operation(chain[-1], value)
    return start, tuple(chain)


def _number(rng: np.random.Generator, most: int) -> int:
    """A number from 2 to `most` with one to three digits, small ones oftener than their share."""
    low, above = _DIGITS[int(rng.choice(len(_DIGITS), p=_DIGIT_SHARES))]
    return int(rng.integers(low, min(above, most + 1))) if low <= most else int(rng.integers(2, most + 1))


class _Teller:
    """Writes the sentences of one story; whose things are counted, and which, changes on the way."""

    def __init__(self, rng: np.random.Generator, largest: int):
        self.rng, self.largest = rng, largest
        self.people: list[str] = rng.permutation(WOMEN + MEN).tolist()
        self.things: list[str] = rng.permutation(list(THINGS)).tolist()
        self.person, self.counted = self.people.pop(), self.things.pop()
        self.alone = False  # the last sentence named only this person, so that a pronoun is clear

    def tell(self, start: int, chain: tuple[Operation, ...], distractors: int) -> str:
        """The question: a start, one sentence an operation, distractors between them, and what is asked."""
        sentences = [self._sentence((self._choice(_START), ""), start)]
        after = self.rng.integers(len(chain) + 1, size=distractors).tolist()
        for place in range(len(chain) + 1):
            if place:
                kind, operand = chain[place - 1]
                packed = self.counted in CONTAINERS
                wordings = [w for w in _WORDINGS[kind] if not packed or ("{one}" not in w[0] and "{c}" not in w[0])]
                sentences.append(self._sentence(wordings[int(self.rng.integers(len(wordings)))], operand))
            for _ in range(after.count(place)):
                sentences.append(
                    self._sentence((self._choice(_DISTRACTORS), ""), _number(self.rng, min(99, self.largest)))
                )
                self.alone = False
        self.alone = False
        return " ".join([*sentences, self._sentence((self._choice(_QUESTIONS), ""), 0)])

    def _choice(self, wordings: tuple[str, ...]) -> str:
        return wordings[int(self.rng.integers(len(wordings)))]

    def _sentence(self, wording: tuple[str, str], number: int) -> str:
        text, then = wording
        new = {"B": self.people[-1], "u": self.things[-1], "c": self._choice(CONTAINERS)}
        pronoun = self.alone and text.startswith("{A}") and self.rng.random() < 0.5
        told = text.format(
            A=("She" if self.person in WOMEN else "He") if pronoun else self.person,
            a=self.person,
            **new,
            t=self.counted,
            one=THINGS.get(self.counted, ""),
            n=number,
            times=TIMES.get(number, ""),
            fraction=FRACTIONS.get(number, ""),
        )
        if "{B}" in text:
            self.people.pop()
        if "{u}" in text:
            self.things.pop()
        if then == "B":
            self.person = new["B"]
        elif then:
            self.counted = new[then]
        self.alone = "{B}" not in text
        return told


class StoryProblems(GeneratedProblems):
    """`count` stories, generated on access; their numbers of operations alternate through `operations`."""

    def __init__(
        self,
        seed: int,
        count: int,
        operations: tuple[int, ...] = (1, 2, 3, 4),
        split: Split = "train",
        distractors: int = 0,
        largest: int = LARGEST,
        equations: bool = True,
    ):
        if not operations:
            raise UserError("operations names no number of operations: give at least one from 1 to 4")
        for length in operations:
            if not 1 <= length <= MAX_OPERATIONS:
                raise UserError(f"operations must be from 1 to {MAX_OPERATIONS} for stories, not {length}")
        if not 0 <= distractors <= MAX_DISTRACTORS:
            raise UserError(f"distractors must be from 0 to {MAX_DISTRACTORS} for stories, not {distractors}")
        if not SMALLEST_RANGE <= largest <= LARGEST:
            raise UserError(f"largest_number must be from {SMALLEST_RANGE} to {LARGEST} for stories, not {largest}")
        if min(operations) == 1 and largest < FEWEST_FOR_ONE:
            raise UserError(
                f"stories of one operation with numbers up to {largest} are too few to test on others than those of "
                f"training: leave 1 out of operations, or raise largest_number to at least {FEWEST_FOR_ONE}"
            )

        def problem(index: int) -> Problem:
            return story_problem(
                seed, index, operations[index % len(operations)], split, distractors, largest, equations
            )

        # What replaces a problem is a multiple of the stride later in the stream, with as many operations.
        super().__init__(count, problem, stride=count * len(operations))
