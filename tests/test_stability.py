"""What goes wrong while a model learns to think is measured, and ends the run with a sentence."""

import io

import numpy as np
import pytest
from tiny_run import moved, skip_evaluations, stub_updates, tiny

from longshot_jax.curriculum.stability import StageEnd, diverges
from longshot_jax.errors import UserError
from longshot_jax.train import train

CURRICULUM = {"phases": ("curriculum",), "data__generated_train": 4096, "curriculum__max_steps_per_stage": 0}


@pytest.mark.slow
def test_a_loss_that_diverges_ends_the_run_with_its_last_checkpoint(tmp_path):
    """A learning rate that grows until nothing learned is left."""
    rate = {
        "curriculum__optimizer__learning_rate": 10.0, "curriculum__optimizer__warmup_steps": 250, "checkpoint__every": 40,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"loss of stage 1 diverges: .* the checkpoint of step \d+ is intact: lower "
                                        r"config\.curriculum\.optimizer\.learning_rate"):  # fmt: skip
        train(tiny(**CURRICULUM | rate, curriculum__stages=(1,)), tmp_path, io.StringIO())


def test_only_a_loss_far_above_its_lowest_diverges():
    assert not diverges(None, None) and not diverges(5.0, None) and not diverges(2.9, 1.0) and diverges(3.1, 1.0)


def test_a_norm_that_runs_away_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("longshot_jax.training.context.RUNAWAY", 0.01)
    monkeypatch.setattr(StageEnd, "__call__", lambda *_: {})
    stub_updates(monkeypatch.setattr)
    few = {"curriculum__max_steps_per_stage": 1, "evaluation__every": 1}
    with pytest.raises(UserError, match=r"norm of thoughts runs away: .* at the first evaluation of 'curriculum'"):
        train(tiny(**CURRICULUM | few, curriculum__stages=(1, 2)), tmp_path, io.StringIO())


@pytest.mark.slow
def test_figures_of_each_stage_are_logged(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    few, printed = (
        {"curriculum__max_steps_per_stage": 2, "phases": ("text", "curriculum"), "text__max_steps": 2},
        io.StringIO(),
    )
    stub_updates(monkeypatch.setattr, change=moved)
    train(tiny(**CURRICULUM | few, curriculum__stages=(1, 2)), tmp_path, printed)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(steps["stability/text_perplexity"]) == 3, "after the text, and after each stage"
    assert len(steps["stability/accuracy_of_stage_0"]) == 2 and len(steps["stability/accuracy_of_stage_1"]) == 1
    assert len(steps["evaluation/thought_norm"]) == 2 and len(steps["evaluation/thought_cosine"]) == 1
    perplexities = [event.value for event in events.Scalars("stability/text_perplexity")]
    assert all(np.isfinite(perplexities)) and len(set(perplexities)) == 3 and min(perplexities) > 1
    assert "text perplexity" in printed.getvalue() and "accuracy of stage 1" in printed.getvalue()


@pytest.fixture
def only_stage_ends(monkeypatch):
    """Nothing is trained and no accuracy measured."""
    stub_updates(monkeypatch.setattr)
    skip_evaluations(monkeypatch.setattr, stage_ends=True)


@pytest.mark.usefixtures("only_stage_ends")
def test_steps_that_no_stage_writes_need_no_room(tmp_path):
    """Room for an answer and one step: the text of all steps would not fit."""
    few = {
        "curriculum__max_steps_per_stage": 1,
        "curriculum__uniform_prob": 0.0,
        "data__operations": (3,),
        "data__prompt_length": 20,
    }
    printed = io.StringIO()
    train(tiny(**CURRICULUM | few, curriculum__stages=(2, 3), data__answer_length=5), tmp_path, printed)
    assert "ends after 1 update" in printed.getvalue() and "text perplexity" not in printed.getvalue()


@pytest.mark.usefixtures("only_stage_ends")
def test_text_that_fits_is_measured_where_no_stage_writes_it(tmp_path):
    few = {"curriculum__max_steps_per_stage": 1, "curriculum__uniform_prob": 0.0}
    printed = io.StringIO()
    train(tiny(**CURRICULUM | few, curriculum__stages=(2,)), tmp_path, printed)
    assert "text perplexity" in printed.getvalue()
