"""The ProsQA generator: every problem is sound, and as a whole they look like the published ones."""

import json
import re
from collections import Counter, deque

import pytest

from longshot_jax.data.problems import load_problems
from longshot_jax.data.prosqa import CONCEPTS, HOPS, NAMES, ProsQAProblems, prosqa_problem
from longshot_jax.errors import UserError

# The published validation file, as measured: the twin of stats.json for a clone without data.
NODES, EDGES, SHORTEST_CHAINS = 22.82, 36.26, 1.61
COUNT = 600


class Read:
    """A problem read back from its text alone."""

    def __init__(self, problem):
        body, question = problem.question.rsplit(". ", 1)
        self.edges = [re.fullmatch(r"(?:Every )?(\w+) is a (\w+)", text).groups() for text in body.split(". ")]
        self.nodes = {node for edge in self.edges for node in edge}
        self.root, self.first, self.second = re.fullmatch(r"Is (\w+) a (\w+) or (\w+)\?", question).groups()
        root, self.target = re.fullmatch(r"(\w+) is a (\w+)\.", problem.answer).groups()
        assert root == self.root and self.target in (self.first, self.second)
        self.rival = self.second if self.target == self.first else self.first
        self.leading_to = Counter(child for _, child in self.edges)

    def distances(self):
        found, waiting = {self.root: 0}, deque([self.root])
        while waiting:
            node = waiting.popleft()
            for parent, child in self.edges:
                if parent == node and child not in found:
                    found[child] = found[node] + 1
                    waiting.append(child)
        return found

    def shortest_chains(self, length):
        chains = Counter({self.root: 1})
        for _ in range(length):
            following = Counter()
            for parent, child in self.edges:
                following[child] += chains[parent]
            chains = following
        return chains[self.target]


@pytest.fixture(scope="module")
def problems():
    return list(ProsQAProblems(seed=0, count=COUNT))


def check_sound(problem):
    read = Read(problem)
    distances = read.distances()
    assert distances[read.target] == len(problem.steps)
    assert read.rival not in distances and read.rival in read.nodes
    assert len(set(read.edges)) == len(read.edges)
    node = read.root
    for step in problem.steps:  # each step is a statement of the question and goes on where the last one ended
        assert f"{step} " in problem.question
        subject, concept = re.fullmatch(r"(?:Every )?(\w+) is a (\w+)\.", step).groups()
        assert subject == node
        node = concept
    assert node == read.target
    for name in read.nodes:  # entities head sentences without "Every" and nothing leads to them
        entity = name in NAMES
        assert entity or name in CONCEPTS
        assert entity == (read.leading_to[name] == 0)
        assert (f"Every {name} " in problem.question) <= (not entity)


def test_every_problem_is_sound(problems):
    for problem in problems:
        check_sound(problem)


def test_the_published_problems_pass_the_same_check(shared_data):
    for problem in load_problems(str(shared_data / "prosqa/prosqa_valid.json")):
        check_sound(problem)


def check_statistics(problems, nodes, edges, chains, histogram):
    reads = [Read(problem) for problem in problems]
    assert abs(sum(len(read.nodes) for read in reads) / COUNT - nodes) < 0.4
    assert abs(sum(len(read.edges) for read in reads) / COUNT - edges) < 1.0
    mean_chains = sum(r.shortest_chains(len(p.steps)) for r, p in zip(reads, problems, strict=True)) / COUNT
    assert abs(mean_chains - chains) < 0.2
    found = Counter(len(problem.steps) for problem in problems)
    assert set(found) == set(histogram)
    for hops, number in histogram.items():
        assert abs(found[hops] / COUNT - number / sum(histogram.values())) < 0.06


def test_statistics_are_the_published_ones(problems):
    check_statistics(problems, NODES, EDGES, SHORTEST_CHAINS, HOPS)


def test_statistics_are_those_of_the_file(problems, shared_data):
    measured = json.loads((shared_data / "prosqa/stats.json").read_text())["prosqa_valid"]
    histogram = {int(hops): number for hops, number in measured["sp_hist"].items()}
    check_statistics(problems, measured["nodes"], measured["edges"], measured["n_shortest_paths"], histogram)
    assert set(NAMES) == set(measured["names"]) and set(CONCEPTS) == set(measured["concepts"])


def test_order_of_candidates_and_shortcuts(problems):
    reads = [Read(problem) for problem in problems]
    assert 0.42 < sum(read.first == read.target for read in reads) / COUNT < 0.58
    fewer = [read.leading_to[read.target] - read.leading_to[read.rival] for read in reads]
    score = sum(1.0 if gap < 0 else 0.5 if gap == 0 else 0.0 for gap in fewer) / COUNT
    assert 0.42 < score < 0.64  # 0.65 and more in the published files
    leaves = [{parent for parent, _ in read.edges} & {read.target, read.rival} for read in reads]
    assert not any(leaves)


def test_statements_are_shuffled(problems):
    places = []
    for problem in problems:
        sentences = problem.question.split(". ")
        places += [sentences.index(step[:-1]) / (len(sentences) - 2) for step in problem.steps]
    thirds = Counter(min(int(3 * place), 2) for place in places)
    assert all(0.28 < thirds[third] / len(places) < 0.39 for third in range(3))


def test_pure_and_random_access(problems):
    assert problems[31] == prosqa_problem(0, 31) == ProsQAProblems(seed=0, count=32)[31]
    assert len({problem.question for problem in problems}) == COUNT
    assert prosqa_problem(1, 31) != problems[31]
    for outside in (-1, 20):
        with pytest.raises(IndexError):
            ProsQAProblems(seed=0, count=20)[outside]


def test_bad_settings():
    with pytest.raises(UserError, match="count"):
        ProsQAProblems(seed=0, count=0)
