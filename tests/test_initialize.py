"""A run that starts from another one takes what means the same there, and says what it does not take."""

import io
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_run import tiny

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.initialize import fitting
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.thoughts.navigator import Navigator
from longshot_jax.train import train

HEADS = {"stop_weight", "stop_bias", "value_in", "value_out", "value_bias"}
BASE = NavigatorConfig("hidden", True, reasoning_dim=8, heads=2, roles=3, join=True, max_trajectories=3)
HAS = {*HEADS, "role_table", "feedback_scale", "feedback_projection", "count_weight", "count_bias"}
READS = {"state_in", "memory_out", "cross_attention"}


def weights(config: NavigatorConfig, number: float = 0.0) -> nnx.State:
    state = nnx.split(Navigator(config, 16, nnx.Rngs(0)))[1]
    return jax.tree.map(lambda leaf: np.full(leaf.shape, number, np.float32), state)


@pytest.mark.parametrize(
    ("theirs", "ours", "kept"),
    [
        ({}, {}, HAS),
        ({}, {"stop_bias": 2.0, "step_embeddings": 2, "memory_top": 1}, HAS),
        ({"max_trajectories": 0}, {}, HAS - {"count_weight", "count_bias"}),
        # As many choices, 2 to 4, which mean other numbers than 1 to 3.
        ({}, {"join": False, "max_trajectories": 4}, HAS - {"count_weight", "count_bias"}),
        ({}, {"roles": 2}, HAS - {"role_table"}),
        ({"cross_attention": True}, {"cross_attention": True}, HAS | READS),
        ({"cross_attention": True}, {}, HAS),
        ({"cross_attention": True}, {"cross_attention": True, "heads": 4}, (HAS | READS) - {"cross_attention"}),
        ({}, {"cross_attention": True}, HAS),
        ({}, {"normalised": False}, set()),
        ({}, {"feedback": "navigator"}, set()),
        ({}, {"reasoning_dim": 4}, set()),
    ],
)
def test_weights_that_mean_the_same_are_taken(theirs: dict, ours: dict, kept: set[str]):
    other, own = replace(BASE, **theirs), replace(BASE, **ours)
    taken = fitting(other, weights(other, 1.0), own, weights(own))
    assert set(taken) == kept
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(taken))


def test_a_run_with_one_head_more_goes_on_with_the_others(tmp_path):
    settings = {"thoughts__roles": 3, "thoughts__join": True, "thoughts__normalised": True, "data__train": "threads",
                "data__test": "threads", "data__tokenizer": "threads", "data__threads": (1, 2, 3), "data__operations": (1,),
                "data__prompt_length": 30, "data__answer_length": 8}  # fmt: skip
    still = {"ppo__optimizer__learning_rate": 0.0, "ppo__optimizer__navigator_learning_rate": 0.0}
    first = train(tiny(phases=("curriculum",), **settings), tmp_path / "first", io.StringIO())
    chosen = {"thoughts__max_trajectories": 3, "ppo__num_trajectories": 3, "ppo__shared_reward": True}
    shown = io.StringIO()
    started = tiny(
        phases=("ppo",), initialize_from=str(first.workdir), ppo__iterations=1, **settings, **chosen, **still
    )
    second = train(started, tmp_path / "second", shown)
    assert "count_bias, count_weight are initialised, not taken from" in shown.getvalue()
    with Checkpoints.reader(first.workdir) as old, Checkpoints.reader(second.workdir) as new:
        theirs, ours = old._read_metadata(first.best_step)[1], new._read_metadata(new.steps[-1])[1]
    same = [name for name in theirs if name.startswith("trainable.navigator")]
    assert any("feedback_projection" in name for name in same) and any("role_table" in name for name in same)
    assert [name for name in same if theirs[name]["fingerprint"] != ours[name]["fingerprint"]] == []
