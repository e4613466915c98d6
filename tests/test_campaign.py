"""A small part of the campaign (`make campaign`), and that its judgement sees every kind of failure."""

import os
import subprocess
import sys
import time
from pathlib import Path

import campaign.data_files
import pytest
from campaign.__main__ import KINDS
from campaign.__main__ import campaign as run_campaign
from campaign.judging import Case, Tally, judge

from longshot_jax.data.problems import load_problems
from longshot_jax.errors import UserError

INPUTS = {
    "data": range(30),
    "configs": range(30),
    "huggingface": range(8),
    "tokenizers": range(12),
    "templates": range(6),
    "checkpoints": range(4, 14),
    "exports": range(6),
}  # fmt: skip  (no whole run among these checkpoints: it takes seconds to make)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_inputs_are_refused_or_read_right(kind, tmp_path):
    tally = run_campaign(kind, 0, INPUTS[kind.name], tmp_path)
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.inputs == len(INPUTS[kind.name]) == tally.refused + tally.read


def test_shares_are_a_whole():
    assert sum(kind.share for kind in KINDS) == pytest.approx(1)
    assert {kind.name for kind in KINDS} == INPUTS.keys()


def test_a_silent_difference_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign.data_files, "load_problems", lambda source: load_problems(source)[:-1])
    tally = run_campaign(campaign.data_files.DataFiles, 0, range(20), tmp_path)
    assert tally.read == 0 and 0 < len(tally.failures) < 20
    assert all("expected" in failure or "broken" in failure for failure in tally.failures)
    # Each is repeated by the options that it names.
    index = int(tally.failures[-1].split("--index ")[1].split()[0])
    again = run_campaign(campaign.data_files.DataFiles, 0, range(index, index + 1), tmp_path / "again")
    assert again.failures == [tally.failures[-1].replace(str(tmp_path), str(tmp_path / "again"))]


def refuse(text):
    def read():
        raise UserError(text)

    return read


def divide():
    return 1 / 0


class One:
    """A kind of one input, that reads as it is told to."""

    name, share = "one", 1.0

    def __init__(self, read, harmless=False):
        self.read, self.harmless = read, harmless

    def case(self, rng, folder):
        (folder / "file").write_text("as it was")
        return Case("nothing", lambda: self.read(folder), lambda result: result, ("file",), self.harmless)


def change(folder: Path):
    (folder / "file").write_text("changed")


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (One(lambda folder: None), None),
        (One(lambda folder: refuse("file is broken: fix it.")()), None),
        (One(lambda folder: refuse("something is broken.")()), "names none of"),
        (One(lambda folder: refuse("file\nis broken.")()), "no sentence"),
        (One(lambda folder: refuse("file " * 1000)()), "no sentence"),
        (One(lambda folder: refuse("file is broken.")(), harmless=True), "nothing is wrong"),
        (One(lambda folder: "an array differs"), "an array differs"),
        (One(lambda folder: divide()), r"ZeroDivisionError at test_campaign.py:"),
        (One(lambda folder: time.sleep(5)), "no answer"),
        (One(change), "changed a file"),
    ],
    ids=["read", "refused", "no place", "lines", "long", "harmless", "difference", "traceback", "hang", "file"],
)
def test_each_kind_of_failure_is_seen(tmp_path, monkeypatch, kind, fault):
    monkeypatch.setattr("campaign.judging._LONGEST", 0.2 if fault == "no answer" else 60)
    tally = Tally()
    judge(kind, 3, 0, tmp_path, tally)
    assert tally.inputs == 1 and (fault is None) == (not tally.failures)
    if fault is not None:
        assert fault in tally.failures[0] and "--only one --index 0 --seed 3" in tally.failures[0]


@pytest.mark.long
def test_runs_killed_at_random_end_with_the_same_bits(tmp_path):
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "campaign.kills", "--only", "ppo", "--kills", "4"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all               4 kills" in done.stdout and "0 failures; seed 0" in done.stdout
