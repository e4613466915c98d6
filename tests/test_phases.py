"""Text, curriculum and PPO in one run: resumed in each, each left out, evaluated afterwards as during training."""

import io
import json
import shutil

import pytest
from test_train import contents
from tiny_run import Stopped, tiny, watch_batches

from longshot_jax import LongShot
from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.convert import to_hf
from longshot_jax.config import parse_config
from longshot_jax.data.sources import read_problems
from longshot_jax.errors import UserError
from longshot_jax.planning.plan import make_plan
from longshot_jax.train import train
from longshot_jax.training.context import RunContext

SMALL = {
    "phases": ("text", "curriculum"), "text__max_steps": 60, "text__batch_size": 8, "curriculum__stages": (1,),
    "curriculum__max_steps_per_stage": 0, "checkpoint__every": 50, "checkpoint__keep_last": 99,
    "text__optimizer__learning_rate": 1e-2, "curriculum__optimizer__learning_rate": 1e-2,
}  # fmt: skip
"""Sixty updates of text, then an epoch of a stage that replaces one of up to two steps."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, what it printed, and the result of each evaluation by its step."""
    folder, stream, seen = tmp_path_factory.mktemp("phases"), io.StringIO(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunContext, "log_evaluation", lambda self, step, results, problems: seen.update({step: results}))
        result = train(tiny(**SMALL), folder, stream)
    return folder, result, stream.getvalue(), seen


@pytest.mark.slow
def test_each_phase_says_what_it_reached(finished):
    _, result, printed, _ = finished
    assert {name: figures["sequences"] for name, figures in result.phases.items()} == {"text": 480, "curriculum": 512}
    for name, figures in result.phases.items():
        assert f"{name}: accuracy {figures['accuracy']:.1%} after {figures['updates']} updates" in printed


@pytest.mark.parametrize(
    "batches", [pytest.param(55, marks=pytest.mark.long), pytest.param(75, marks=pytest.mark.slow)]
)  # in each phase; the second after the first one's end
def test_interrupted_in_either_phase_it_ends_with_the_same_bits(finished, tmp_path, monkeypatch, batches):
    def stop(taken: int) -> None:
        if taken == batches:
            raise Stopped

    run = tiny(**SMALL)
    watch_batches(monkeypatch.setattr, stop)
    with pytest.raises(Stopped):
        train(run, tmp_path, io.StringIO())
    train(run, tmp_path, io.StringIO())
    assert contents(tmp_path) == contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("phase", ["text", "curriculum"])
def test_a_model_is_evaluated_as_it_was_trained(finished, tmp_path, phase, exported):
    """An unfinished curriculum with its thoughts and the remaining steps written; text without thoughts."""
    folder, _, _, seen = finished
    with Checkpoints.reader(folder) as checkpoints:
        step = max(step for step in checkpoints.steps if checkpoints.metadata(step)["phase"] == phase)
    measured = seen[step - 1]  # the checkpoint of the phase's end follows its last update
    if exported:
        shutil.copytree(folder, tmp_path / "run")
        for other in (tmp_path / "run" / "checkpoints").iterdir():
            if int(other.name) != step:
                shutil.rmtree(other)
        to_hf(tmp_path / "run", tmp_path / "export")
        model = LongShot.from_pretrained(tmp_path / "export")
    else:
        model = LongShot.from_pretrained(folder, which=step)
    problems = read_problems(tiny(**SMALL)).validation
    problems = [problems[number * len(problems) // 16] for number in range(16)]
    results = model.evaluate(problems, num_trajectories=0)
    assert results["answers"] == measured["answers"] and results["thoughts"] == measured["thoughts_taken"].tolist()
    assert results["config"]["stage"] == (0 if phase == "text" else 1) and results["config"]["steps_written"]
    assert set(results["controls"]) == (set() if phase == "text" else {"zero", "noise", "mean", "swap"})
    if phase == "curriculum":
        at_once = model.evaluate(problems, num_trajectories=0, thoughts=1, controls=False)
        assert at_once["answers"] != results["answers"] and not at_once["config"]["steps_written"]


@pytest.mark.slow
def test_the_curriculum_may_be_left_out(tmp_path):
    few = {"phases": ("text", "ppo"), "text__max_steps": 1, "ppo__iterations": 1}
    assert list(train(tiny(**SMALL | few), tmp_path, io.StringIO()).phases) == ["text", "ppo"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phases": ["curriculum", "text"]}, r"config\.phases .* write steps before thoughts, .* as in text,curriculum"),
        ({"phases": ["ppo", "curriculum"]}, r"config\.phases .* both before rewards, as in curriculum,ppo"),
        ({"phases": ["text"], "text.trainable": "navigator"}, r"config\.text\.trainable 'navigator' has nothing to train"),
        ({"phases": ["text"], "text.batch_size": 6, "text.micro_batch_size": 4}, r"config\.text\.batch_size 6 is not"),
        ({"ppo.rewards.correct": 0.0}, r"config\.ppo\.rewards are all 0"),
        ({"model.weight_dtype": "bfloat16", "phases": ["text"]}, r"set config\.text\.trainable to 'lora'"),
    ],
)  # fmt: skip
def test_phases_that_cannot_work_are_refused(changes, sentence):
    values = {}
    for key, value in changes.items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    with pytest.raises(UserError, match=sentence):
        parse_config(values)


@pytest.mark.parametrize("phase", ["text", "curriculum"])
def test_problems_without_steps_are_refused_before_the_first_phase(tmp_path, phase):
    rows = [{"question": f"a={n} b=a+{k} b?", "steps": [], "answer": str(n + k)} for n in range(5) for k in range(4)]
    (tmp_path / "problems.json").write_text(json.dumps(rows))
    run = tiny(phases=(phase, "ppo"), data__train=str(tmp_path / "problems.json"))
    with pytest.raises(UserError, match=f"no problem of .*problems.json has written steps, from which '{phase}'"):
        train(run, tmp_path / "run", io.StringIO())
    assert not (tmp_path / "run" / "config.json").exists()


def test_lengths_of_all_phases_are_checked_before_the_first(tmp_path):
    """The text writes all steps, which no later phase does."""
    run = tiny(**SMALL | {"data__answer_length": 4, "curriculum__stages": (3,)})
    with pytest.raises(UserError, match=r"steps and answer have . tokens but config\.data\.answer_length is 4"):
        train(run, tmp_path, io.StringIO())


@pytest.mark.slow
def test_the_text_phase_is_planned():
    text, curriculum = (phase.programs[0] for phase in make_plan(tiny(**SMALL), 1, "h200", search=False).phases)
    assert text.name == "text update" and 0 < text.arithmetic.flops < curriculum.arithmetic.flops
