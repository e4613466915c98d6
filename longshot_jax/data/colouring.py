"""A generated task with many right answers: a colouring of a graph with three colours.

    ba ca cb da db?        steps 2, 1, 3, 3        answer 2133

The question lists the edges of a connected graph of V nodes, `a` to the V-th letter, and 3 V // 2 edges; each step is the
colour of one node, in order, and the answer all colours. Every colouring in which no edge joins two equal colours is right,
whichever of them the problem states: `grade` checks the edges, of a file's problems too where `data.train` is `colouring`.
The stated one is drawn evenly from all. There are at least twelve, so two that are not the same with other names of the
colours. Votes count equal answers, and right ones differ.

Splits are disjoint *as graphs*: what a hash reads is the same under every renaming of the nodes, so no test graph is one of
training with other names. Problem `index` is always the same, so `data.generated_train` is the number of different problems.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from longshot_jax.data.chains import SPLITS, Split, hashed_split
from longshot_jax.data.grading import extract_answer
from longshot_jax.data.problems import GeneratedProblems, Problem
from longshot_jax.errors import UserError, shown

NAMES = "abcdefghi"
COLOURS = "123"
_FEWEST = 12  # colourings
_KEPT = 1 << 14  # problems, each of which takes about a millisecond to make
Edges = list[tuple[int, int]]
# Tokens: 9 names, 3 colours, `?`, and `#` for COCONUT's `###`. White space is dropped.
COLOURING_WORDS = (*NAMES, *COLOURS, *"?#")


@dataclass(frozen=True)
class ColouringProblem(Problem):
    """A problem whose answer may be any proper colouring."""

    def grade(self, answer: str) -> float:
        """1 for a colour of each node, without anything between, where all edges join different colours; else 0."""
        edges, colours = edges_of(self.question), extract_answer(answer)
        fits = len(colours) == 1 + max(map(max, edges)) and set(colours) <= set(COLOURS)
        return float(fits and all(colours[one] != colours[other] for one, other in edges))


def edges_of(question: str) -> Edges:
    """The edges that a question lists, by the nodes' indices; a UserError if it lists none."""
    pairs = question.removesuffix("?").split(" ")
    if not question.endswith("?") or not all(len(pair) == 2 and set(pair) <= set(NAMES) for pair in pairs):
        raise UserError(f"{shown(question, 60)} lists no edges: write a graph as `ba ca cb?`")
    return [(NAMES.index(one), NAMES.index(other)) for one, other in pairs]


def as_colouring(problem: Problem, place: str) -> ColouringProblem:
    """A problem of a file, graded by its edges; a UserError that names `place` if the question lists none
    or the answer is not right."""
    made = ColouringProblem(problem.question, problem.steps, problem.answer)
    try:
        right = made.grade(made.answer)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if not right:
        raise UserError(
            f"{place}: the answer {shown(made.answer, 40)} to {shown(made.question, 60)} is no proper colouring"
        )
    return made


@functools.cache
def _all_colourings(nodes: int) -> Int[np.ndarray, "many nodes"]:
    return np.array(list(itertools.product(range(len(COLOURS)), repeat=nodes)), np.int8)


def graph_name(nodes: int, edges: Edges) -> str:
    """A text that is the same for the same graph with other names, by colour refinement; some different graphs share it."""
    neighbours: list[list[int]] = [[] for _ in range(nodes)]
    for one, other in edges:
        neighbours[one].append(other)
        neighbours[other].append(one)
    kinds = [0] * nodes
    for _ in range(nodes):
        seen = [(kinds[node], *sorted(kinds[near] for near in neighbours[node])) for node in range(nodes)]
        kinds = [sorted(set(seen)).index(each) for each in seen]
    return f"colouring {sorted(seen)}"


def colouring_problem(seed: int, index: int, nodes: int, split: Split) -> ColouringProblem:
    """Problem `index` of the stream `seed`, a pure function of its arguments; 2 (3 V // 2) + 1 prompt tokens."""
    rng = np.random.default_rng((seed, index, nodes, SPLITS.index(split)))
    pairs = [(later, earlier) for later in range(nodes) for earlier in range(later)]
    while True:
        order = rng.permutation(nodes)
        tree = {(order[place], order[rng.integers(place)]) for place in range(1, nodes)}
        edges = {(max(pair), min(pair)) for pair in tree}
        others = [pair for pair in pairs if pair not in edges]
        extra = rng.permutation(len(others))[: 3 * nodes // 2 - len(edges)]
        chosen = sorted([*((int(a), int(b)) for a, b in edges), *(others[place] for place in extra)])
        table, (ones, others) = _all_colourings(nodes), np.transpose(chosen)
        right = table[(table[:, ones] != table[:, others]).all(axis=1)]
        if len(right) >= _FEWEST and hashed_split(graph_name(nodes, chosen)) == split:
            break
    colours = tuple(COLOURS[colour] for colour in right[rng.integers(len(right))])
    question = " ".join(NAMES[later] + NAMES[earlier] for later, earlier in chosen)
    return ColouringProblem(f"{question}?", colours, "".join(colours))


class ColouringProblems(GeneratedProblems):
    """`count` problems, generated on access; their numbers of nodes alternate through `nodes`.

    Raises UserError, starting with the name of the setting, for numbers out of range.
    """

    def __init__(self, seed: int, count: int, nodes: tuple[int, ...] = (8,), split: Split = "train"):
        if not nodes or not 7 <= min(nodes) <= max(nodes) <= len(NAMES):
            raise UserError(f"nodes must name numbers of nodes from 7 to {len(NAMES)}, not {nodes}")

        @functools.lru_cache(maxsize=_KEPT)
        def problem(index: int) -> Problem:
            return colouring_problem(seed, index, nodes[index % len(nodes)], split)

        super().__init__(count, problem, stride=count * len(nodes))
