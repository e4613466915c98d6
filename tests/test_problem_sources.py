"""Which problems a run trains on, and which choose its best checkpoint."""

import json

import pytest
from tiny_run import tiny

from longshot_jax.errors import UserError
from longshot_jax.training.problem_sources import test_problems as problems_of_test
from longshot_jax.training.problem_sources import train_and_validation_problems


def problem_file(folder, count):
    rows = [{"question": f"{n}?", "steps": [], "answer": str(n)} for n in range(count)]
    (folder / "problems.json").write_text(json.dumps(rows))
    return str(folder / "problems.json")


def test_a_file_gives_a_tenth_for_validation(tmp_path):
    file = problem_file(tmp_path, 95)
    train, validation = train_and_validation_problems(tiny(data__train=file, evaluation__questions=16))
    assert len(validation) == 9 and len(train) == 86
    assert sorted(int(p.answer) for p in [*train, *validation]) == list(range(95))
    train, validation = train_and_validation_problems(tiny(data__train=file, evaluation__questions=3))
    assert [p.answer for p in validation] == ["0", "31", "63"] and len(train) == 92


def test_named_validation_leaves_the_training_data_whole(tmp_path):
    file = problem_file(tmp_path, 5)
    train, validation = train_and_validation_problems(tiny(data__train=file, data__validation="chains"))
    assert len(train) == 5 and len(validation) == 1000
    with pytest.raises(UserError, match=r"5 problems, too few .* config\.data\.validation"):
        train_and_validation_problems(tiny(data__train=file))


@pytest.mark.parametrize("kind", ["chains", "prosqa"])
def test_generated_validation_is_not_the_test(kind):
    run = tiny(data__train=kind, data__test=kind, data__generated_train=60, data__generated_test=40)
    train, validation = train_and_validation_problems(run)
    sets = [{p.question for p in problems} for problems in (train, validation, problems_of_test(run))]
    assert [len(problems) for problems in (train, validation)] == [60, 40]
    assert not sets[0] & sets[2] and not sets[1] & sets[2] and not sets[0] & sets[1]
    other_seed = tiny(seed=1, data__train=kind, data__generated_train=60, data__generated_test=40)
    again = train_and_validation_problems(other_seed)
    assert [p.question for p in again[1]] == [p.question for p in validation]
    assert [p.question for p in again[0]] != [p.question for p in train]
