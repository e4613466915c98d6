"""The planner's search for the largest batch, also where micro-batches are set: what is advised is accepted, and fits."""

from dataclasses import replace

import pytest
from tiny_run import tiny

from longshot_jax.data.chains import write_chains
from longshot_jax.planning import plan as planning
from longshot_jax.planning.compilers import planned_mesh
from longshot_jax.planning.phases import make_phase
from longshot_jax.planning.plan import advice, as_json, make_plan
from longshot_jax.planning.report import report
from longshot_jax.planning.search import largest_that_fits, most_problems
from longshot_jax.planning.shapes import planned_backbone
from longshot_jax.training import accelerators

pytestmark = pytest.mark.slow


def split(name, batch, micro):
    """A run of one supervised phase in micro-batches."""
    return tiny(phases=(name,), **{f"{name}__batch_size": batch, f"{name}__micro_batch_size": micro})


@pytest.fixture
def device(monkeypatch):
    """Gives an accelerator memory for a number of rows of a pass; nothing is compiled, and rows alone take memory."""

    def has_room_for(rows, name):
        run = split(name, 64, 16)
        phase = make_phase(run, name, planned_backbone(run), planned_mesh("cpu", "", run.mesh))
        row = phase.programs[0].cache_positions // 16
        memory = (rows + 0.5) * row / (1 - planning.SPARE)
        monkeypatch.setitem(
            accelerators.ACCELERATORS, "small", replace(accelerators.ACCELERATORS["h200"], memory=memory)
        )

    monkeypatch.setattr(planning, "compiled", lambda *_: None)
    monkeypatch.setattr(planning, "_memory", lambda program, *_: {"activations": program.cache_positions})
    return has_room_for


@pytest.mark.parametrize(
    ("room", "micro", "batch"),
    [
        (13, 8, 64),  # a micro-batch of 13 does not divide the batch
        (3, 2, 64),
        (52, 32, 64),  # more than is set
        (100, 100, 100),  # more than the batch
        (5000, 512, 512),  # all problems
    ],
)
@pytest.mark.parametrize("name", ["text", "curriculum"])
def test_the_micro_batch_is_searched_and_the_batch_kept(device, name, room, micro, batch):
    device(room, name)
    plan = make_plan(split(name, 64, 16), None, "small")
    written = as_json(plan)["phases"][name]
    assert (written["micro_batch_key"], written["micro_batch"]) == (f"{name}.micro_batch_size", 16)
    assert (written["largest_micro_batch"], written["largest_batch"]) == (micro, batch)
    assert (
        f"largest config.{name}.micro_batch_size that fits: {micro} (set: 16), "
        f"with config.{name}.batch_size {batch} (set: 64)"
    ) in report(plan)
    assert make_plan(split(name, batch, micro), None, "small", search=False).fits
    if not plan.fits:
        advised = (
            f"config.{name}.micro_batch_size {micro} instead of 16 with config.{name}.batch_size {batch} would fit."
        )
        assert advice(plan).endswith(advised)


def test_without_micro_batches_the_batch_is_searched(device):
    device(13, "text")
    plan = make_plan(split("text", 64, 0), None, "small")
    written = as_json(plan)["phases"]["text"]
    assert written["micro_batch_key"] is written["micro_batch"] is written["largest_micro_batch"] is None
    assert written["largest_batch"] == 13
    assert advice(plan).endswith("; config.text.batch_size 13 instead of 64 would fit.")


def test_no_micro_batch_fits(device):
    device(0, "text")
    plan = make_plan(split("text", 64, 16), None, "small")
    assert as_json(plan)["phases"]["text"]["largest_micro_batch"] == 0
    assert "config.text.micro_batch_size that fits: none (set: 16)" in report(plan) and "would fit" not in advice(plan)


@pytest.mark.parametrize(
    ("peak", "largest", "most"),
    [
        (lambda batch: 10 + 5 * batch, 16, 4),  # reaches 100 at 18
        (lambda batch: 40 + batch**1.4, 16, 6),  # at 18.6
        (lambda batch: 99 if batch < 400 else 101, 384, 10),  # steps, as buffers of a compiler may
        (lambda batch: 101, 0, 10),
        (lambda batch: 90 + 2 * batch, 4, 4),  # below the first try
        (lambda batch: 10 + batch / 1000, 90_000, 7),  # far above it
    ],
)
def test_the_largest_batch_was_tried(peak, largest, most):
    tried = []

    def compiles(batch):
        tried.append(batch)
        return peak(batch)

    assert largest_that_fits(compiles, 100.0, first=8, step=4) == largest
    assert len(tried) == len(set(tried)) <= most and (largest == 0 or largest in tried)
    assert all(batch % 4 == 0 and batch > 0 for batch in tried)


@pytest.mark.parametrize(
    ("first", "most", "largest", "tries"), [(8, 500, 500, 4), (8, 502, 500, 4), (512, 500, 512, 1), (8, 8, 8, 1)]
)
def test_no_batch_is_tried_beyond_the_problems(first, most, largest, tries):
    tried = []

    def peak(batch):
        tried.append(batch)
        return batch / 1000

    assert largest_that_fits(peak, 100.0, first, 4, most) == largest
    assert len(tried) <= tries and max(tried) == largest


def test_the_problems_that_are_known(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"question": "1 + 1", "answer": "2"}\n' * 3)
    assert most_problems(tiny()) == 512
    assert most_problems(tiny(data__train=str(path), data__validation=str(path))) == 3
    assert most_problems(tiny(data__train=str(path))) is None, "too few for a tenth for validation"
    path = tmp_path / "chains.json"
    write_chains(path, 2, 40, seed=1)
    assert most_problems(tiny(data__train=str(path))) == 36, "the others are for validation"
    assert most_problems(tiny(data__train="somebody/problems")) is None
