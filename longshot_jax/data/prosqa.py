"""A generator of problems in the form of ProsQA, the reasoning task of the COCONUT paper (arXiv:2412.06769).

    Every shumpus is a rempus. Alex is a rempus. ... Tom is a terpus. Is Tom a lempus or scrompus?

Two entities are roots of a directed acyclic graph of concepts. Only the asked entity reaches the target, at a given
distance, and only the other one reaches its rival. Both are leaves, so that successors do not distinguish them. The
steps are a shortest chain to the target. Sizes are calibrated to the published validation file: 22.8 nodes and 36.3
statements on average, distances 3 to 6 in its proportions. One departure: the published targets tend to have fewer
incoming statements than their rivals, a shortcut worth about 65 %; here both have the same number if the graph allows
it.
"""

from itertools import pairwise

import numpy as np

from longshot_jax.data.problems import GeneratedProblems, Problem

NAMES = tuple("Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split())
CONCEPTS = tuple(
    "bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus jompus "
    "kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus timpus tumpus "
    "vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus".split()
)
HOPS = {3: 124, 4: 133, 5: 36, 6: 7}  # problems by shortest distance in the published validation file

_NODES_MEAN, _NODES_SPREAD, _NODES_RANGE = 22.6, 1.95, (17, 28)
_EXTRA_ENTITY = 0.035  # probability of a node without parents: a further, uninvolved entity
_PARENTS = (0.40, 0.33, 0.18, 0.065, 0.025)  # proportions of nodes with 1, 2, ... 5 incoming statements
_OWN_SIDE = 0.35  # probability of parents from one root's side only, for each root; otherwise any nodes
_ROOT, _OTHER = 0, 1
_ASKED, _RIVAL = 1, 2  # bits: reached by the asked entity, by the other


def prosqa_problem(seed: int, index: int) -> Problem:
    """Problem `index` of the stream `seed`, a pure function of its arguments.

    The distance to the target (the number of steps) is drawn in the published proportions.
    """
    rng = np.random.default_rng((seed, index))
    total = sum(HOPS.values())
    distance = int(rng.choice(list(HOPS), p=[number / total for number in HOPS.values()]))
    while True:
        graph = _Graph(rng)
        pair = graph.candidates(rng, distance)
        if pair is not None:
            return _in_words(rng, graph, *pair)


class ProsQAProblems(GeneratedProblems):
    """`count` problems, generated on access; see `prosqa_problem`."""

    def __init__(self, seed: int, count: int):
        super().__init__(count, lambda index: prosqa_problem(seed, index), stride=count)


class _Graph:
    """A random graph. Nodes 0 and 1 are the asked and the other entity; every edge points to a later node."""

    def __init__(self, rng: np.random.Generator):
        nodes = int(np.clip(round(rng.normal(_NODES_MEAN, _NODES_SPREAD)), *_NODES_RANGE))
        kinds, pools = rng.random(nodes).tolist(), rng.random(nodes).tolist()
        numbers = (1 + rng.choice(len(_PARENTS), size=nodes, p=_PARENTS)).tolist()
        clocks = rng.exponential(size=(nodes, nodes)).tolist()
        self.parents: list[list[int]] = [[], []]
        self.sides = [_ASKED, _RIVAL]  # bits: the entities that reach each node
        depths = [0, 0]
        for node in range(2, nodes):
            chosen: list[int] = []
            if kinds[node] >= _EXTRA_ENTITY or node == 2:
                # Weighted draw without replacement: the first of exponential clocks whose rates are the weights.
                # Deeper nodes weigh more, otherwise chains of five and six would be rare.
                rings = [(clocks[node][p] / (1.5 * depths[p] + 1.0), p) for p in self._pool(pools[node])]
                chosen = [parent for _, parent in sorted(rings)[: numbers[node]]]
            side = 0
            for parent in chosen:
                side |= self.sides[parent]
            self.parents.append(chosen)
            self.sides.append(side)
            depths.append(1 + max((depths[parent] for parent in chosen), default=-1))

    def _pool(self, draw: float) -> list[int]:
        """The candidates for one node's parents."""
        if draw >= 2 * _OWN_SIDE:
            return list(range(len(self.parents)))
        side = _ASKED if draw < _OWN_SIDE else _RIVAL
        return [node for node, reached in enumerate(self.sides) if reached in (0, side)]

    def distances(self) -> dict[int, int]:
        """Shortest distances from the asked entity to the nodes that it reaches."""
        found = {_ROOT: 0}
        for node, parents in enumerate(self.parents):  # every parent comes before its children
            near = [found[parent] for parent in parents if parent in found]
            if near:
                found[node] = 1 + min(near)
        return found

    def candidates(self, rng: np.random.Generator, distance: int) -> tuple[int, int] | None:
        """A target at `distance` and its rival; None if the graph has no such pair."""
        inner = {parent for parents in self.parents for parent in parents}
        leaves = [node for node in range(2, len(self.parents)) if node not in inner]
        found = self.distances()
        targets = [n for n in leaves if self.sides[n] == _ASKED and found[n] == distance]
        rivals = [n for n in leaves if self.sides[n] == _RIVAL]
        if not targets or not rivals:
            return None
        target = int(rng.choice(targets))
        alike = [n for n in rivals if len(self.parents[n]) == len(self.parents[target])]
        return target, int(rng.choice(alike or rivals))


def _in_words(rng: np.random.Generator, graph: _Graph, target: int, rival: int) -> Problem:
    free_names, free_concepts = rng.permutation(NAMES).tolist(), rng.permutation(CONCEPTS).tolist()
    words = [(free_concepts if parents else free_names).pop() for parents in graph.parents]

    def statement(parent: int, child: int) -> str:
        subject = f"Every {words[parent]}" if graph.parents[parent] else words[parent]
        return f"{subject} is a {words[child]}."

    statements = [statement(parent, child) for child, parents in enumerate(graph.parents) for parent in parents]
    order = rng.permutation(len(statements))
    # Back from the target, each time to a parent that is one step nearer to the entity.
    distances, chain = graph.distances(), [target]
    while chain[-1] != _ROOT:
        nearer = distances[chain[-1]] - 1
        chain.append(int(rng.choice([p for p in graph.parents[chain[-1]] if distances.get(p) == nearer])))
    chain.reverse()
    first, second = (target, rival) if rng.random() < 0.5 else (rival, target)
    question = f"Is {words[_ROOT]} a {words[first]} or {words[second]}?"
    return Problem(
        question=" ".join([*(statements[place] for place in order), question]),
        steps=tuple(statement(parent, child) for parent, child in pairwise(chain)),
        answer=f"{words[_ROOT]} is a {words[target]}.",
    )
