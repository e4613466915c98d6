"""Which steps of a problem can be taken at the same time: threads, and the steps that need results of several.

Threads that a problem states are taken as they are. Otherwise equations tell them by which results are used again:

    48/2=24   8*3=24   ->   two threads
    24+24=48           ->   a joint step, because it uses the results of both

A step that uses results of one thread alone goes on with it. A step that uses those of several, and all that use its
result, are joint: they are written in the joined answer, which reads all threads, whatever the stage. A number that is an
earlier result by chance counts as that result, which makes fewer threads. A result that is used rounded is not recognised.
"""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError

_EQUATION = re.compile(r"(?:<<)?(?P<left>[^=<>a-zA-Z]+)=(?P<right>[^=<>]+)(?:>>)?")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
_MOST_DIGITS = 30


class ParallelSteps(NamedTuple):
    """The threads of a problem, at least one, and its joint steps."""

    threads: tuple[tuple[str, ...], ...]
    joint: tuple[str, ...] = ()


def parallel_steps(problem: Problem, trajectories: int) -> ParallelSteps:
    """The steps of a problem for `trajectories` trajectories; without threads or equations its steps are one thread.

    Equations with more threads than trajectories have the shortest ones one after the other in one trajectory. Raises a
    UserError for a problem that states more.
    """
    if len(problem.threads) > trajectories:
        raise UserError(
            f"a problem has {len(problem.threads)} threads, but config.thoughts.roles is {trajectories}: train with more, or "
            f"leave out problems such as {problem.question[:60]!r} (a task that is generated may have a parameter for it)."
        )
    if problem.threads:
        stated = Counter(step for thread in problem.threads for step in thread)
        # Steps that are told in another way, such as the values of all threads at once, are not those of the threads.
        rest = [] if stated - Counter(problem.steps) else list(problem.steps)
        for step in stated.elements() if rest else ():
            rest.remove(step)
        return ParallelSteps(problem.threads, tuple(rest))
    threads, joint = _graph(problem.steps)
    while len(threads) > trajectories:
        shortest, other = sorted(threads, key=len)[:2]
        threads = [thread for thread in threads if thread is not shortest and thread is not other]
        threads.append(sorted(shortest + other))
    steps = problem.steps
    if len(threads) == 1:
        return ParallelSteps((steps,))
    return ParallelSteps(
        tuple(tuple(steps[number] for number in thread) for thread in sorted(threads)),
        tuple(steps[number] for number in joint),
    )


def _numbers(text: str) -> list[Fraction]:
    return [Fraction(found.replace(",", "")[:_MOST_DIGITS]) for found in _NUMBER.findall(text)]


def _graph(steps: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Numbers of the steps of each thread, and of the joint steps."""
    equations = [_EQUATION.fullmatch(step.strip()) for step in steps]
    threads: list[list[int]] = []
    joint: list[int] = []
    results: list[Fraction] = []
    for number, equation in enumerate(equations):
        if equation is None or not (told := _numbers(equation["right"])):
            return [list(range(len(steps)))], []
        used = set()
        for operand in _numbers(equation["left"]):
            # Of equal results the latest that the equation does not use yet.
            places = [place for place, result in enumerate(results) if result == operand]
            used.update(next(([place] for place in reversed(places) if place not in used), places[-1:]))
        results.append(told[-1])
        needed = [thread for thread in threads if used.intersection(thread)]
        if used.intersection(joint) or len(needed) > 1:
            joint.append(number)
        elif needed:
            needed[0].append(number)
        else:
            threads.append([number])
    return threads or [[]], joint
