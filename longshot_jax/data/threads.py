"""Generated problems of several independent chains: K chains of L operations in one question, all K results asked.

    a=3 b=a+4 c=b*7 d=5 e=d+1 f=e*3 c,f?        threads (7, 9), (6, 8)        answer 9,8

A chain and its splits are those of `data.chains`; a question holds only chains of its own split, so no asked function
of a test question was seen in training. What parallel trajectories could gain is depth: the chains do not read one
another, so K trajectories of L thoughts suffice where one trajectory needs K · L.

With crossings the chains are not independent: at those operations each adds the next chain's result of the operation
before, which is a step of its own. The statements follow one another operation by operation.

    a=3 d=5 b=a+4 e=d*3 c=b+e f=e+b c,f?        crossing at operation 2: threads (7, 5, 2), (5, 7, 2)
"""

import numpy as np

from longshot_jax.data.chains import MAX_OPERATIONS, OPERATIONS, SPLITS, Split, apply_operation, draw_chain, split_of
from longshot_jax.data.problems import GeneratedProblems, Problem
from longshot_jax.errors import UserError

NAMES = "abcdefghijklmnopqrstuvwxyz"
_MOST_CROSSING = 4  # validation problems of four chains take 60 ms each, of six a minute
# Tokens: 26 names, 10 digits, `=+*?,`, and `#` for COCONUT's `###`. White space is dropped.
THREAD_WORDS = (*NAMES, *"0123456789", *"=+*?,#")


def thread_problem(
    seed: int,
    index: int,
    threads: int,
    operations: int,
    split: Split,
    interleaved: bool = False,
    together: bool = False,
    crossings: tuple[int, ...] = (),
) -> Problem:
    """Problem `index` of the stream `seed`, a pure function of its arguments; K (5 L + 5) prompt tokens.

    Args:
      threads, operations: K and L; K (L + 1) must not exceed the 26 names.
      interleaved: mix the statements of the chains, each chain's in its order.
      together: each step holds the values of all chains after one operation (`7,6`), for one trajectory that holds all
        chains in each thought. Without it the steps of the chains follow one another.
      crossings: operations, from 2, at which each chain adds the next one's result. A crossing counts as the addition
        of that number when the split of a chain is told.
    """
    rng = np.random.default_rng((seed, index, threads, operations, SPLITS.index(split), interleaved))
    names = [NAMES[choice] for choice in rng.permutation(len(NAMES))]
    if crossings:
        chains = _crossing_chains(rng, threads, operations, split, crossings)
    else:
        chains = [draw_chain(rng, operations, split) for _ in range(threads)]
    owned = [names[thread * (operations + 1) : (thread + 1) * (operations + 1)] for thread in range(threads)]
    statements, values = [], []
    for thread, (own, (start, chain)) in enumerate(zip(owned, chains, strict=True)):
        lines, results, value = [f"{own[0]}={start}"], [], start
        for position, operation in enumerate(chain, start=1):
            value = apply_operation(operation, value)
            if position in crossings:
                results.append(operation[1:])
                operation = f"+{owned[(thread + 1) % threads][position - 1]}"
            results.append(str(value))
            lines.append(f"{own[position]}={own[position - 1]}{operation}")
        statements.append(lines)
        values.append(tuple(results))
    asked = [own[-1] for own in owned]
    order = np.repeat(np.arange(threads), operations + 1)
    if crossings:
        order = np.tile(np.arange(threads), operations + 1)
    elif interleaved:
        order = rng.permutation(order)
    lines = [iter(thread) for thread in statements]
    question = " ".join([*(next(lines[thread]) for thread in order), f"{','.join(asked)}?"])
    in_order = [",".join(step) for step in zip(*values, strict=True)] if together else [v for t in values for v in t]
    return Problem(question, tuple(in_order), ",".join(thread[-1] for thread in values), tuple(values))


def _crossing_chains(
    rng: np.random.Generator, threads: int, operations: int, split: Split, crossings: tuple[int, ...]
) -> list[tuple[int, list[str]]]:
    """Starts and operations of chains, all of the split, with a crossing as the addition that it comes to."""
    while True:
        starts = [int(start) for start in rng.integers(10, size=threads)]
        drawn = [
            [OPERATIONS[choice] for choice in row] for row in rng.integers(len(OPERATIONS), size=(threads, operations))
        ]
        values = starts
        for position in range(operations):
            if position + 1 in crossings:
                for thread, chain in enumerate(drawn):
                    chain[position] = f"+{values[(thread + 1) % threads]}"
            values = [apply_operation(chain[position], value) for chain, value in zip(drawn, values, strict=True)]
        chains = list(zip(starts, drawn, strict=True))
        if all(split_of(start, chain) == split for start, chain in chains):
            return chains


class ThreadProblems(GeneratedProblems):
    """`count` problems, generated on access; the numbers of chains alternate through `threads`.

    Raises UserError, starting with the name of the setting, for numbers out of range.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        threads: tuple[int, ...],
        operations: tuple[int, ...],
        split: Split = "train",
        interleaved: bool = False,
        together: bool = False,
        crossings: tuple[int, ...] = (),
    ):
        if not threads or min(threads) < 1:
            raise UserError(f"threads must name numbers of chains of 1 or more, not {threads}")
        if not operations or not 1 <= min(operations) <= max(operations) <= MAX_OPERATIONS:
            raise UserError(f"operations must be from 1 to {MAX_OPERATIONS}, not {operations}")
        names = max(threads) * (max(operations) + 1)
        if names > len(NAMES):
            raise UserError(
                f"threads {max(threads)} of {max(operations)} operations need {names} names, and there are {len(NAMES)}: "
                "give fewer or shorter chains"
            )

        if crossings and (interleaved or min(threads) < 2 or max(threads) > _MOST_CROSSING):
            raise UserError(
                f"crossings need problems of 2 to {_MOST_CROSSING} chains, not {threads}, whose statements are not interleaved; "
                "more chains, all of one split, would take minutes to draw"
            )
        if crossings and not 2 <= min(crossings) <= max(crossings) <= min(operations):
            raise UserError(
                f"crossings {crossings} must name operations after the first of every chain: the shortest has {min(operations)}"
            )

        def problem(index: int) -> Problem:
            chains = threads[index % len(threads)], operations[index // len(threads) % len(operations)]
            return thread_problem(seed, index, *chains, split, interleaved, together, crossings)

        super().__init__(count, problem, stride=count * len(threads) * len(operations))
