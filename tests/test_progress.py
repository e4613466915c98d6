"""What is shown while a run is at work."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from longshot_jax.training import progress
from longshot_jax.training.progress import Progress, ProgressOfPasses


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_every_half_minute_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    with Progress("ppo", total=100, stream=stream) as shown:
        for _ in range(65):
            clock[0] += 1
            shown.advance(loss=jnp.float32(0.123456), accuracy=np.float64(0.5))
    assert stream.getvalue().splitlines() == [
        "ppo: 30/100 (30 %), 1 updates/s, 01:10 left, loss 0.1235, accuracy 0.5",
        "ppo: 60/100 (60 %), 1 updates/s, 00:40 left, loss 0.1235, accuracy 0.5",
        "ppo: 65/100 (65 %), 1 updates/s, 00:35 left, loss 0.1235, accuracy 0.5",
    ]


def test_rate_counts_the_steps_of_this_start_after_the_first_which_compiles(clock):
    stream = io.StringIO()
    with Progress("coconut", total=1000, done=900, stream=stream) as shown:
        clock[0] += 20
        shown.advance(0, thoughts=4)  # an evaluation before the first step
        clock[0] += 40
        shown.advance(10)
        clock[0] += 40
        shown.advance(10)
    assert stream.getvalue().splitlines() == [
        "coconut: 910/1000 (91 %), 60 s with compilation, thoughts 4",
        "coconut: 920/1000 (92 %), 4 s/update, 05:20 left, thoughts 4",
    ]


def test_figures_stay_until_replaced(clock):
    stream = io.StringIO()
    with Progress("ppo", total=10, stream=stream) as shown:
        shown.advance(loss=1.0, accuracy=0.25)
        clock[0] += 31
        shown.advance(loss=float("nan"))
    assert stream.getvalue().endswith("loss nan, accuracy 0.25\n") and stream.getvalue().count("\n") == 1


def test_nothing_done_is_said_without_a_division_by_zero():
    stream = io.StringIO()
    with Progress("ppo", total=0, stream=stream):
        pass
    assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    stream = Terminal()
    with Progress("ppo", total=10, done=2, unit="question", stream=stream) as shown:
        shown.advance(8, loss=0.5, accuracy=0.75)
        shown.note("kept as the best")
    text = stream.getvalue()
    assert "ppo" in text and "10/10" in text and "100%" in text
    assert "loss 0.5, accuracy 0.75" in text and "questions/s" in text
    assert "kept as the best\n" in text


def test_passes_share_the_half_minute_between_lines(clock):
    """A short evaluation is silent; a long one tells which pass it is in."""
    stream = io.StringIO()
    shown = ProgressOfPasses(stream)
    for name, seconds in (("greedy answers", 5), ("5 samples", 10), ("thoughts: zero", 1)):
        shown(name, 0, 300)
        for done in (100, 200, 300):
            clock[0] += seconds
            shown(name, done, 300)
    assert stream.getvalue().splitlines() == ["5 samples: 200/300 (67 %), 10 questions/s, 00:10 left"]


def test_the_time_of_a_question_is_that_of_batches_that_do_not_compile(clock):
    shown = ProgressOfPasses(io.StringIO())
    for name, batches in (("greedy answers", 9), ("5 samples", 8)):
        shown(name, 0, 4 * batches)
        for batch in range(batches):
            clock[0] += 60 if batch < 4 else 2
            shown(name, 4 * (batch + 1), 4 * batches)
        clock[0] += 1000  # between the passes
    assert shown.seconds_per_question("greedy answers") == 0.5
    assert shown.seconds_per_question("5 samples") is None and shown.seconds_per_question("none") is None


def test_each_pass_has_a_bar_on_a_terminal():
    stream = Terminal()
    shown = ProgressOfPasses(stream)
    for name in ("greedy answers", "5 samples"):
        shown(name, 0, 2)
        shown(name, 2, 2)
    bars = stream.getvalue()
    assert "greedy answers: 100%" in bars and "5 samples: 100%" in bars and bars.index("greedy") < bars.index("samples")
