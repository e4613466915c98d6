"""Generated graphs: proper answers, a checker that takes every proper one and no other, and splits without a common graph."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.config import RunConfig
from longshot_jax.config.run import DataConfig
from longshot_jax.data import sources
from longshot_jax.data.chains import hashed_split
from longshot_jax.data.colouring import (
    COLOURING_WORDS,
    NAMES,
    ColouringProblems,
    colouring_problem,
    edges_of,
    graph_name,
)
from longshot_jax.data.layout import Layout
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError


@settings(max_examples=40)
@given(st.integers(0, 2**40), st.integers(7, 9), st.sampled_from(["train", "test", "validation"]))
def test_every_answer_is_proper_and_every_graph_connected(seed, nodes, split):
    problem = colouring_problem(seed, 3, nodes, split)
    assert problem == colouring_problem(seed, 3, nodes, split)
    edges = edges_of(problem.question)
    assert len(edges) == len({frozenset(edge) for edge in edges}) == 3 * nodes // 2
    assert "".join(problem.steps) == problem.answer and len(problem.answer) == nodes
    assert all(problem.answer[one] != problem.answer[other] for one, other in edges)
    reached = {0}
    for _ in range(nodes):
        reached |= {node for edge in edges for node in edge if reached & set(edge)}
    assert reached == set(range(nodes))
    layout = Layout(Tokenizer.for_chains(words=COLOURING_WORDS), "answer", "coconut", 2 * (3 * nodes // 2) + 1)
    assert len(layout.question(problem)) == layout.prompt_length


def test_the_checker_takes_every_proper_colouring_and_no_other():
    problem = colouring_problem(0, 0, 7, "train")
    edges, right = edges_of(problem.question), 0
    for colours in itertools.product("123", repeat=7):
        proper = all(colours[one] != colours[other] for one, other in edges)
        assert problem.grade("".join(colours)) == proper
        right += proper
    assert right >= 12 and right % 6 == 0
    answer = problem.answer
    for wrong in ("", answer[:-1], answer + "1", answer.replace("1", "4"), " ".join(answer), f"{answer}?", "x" * 7):
        assert problem.grade(wrong) == 0.0
    assert problem.grade(f" {answer}\n") == 1.0


def test_splits_share_no_graph_under_any_names():
    names = {split: set() for split in ("train", "test", "validation")}
    for split, found in names.items():
        problems = ColouringProblems(1, 150, (7, 8), split)
        assert len({len(problems[index].answer) for index in range(4)}) == 2
        for index in range(150):
            edges = edges_of(problems[index].question)
            nodes, rng = len(problems[index].answer), np.random.default_rng(index)
            other = rng.permutation(nodes)
            renamed = [(int(other[a]), int(other[b])) for a, b in edges]
            assert graph_name(nodes, renamed) == graph_name(nodes, edges)
            found.add(graph_name(nodes, edges))
            assert hashed_split(graph_name(nodes, edges)) == split
    assert not names["train"] & names["test"] and not names["train"] & names["validation"]
    assert not names["test"] & names["validation"] and len(names["train"]) > 50


def test_problems_of_a_file_are_checked_by_their_edges(tmp_path):
    data = DataConfig(train="colouring", test=str(tmp_path / "graphs.json"), nodes=(7,), generated_train=30)
    run = RunConfig(data=data)
    made = [colouring_problem(5, index, 7, "test") for index in range(3)]
    rows = [{"question": p.question, "steps": list(p.steps), "answer": p.answer} for p in made]
    (tmp_path / "graphs.json").write_text(json.dumps(rows))
    problems = sources.test_problems(run)
    assert list(problems) == made
    turned = made[0].answer.translate(str.maketrans("123", "231"))
    assert turned != made[0].answer and problems[0].grade(turned) == 1.0
    rows[1]["answer"] = "1111111"
    (tmp_path / "graphs.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"graphs\.json, problem 2: the answer '1111111' to .* is no proper colouring"):
        sources.test_problems(run)
    rows[2]["question"], rows[1] = "hello?", rows[0]
    (tmp_path / "graphs.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"graphs\.json, problem 3: 'hello\?' lists no edges"):
        sources.test_problems(run)
    (tmp_path / "graphs.json").write_text(json.dumps(rows[:1]))
    train, validation = sources.read_problems(run)
    assert len(train) == 30 and train[29] == train[29]
    assert {edge for index in range(30) for edge in train[index].question.split()} and validation[0].grade("") == 0.0
    with pytest.raises(UserError, match=r"config\.data\.nodes must name numbers of nodes from 7 to 9"):
        sources.read_problems(RunConfig(data=replace(data, nodes=(4,))))
    with pytest.raises(UserError, match="lists no edges"):
        edges_of("b=3 d=b+4 d?")
    assert len(NAMES) == 9
