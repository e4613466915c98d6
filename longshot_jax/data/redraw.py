"""Problems with their numbers drawn anew: a few thousand templates give unlimited problems.

A problem can be redrawn if its steps are equations of whole numbers that are never negative and end in the answer, and
each number of them is either the result of one earlier step or stands exactly once in the question, in digits (so a
constant, such as the 60 of an hour, rules it out: its meaning would be lost). A 2 stays: two halves, people or groups may be meant
without a word for it. New numbers have as many digits as the old ones, results at most as many, and all are whole and positive
where the old ones were. Where no draw meets this, or the problem
does not fit, the problem stays as it is.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import SupportsIndex

import numpy as np

from longshot_jax.data.equations import evaluate, from_infix
from longshot_jax.data.problems import Problem, question_key
from longshot_jax.errors import UserError

_NUMBER = re.compile(r"(?<![\w.,/-])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w%/-])")
_DIGITS = re.compile(r"\d+")
_STEP = re.compile(r"(?P<open><<)?(?P<left>[\d+*/() -]+)=(?P<right>\d+)(?P<close>>>)?")
# Words that may stand for a number of an equation, so that its digits elsewhere in the question may not.
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred"
_WORDS = {word: value for value, word in enumerate(_UNITS.split())} | {
    word: 10 * tens for tens, word in enumerate(_TENS.split(), start=2)
} | {
    "twice": 2, "double": 2, "half": 2, "halves": 2, "pair": 2, "pairs": 2, "couple": 2, "couples": 2, "both": 2,
    "thrice": 3, "triple": 3, "triples": 3, "tripled": 3, "tripling": 3, "third": 3, "thirds": 3, "trio": 3, "triplets": 3,
    "quadruple": 4, "quadruples": 4, "quadrupled": 4, "quadrupling": 4, "quarter": 4, "quarters": 4, "fourth": 4,
    "fifth": 5, "weekday": 5, "weekdays": 5, "sixth": 6,
    "week": 7, "weeks": 7, "weekly": 7, "tenth": 10, "thousand": 1000, "dozen": 12, "dozens": 12, "year": 12, "years": 12,
}  # fmt: skip
_ATTEMPTS = 200
_TEMPLATES = 2**14


@dataclass(frozen=True)
class Template:
    """A problem whose numbers can be drawn anew.

    Attributes:
      places: spans of the drawn numbers in the question. values: these numbers.
      steps: of each step, the text between its numbers, their sources, and its result. A source below `len(values)` is
        that drawn number, one from there on a result.
    """

    problem: Problem
    places: tuple[tuple[int, int], ...]
    values: tuple[int, ...]
    steps: tuple[tuple[tuple[str, ...], tuple[int, ...], int], ...]

    def redrawn(self, rng: np.random.Generator) -> Problem | None:
        """The problem with other numbers; None if none of 200 draws has whole results of the old ones' size."""
        for _ in range(_ATTEMPTS):
            numbers = [_like(value, rng) for value in self.values]
            steps = []
            for texts, sources, old in self.steps:
                left = texts[0] + "".join(
                    f"{numbers[source]}{text}" for source, text in zip(sources, texts[1:], strict=True)
                )
                try:
                    result = evaluate(from_infix(left.removeprefix("<<")))
                except ZeroDivisionError:
                    break
                if result.denominator != 1 or not (old > 0) <= result < 10 ** len(str(old)):
                    break
                numbers.append(result.numerator)
                steps.append(f"{left}={result}{'>>' * left.startswith('<<')}")
            else:
                question, end = "", 0
                for (start, stop), number in zip(self.places, numbers, strict=False):
                    old = self.problem.question[start:stop]
                    question += self.problem.question[end:start] + (f"{number:,}" if "," in old else str(number))
                    end = stop
                question += self.problem.question[end:]
                return replace(self.problem, question=question, steps=tuple(steps), answer=str(numbers[-1]))
        return None


def _like(value: int, rng: np.random.Generator) -> int:
    """A number with as many digits; 0, 1 and 2 stay, and others become neither 0 nor 1, which have words of their own."""
    digits = len(str(value))
    return value if value <= 2 else int(rng.integers(max(10 ** (digits - 1), 2), 10**digits))


@lru_cache(maxsize=_TEMPLATES)
def template_of(problem: Problem) -> Template | None:
    """The template of a problem; None if its numbers cannot be drawn anew."""
    found = list(_NUMBER.finditer(problem.question))
    told = Counter(int(text) for match in found if (text := match[0].replace(",", "")).isdecimal())
    # Digits that are part of something else, such as 4-pack, tell a number without being one that can be drawn.
    told.update(map(int, _DIGITS.findall(_NUMBER.sub(" ", problem.question))))
    told.update(_WORDS[word] for word in re.findall(r"[a-z]+", problem.question.lower()) if word in _WORDS)
    asked: dict[int, tuple[int, int]] = {}
    for match in found:
        text = match[0].replace(",", "")
        if text.isdecimal() and told[int(text)] == 1:
            asked[int(text)] = match.span()
    results: list[int] = []
    rows: list[tuple[tuple[str, ...], list[int], int]] = []
    used: dict[int, None] = {}
    for step in problem.steps:
        match = _STEP.fullmatch(step.strip())
        if match is None or (match["open"] is None) != (match["close"] is None):
            return None
        left, result = match["left"], int(match["right"])
        try:
            if evaluate(from_infix(left)) != result:
                return None
        except (ValueError, ZeroDivisionError):
            return None
        numbers = [int(number) for number in _DIGITS.findall(left)]
        if len(set(numbers)) < len(numbers) or any(
            told[number] + results.count(number) != 1 or (told[number] and number not in asked) for number in numbers
        ):
            return None  # a constant, or one that may come from two places: of two equal ones either may be a constant
        used.update(dict.fromkeys(number for number in numbers if number in asked))
        places = [-1 - results.index(number) if number in results else number for number in numbers]
        texts = _DIGITS.split(left)
        rows.append(((f"{match['open'] or ''}{texts[0]}", *texts[1:]), places, result))
        results.append(result)
    if not rows or problem.threads or problem.answer != str(results[-1]):
        return None
    order = sorted(used, key=lambda value: asked[value])
    sources = {value: place for place, value in enumerate(order)}
    sources |= {-1 - place: len(order) + place for place in range(len(results))}
    steps = tuple((texts, tuple(sources[place] for place in places), result) for texts, places, result in rows)
    return Template(problem, tuple(asked[value] for value in order), tuple(order), steps)


class RedrawnProblems(Sequence[Problem]):
    """Training problems that are drawn anew as they are read: `problems[i]` is the original, `redrawn` another.

    `held_out` are the `question_key`s that no problem becomes. Raises UserError if none can be redrawn; `source` names
    them in it.
    """

    def __init__(
        self, problems: Sequence[Problem], source: str, seed: int, probability: float, held_out: Iterable[bytes] = ()
    ):
        if not any(template_of(problem) for problem in problems):
            raise UserError(
                f"config.data.redraw is {probability}, but no problem of {source} has equations whose numbers stand in its "
                "question: set it to 0, or give problems with equations."
            )
        self.problems, self.seed, self.probability = problems, seed, probability
        self.held_out = frozenset(held_out)
        self._wanted: tuple[Callable[[Problem], bool], ...] = (lambda other: question_key(other) not in self.held_out,)

    def filtered(self, wanted: Callable[[Problem], bool]) -> "RedrawnProblems":
        """The same, of which redrawn problems that are not wanted stay the original ones."""
        chosen = copy(self)
        chosen._wanted = (*self._wanted, wanted)
        return chosen

    def redrawn(self, place: int, problem: Problem) -> Problem:
        """What is read at a place of the stream where the original is `problem`: a function of seed and place."""
        rng = np.random.default_rng((self.seed, place, 77))
        template = template_of(problem) if rng.random() < self.probability else None
        other = template.redrawn(rng) if template else None
        return other if other is not None and all(wanted(other) for wanted in self._wanted) else problem

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: SupportsIndex) -> Problem:  # type: ignore[override]  (no slices)
        return self.problems[index.__index__()]
