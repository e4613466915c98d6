"""Jobs of an experiment: each after the one it needs, side by side, and none after a failure."""

import threading
import time
from functools import partial

import pytest

from longshot_jax.errors import UserError
from longshot_jax.experiments.variants import Job, run_jobs

WAIT = 20.0  # seconds until a test gives up


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_job_runs_once_and_after_the_one_it_needs(workers):
    started, ended, lock = [], [], threading.Lock()

    def run(name):
        with lock:
            assert needs[name] is None or needs[name] in ended
            started.append(name)
        with lock:
            ended.append(name)

    needs: dict = {"late": "middle", "middle": "early", "early": None, ("seed", 1): "early", "alone": None}
    run_jobs([Job(name, need, partial(run, name)) for name, need in needs.items()], workers)
    assert sorted(map(str, started)) == sorted(map(str, needs)) and len(ended) == len(needs)
    if workers == 1:
        assert started == ["early", "middle", "late", ("seed", 1), "alone"], "otherwise in their order"


def test_a_job_waits_while_the_one_it_needs_is_running_and_others_go_on():
    other_done, ended = threading.Event(), []

    def first():
        assert other_done.wait(WAIT)
        ended.append("first")

    def other():
        ended.append("other")
        other_done.set()

    jobs = [
        Job("first", None, first),
        Job("second", "first", lambda: ended.append("second")),
        Job("other", None, other),
    ]
    run_jobs(jobs, 2)
    assert ended == ["other", "first", "second"]


def test_after_a_failure_no_job_starts_and_the_first_error_is_raised():
    running, failed, ended = threading.Event(), threading.Event(), []

    def fail():
        assert running.wait(WAIT)
        failed.set()
        raise UserError("the first")

    def run_on():
        running.set()
        assert failed.wait(WAIT)
        time.sleep(0.5)  # so that the first error is the first
        ended.append("was running")
        raise UserError("the second")

    def never():
        ended.append("started")

    jobs = [
        Job("fails", None, fail),
        Job("runs", None, run_on),
        *(Job(name, None, never) for name in range(4)),
        Job("needs", "fails", never),
    ]
    threads = threading.active_count()
    with pytest.raises(UserError, match="the first"):
        run_jobs(jobs, 2)
    assert ended == ["was running"] and threading.active_count() == threads


def test_an_error_of_any_kind_ends_the_workers_that_wait():
    with pytest.raises(SystemExit):
        run_jobs([Job("exits", None, lambda: exit(3)), Job("needs", "exits", lambda: None)], 3)


def test_no_jobs_are_done_at_once():
    run_jobs([], 2)
