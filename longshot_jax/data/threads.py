"""Generated problems of several independent chains: K chains of L operations in one question, all K results asked.

    a=3 b=a+4 c=b*7 d=5 e=d+1 f=e*3 c,f?        threads (7, 9), (6, 8)        answer 9,8

A chain and its splits are those of `data.chains`; a question holds only chains of its own split, so no asked function
of a test question was seen in training. What parallel trajectories could gain is depth: the chains do not read one
another, so K trajectories of L thoughts suffice where one trajectory needs K · L.
"""

import numpy as np

from longshot_jax.data.chains import MAX_OPERATIONS, SPLITS, Split, apply_operation, draw_chain
from longshot_jax.data.problems import GeneratedProblems, Problem
from longshot_jax.errors import UserError

NAMES = "abcdefghijklmnopqrstuvwxyz"


def thread_words() -> list[str]:
    """The tokens: 26 names, 10 digits, `=+*?,`, and `#` for COCONUT's `###`. White space is dropped."""
    return [*NAMES, *"0123456789", *"=+*?,#"]


def thread_problem(
    seed: int,
    index: int,
    threads: int,
    operations: int,
    split: Split,
    interleaved: bool = False,
    together: bool = False,
) -> Problem:
    """Problem `index` of the stream `seed`, a pure function of its arguments; K (5 L + 5) prompt tokens.

    Args:
      threads, operations: K and L; K (L + 1) must not exceed the 26 names.
      interleaved: mix the statements of the chains, each chain's in its order.
      together: `steps` are L, each with the values of all chains (`7,6`), instead of K · L in sequence. For one
        trajectory that has to hold all chains in each thought.
    """
    rng = np.random.default_rng((seed, index, threads, operations, SPLITS.index(split), interleaved))
    names = [NAMES[choice] for choice in rng.permutation(len(NAMES))]
    statements, asked, values = [], [], []
    for thread in range(threads):
        own = names[thread * (operations + 1) : (thread + 1) * (operations + 1)]
        start, chain = draw_chain(rng, operations, split)
        lines, results, value = [f"{own[0]}={start}"], [], start
        for position, operation in enumerate(chain, start=1):
            lines.append(f"{own[position]}={own[position - 1]}{operation}")
            value = apply_operation(operation, value)
            results.append(str(value))
        statements.append(lines)
        asked.append(own[-1])
        values.append(tuple(results))
    order = np.repeat(np.arange(threads), operations + 1)
    if interleaved:
        order = rng.permutation(order)
    lines = [iter(thread) for thread in statements]
    question = " ".join([*(next(lines[thread]) for thread in order), f"{','.join(asked)}?"])
    in_order = [",".join(step) for step in zip(*values, strict=True)] if together else [v for t in values for v in t]
    return Problem(question, tuple(in_order), ",".join(thread[-1] for thread in values), tuple(values))


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

        def problem(index: int) -> Problem:
            chains = threads[index % len(threads)], operations[index // len(threads) % len(operations)]
            return thread_problem(seed, index, *chains, split, interleaved, together)

        super().__init__(count, problem, stride=count * len(threads) * len(operations))
