"""What an evaluation during training says of the thoughts, against trajectories that are given."""

from types import SimpleNamespace

import numpy as np
import pytest

from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.evaluation import validation
from longshot_jax.evaluation.decoder import Trajectories
from longshot_jax.evaluation.validation import Validation
from longshot_jax.thoughts.stopping import ThoughtRule
from longshot_jax.training.context import RunContext

# Of three questions with two roles each; the second role of the last question does not exist.
COUNTS, ACTIVE = np.array([[1, 2], [2, 0], [1, 0]]), np.array([[True, True], [True, True], [True, False]])


def measured(monkeypatch, thoughts, stops_trained=True):
    stops = np.broadcast_to(np.linspace(0, 1, 3), (3, 2, 3))
    greedy = Trajectories(COUNTS, COUNTS, COUNTS, COUNTS, stops, thoughts, ACTIVE)

    def evaluate(*_, watch, **__):
        watch(greedy)
        return {"thoughts": COUNTS.max(axis=1).tolist(), "mean_thoughts": 5 / 3}

    monkeypatch.setattr(validation, "evaluate", evaluate)
    each = object.__new__(Validation)
    each.problems = [Problem("q", (), "a")] * 3
    each._decoder = SimpleNamespace(max_thoughts=2, layout=SimpleNamespace(prompts=lambda _: None))
    each._batch_size, each._grade, each._lens = 3, None, lambda *_: [[()]] * 3
    each.__dict__["_embedding_norm"] = lambda _: np.float32(2.0)
    return each((), ThoughtRule("fixed", 2, stops=stops_trained))


def test_figures_are_of_all_trajectories_and_the_number_is_the_longest_ones(monkeypatch):
    thoughts = np.zeros((3, 2, 2, 4), np.float32)
    thoughts[..., 0] = 1.0
    thoughts[0, 1] = np.eye(4)[:2] * 3  # of the second role, at right angles
    thoughts[2, 1] = 1e6  # of a trajectory that does not exist
    found = measured(monkeypatch, thoughts)
    assert found["thoughts_taken"].tolist() == [2, 2, 1]
    assert np.mean(found["thoughts_taken"]) == pytest.approx(found["mean_thoughts"])
    assert sorted(found["thought_norms"].tolist()) == [1, 1, 1, 1, 3, 3]
    assert found["thought_norm"] == pytest.approx(10 / 6 / 2)
    assert found["thought_cosine"] == pytest.approx((0 + 1) / 2)
    assert found["stop_figure"].shape == (5 * 6, 3 * 48, 3), "a row for each trajectory that exists"
    assert "stop_figure" not in measured(monkeypatch, thoughts, stops_trained=False)


def test_thoughts_of_another_role_that_run_away_are_seen(monkeypatch):
    thoughts = np.ones((3, 2, 2, 4), np.float32)
    first = measured(monkeypatch, thoughts)
    thoughts[:, 1] *= 100
    context = object.__new__(RunContext)
    monkeypatch.setattr(RunContext, "kept", lambda _: "no checkpoint was written yet")
    start = context.check_thought_norm(None, first, "curriculum")
    with pytest.raises(UserError, match="norm of thoughts runs away"):
        context.check_thought_norm(start, measured(monkeypatch, thoughts), "curriculum")
