"""Settings: unknown keys, wrong types and impossible combinations are refused by name."""

import json
import math
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_jax.cli import load_config
from longshot_jax.config import RunConfig, default_config, parse_config
from longshot_jax.config.bounds import MAX_FLOAT, MAX_INT, Bound
from longshot_jax.config.declarations import Setting, declared, declared_groups, flatten
from longshot_jax.config.parse import RENAMED
from longshot_jax.errors import UserError

SETTINGS = declared(RunConfig)


def changed(**overrides):
    config = default_config()
    for key, value in overrides.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return parse_config(config)


def test_defaults_and_json_come_back_the_same():
    assert parse_config(default_config()) == RunConfig()
    run = changed(ppo__thought_std=(0.3, 0.1), curriculum__stages=(1, 2), thoughts__feedback="navigator")
    assert parse_config(json.loads(json.dumps(asdict(run)))) == run


def test_thoughts_of_loaded_weights_are_normalised_unless_a_setting_or_an_earlier_run_says_otherwise(tmp_path):
    source = {"model__source": str(tmp_path)}
    assert (
        changed(**source).thoughts.normalised and not changed(**source, thoughts__normalised=False).thoughts.normalised
    )
    assert not changed().thoughts.normalised and changed(thoughts__normalised=True).thoughts.normalised
    assert not parse_config({"model": {"source": str(tmp_path)}}).thoughts.normalised, "stored before the default"
    for stored in (True, False):
        (tmp_path / "config.json").write_text(json.dumps({"thoughts": {"normalised": stored}}))
        assert changed(initialize_from=str(tmp_path)).thoughts.normalised is stored
    soft = {"thoughts__feedback": "vocabulary"}
    assert not changed(**source, **soft).thoughts.normalised, "means of token embeddings need no norm"
    assert not changed(initialize_from=str(tmp_path / "none"), **soft).thoughts.normalised
    for feedback, kept in (("hidden", False), ("vocabulary", True)):
        before = {"thoughts": {"normalised": True, "feedback": feedback}}
        (tmp_path / "config.json").write_text(json.dumps(before))
        assert changed(initialize_from=str(tmp_path), **soft).thoughts.normalised is kept
    for source, loaded in (("/models/x", True), ("scratch", False)):
        before = {"thoughts": {"normalised": False, "feedback": "vocabulary"}, "model": {"source": source}}
        (tmp_path / "config.json").write_text(json.dumps(before))
        assert changed(initialize_from=str(tmp_path)).thoughts.normalised is loaded, "hidden states of loaded weights"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ppo": {"clip": "inf"}}, r"config\.ppo\.clip is 'inf': it must be finite"),
        ({"ppo": {"lernrate": 1}}, r"did you mean config\.ppo\.optimizer\.learning_rate"),
        ({"ppo": {"optimiser": {"learning_rate": 1}}}, r"did you mean config\.ppo\.optimizer\?"),
        ({"ppo": {"iteration": 1}}, r"config\.ppo\.iteration is not a setting: did you mean config\.ppo\.iterations"),
        ({"ppo": {"top_k": 5}}, r"config\.ppo\.top_k is not a setting, because a rollout samples the whole distribution"),
        ({"ppo": 3}, r"config\.ppo must be a group"),
        ({"ppo": {"iterations": 1.5}}, r"config\.ppo\.iterations is 1\.5: it must be of type int"),
        ({"ppo": {"iterations": True}}, r"config\.ppo\.iterations is True"),
        ({"ppo": {"thought_std": (0.1,)}}, r"config\.ppo\.thought_std .*must hold 2 values"),
        ({"ppo": {"thought_std": 0.1}}, r"config\.ppo\.thought_std .*must be a tuple"),
        ({"data": {"operations": ("one",)}}, r"config\.data\.operations is 'one'"),
        ({"markers": "none"}, r"config\.markers is 'none': it must be one of coconut, answer"),
        ({"phases": ("sft",)}, r"config\.phases is 'sft': it must be one of text, curriculum, ppo"),
        ({"ppo": {"questions": 30, "minibatches": 4}}, r"config\.ppo\.questions 30 is not a multiple"),
        ({"ppo": {"min_thoughts": 7}}, r"config\.ppo\.min_thoughts 7 is more than config\.ppo\.max_thoughts 6"),
        ({"ppo": {"target_iterations": 1}}, r"target_iterations needs the numbers to draw from: set config\.ppo\.target_thoughts"),
        ({"ppo": {"target_thoughts": (9,)}}, r"target_thoughts \(9,\) must not be above config\.ppo\.max_thoughts 6"),
        ({"ppo": {"baseline": "group", "num_trajectories": 1}}, r"compares trajectories of one question"),
        ({"ppo": {"baseline": "group", "ensemble": True}}, r"independent trajectories"),
        (
            {"ppo": {"baseline": "leave_one_out"}, "thoughts": {"graph": "all"}},
            r"independent trajectories, and config\.thoughts\.graph 'all' lets them read one another",
        ),
        (
            {"ppo": {"baseline": "group"}, "thoughts": {"cross_attention": True}},
            r"config\.thoughts\.cross_attention lets them read one another",
        ),
        ({"ppo": {"dropout": 0.1}}, r"config\.ppo\.dropout is not a setting, because .*take config\.curriculum\.dropout"),
        ({"curriculum": {"dropout": 1.0}}, r"config\.curriculum\.dropout is 1\.0: it must be from 0 to below 1"),
        ({"phases": ("curriculum",), "curriculum": {"dropout": 0.1, "mode": "pause"}}, r"dropout applies to thoughts, and mode 'pause' has none"),
        ({"curriculum": {"dropout": 0.1, "guidance": {"jacobi": 2}}}, r"dropout applies to thoughts in sequence"),
        ({"ppo": {"baseline": "group", "shared_reward": True}}, r"shared_reward gives them one reward: take the critic"),
        ({"thoughts": {"max_trajectories": 5}}, r"max_trajectories 5 is the largest number .*num_trajectories \(now 8\) to the same number"),
        ({"ppo": {"baseline": "group"}, "thoughts": {"max_trajectories": 8}}, r"max_trajectories chooses their number"),
        ({"ppo": {"target_trajectories": (2,), "target_iterations": 1}}, r"forces a number that the model does not choose"),
        (
            {"ppo": {"target_trajectories": (9,)}, "thoughts": {"max_trajectories": 8}},
            r"target_trajectories \(9,\) must lie between 2 and config\.thoughts\.max_trajectories 8",
        ),
        (
            {"ppo": {"loss_mean": "sequence"}, "thoughts": {"max_trajectories": 8}},
            r"loss_mean 'sequence' cannot weigh a question's number of trajectories",
        ),
        ({"ppo": {"kl_in": "reward", "shared_reward": True}}, r"kl_in 'reward' charges each trajectory for itself"),
        ({"ppo": {"rewards": {"vote_correct": 1.0}}}, r"set config\.ppo\.shared_reward"),
        (
            {"ppo": {"gradient": "pathwise", "rewards": {"diversity": 0.1}}},
            r"diversity is earned by thoughts, which are not scored actions under gradient 'pathwise'",
        ),
        ({"ppo": {"coupling": "antithetic", "baseline": "group"}}, r"coupling 'antithetic' with gradient 'score' is biased"),
        ({"ppo": {"coupling": "orthogonal", "ensemble": True}}, r"as with config\.ppo\.ensemble: take gradient 'pathwise'"),
        ({"thoughts": {"graph": "own", "reasoning_dim": 6}}, r"reasoning_dim 6 is not a multiple of config\.thoughts\.heads 4"),
        ({"ppo": {"thought_std": (0.0, 0.0)}}, r"config\.ppo\.gradient 'score' needs noise"),
        ({"ppo": {"minibatches": 0}}, r"config\.ppo\.minibatches is 0: it must be at least 1"),
        ({"ppo": {"epochs": 0}}, r"config\.ppo\.epochs is 0"),
        ({"ppo": {"optimizer": {"clip_norm": 0.0}}}, r"config\.ppo\.optimizer\.clip_norm is 0\.0: it must be above 0"),
        ({"ppo": {"optimizer": {"learning_rate": float("nan")}}}, r"config\.ppo\.optimizer\.learning_rate is nan: it must be a finite number"),
        ({"ppo": {"gamma": 1.5}}, r"config\.ppo\.gamma is 1\.5: it must be from 0 to 1"),
        ({"ppo": {"rewards": {"correct": float("inf")}}}, r"correct is inf: it must be a finite number"),
        ({"curriculum": {"optimizer": {"b2": 1.0}}}, r"b2 is 1\.0: it must be from 0 to below 1"),
        ({"curriculum": {"stages": ()}}, r"config\.curriculum\.stages is empty"),
        ({"phases": ()}, r"config\.phases is empty"),
        ({"phases": ("ppo", "ppo")}, r"names a phase twice"),
        ({"seed": -1}, r"config\.seed is -1: it must be from 0 to 4294967294"),
        ({"checkpoint": {"every": 0}}, r"config\.checkpoint\.every is 0: it must be at least 1"),
        ({"evaluation": {"questions": 0}}, r"config\.evaluation\.questions is 0"),
        ({"ppo": {"dual_clip": 0.9}}, r"dual_clip 0\.9 .* above 1, usually 3, or 0"),
        ({"ppo": {"value_clip": -0.1}}, r"config\.ppo\.value_clip is -0\.1: it must be at least 0"),
        ({"ppo": {"early_stop_kl": -1.0}}, r"config\.ppo\.early_stop_kl is -1\.0: it must be at least 0"),
        ({"ppo": {"kl_target": 0.1, "kl_coefficient": 0.0}}, r"0 stays 0"),
        ({"ppo": {"kl_in": "reward", "kl_coefficient": 0.0}}, r"kl_in 'reward' charges nothing"),
        ({"ppo": {"kl_in": "reward", "gradient": "mixture"}}, r"kl_in 'reward' makes the reward depend on the thoughts.*'mixture'"),
        ({"ppo": {"coupling": "antithetic", "ensemble": True, "gradient": "pathwise"}}, r"coupling 'antithetic' cancels in the mean"),
        ({"curriculum": {"question_hidden": 0.5}, "thoughts": {"roles": 8}}, r"question_hidden hides the question from the answer, and each role"),
        ({"ppo": {"kl_estimator": "k1"}}, r"kl_estimator 'k1' has no gradient in the loss"),
        ({"ppo": {"thought_std": (0.2, -0.1)}}, r"config\.ppo\.thought_std is \(0\.2, -0\.1\): each must be at least 0"),
        ({"ppo": {"token_temperature": (1.0, 0.0)}}, r"config\.ppo\.token_temperature is \(1\.0, 0\.0\): each must be above 0"),
        ({"ppo": {"stop_temperature": (1.5, 0.5), "stop_temperature_annealing": "constant"}}, r"config\.ppo\.stop_temperature .* stop_temperature_annealing is 'constant'"),
        ({"ppo": {"gradient": "mixture", "thought_std": (0.2, 0.0)}}, r"'mixture' needs noise to the end"),
        ({"curriculum": {"mode": "pause", "guidance": {"target": 1.0}}, "phases": ("curriculum",)}, r"guides thoughts, and config\.curriculum\.mode 'pause' has none"),
        ({"curriculum": {"variational": {"kl": 1.0}}}, r"variational\.kl needs a prior and a posterior: set config\.thoughts\.noise"),
        ({"curriculum": {"variational": {"balance": 0.4}}}, r"balance is 0\.4: it must be from 0\.5 to 1"),
        ({"curriculum": {"variational": {"kl": 1.0}, "guidance": {"jacobi": 2}}, "thoughts": {"noise": "learned"}}, r"which config\.curriculum\.guidance\.jacobi does not allow"),
        ({"curriculum": {"variational": {"kl": 1.0}, "guidance": {"forcing": (1.0, 0.0)}}, "thoughts": {"noise": "learned"}}, r"guidance\.forcing to \(0, 0\)"),
        ({"curriculum": {"variational": {"kl": 1.0}}, "thoughts": {"noise": "learned", "join": True, "roles": 2}}, r"which config\.thoughts\.join does not allow"),
        ({"curriculum": {"variational": {"kl": 1.0}, "mode": "pause"}, "phases": ("curriculum",), "thoughts": {"noise": "learned"}}, r"variational\.kl samples thoughts, and mode 'pause' has none"),
        ({"curriculum": {"guidance": {"jacobi": 2, "forcing": (1.0, 0.0)}}}, r"jacobi computes all thoughts at once"),
        ({"thoughts": {"memory_top": 3}}, r"set config\.ppo\.memory_slots"),
        ({"ppo": {"memory_slots": 3}}, r"set config\.thoughts\.memory_top"),
        ({"curriculum": {"batch_size": 10, "micro_batch_size": 4}}, r"not a multiple of\s+config\.curriculum\.micro"),
        ({"data": {"prompt_length": 20, "length_bucket": 8}}, r"prompt_length 20 is not a multiple"),
        ({"curriculum": {"mode": "pause"}}, r"mode 'pause' trains a model without thoughts"),
        ({"model": {"weight_dtype": "bfloat16"}}, r"weight_dtype 'bfloat16' would round away"),
        (
            {"thoughts": {"feedback": "navigator_residual"}, "ppo": {"gradient": "none", "trainable": "navigator"}},
            r"'navigator_residual' with gradient 'none' has no exact rescore",
        ),
        ({"thoughts": {"feedback": "vocabulary"}, "ppo": {"trainable": "navigator"}}, r"no weight that moves a thought.*'vocabulary'"),
        (
            {"thoughts": {"feedback": "hidden", "normalised": False}, "ppo": {"trainable": "navigator"}},
            r"no weight that moves a thought.*'hidden'",
        ),
        (
            {"ppo": {"trainable": "navigator", "gradient": "none", "min_thoughts": 3, "max_thoughts": 3}},
            r"nothing to decide where config\.ppo\.min_thoughts and max_thoughts are both 3",
        ),
        (
            {
                "curriculum": {"mode": "cot"},
                "thoughts": {"normalised": True},
                "ppo": {"trainable": "navigator", "min_thoughts": 0, "max_thoughts": 0},
            },
            r"nothing to decide",
        ),
        ({"ppo": {"gamma": 0.9, "baseline": "group"}}, r"gamma 0\.9 discounts the returns of a critic.*'group'"),
    ],
)  # fmt: skip
def test_refusals_name_the_key(values, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_config(values)


def is_number(kind: Any) -> bool:
    """Whether a setting of this type is a number, or several."""
    return kind in (int, float) or any(item in (int, float) for item in typing.get_args(kind))


NUMBERS = [setting for setting in SETTINGS.values() if is_number(setting.kind)]


def nested(key: str, value: Any) -> dict[str, Any]:
    """The mapping that sets one setting by its dotted key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def read(settings: Any, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def of_setting(setting: Setting, number: Any) -> Any:
    """A number as the setting takes it: alone, or every item of its tuple."""
    items = typing.get_args(setting.kind)
    if not items:
        return number
    return (number,) * (1 if items[-1] is Ellipsis else len(items))


def outside(setting: Setting) -> list[int | float]:
    """The numbers of the setting's type that lie just outside its bound, and those that are never inside."""
    bound, whole = setting.bound, int in (setting.kind, *typing.get_args(setting.kind))
    assert bound is not None
    numbers: list[int | float] = [MAX_INT + 1 if math.isinf(bound.high) else int(bound.high) + 1] if whole else []
    if not whole:
        numbers += [math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e300, -1e300]
    if math.isfinite(bound.low):
        below = bound.low - 1 if whole else math.nextafter(bound.low, -math.inf)
        numbers.append(bound.low if bound.low_open else below)
    if math.isfinite(bound.high) and not whole:
        numbers.append(bound.high if bound.high_open else math.nextafter(bound.high, math.inf))
    return numbers


def inside(setting: Setting) -> list[int | float]:
    """The outermost numbers of the setting's type inside its bound."""
    bound, whole = setting.bound, int in (setting.kind, *typing.get_args(setting.kind))
    assert bound is not None
    low = bound.low if math.isfinite(bound.low) else -MAX_FLOAT
    high = bound.high if math.isfinite(bound.high) else MAX_INT if whole else MAX_FLOAT
    numbers = [math.nextafter(low, math.inf) if bound.low_open else low]
    numbers.append(math.nextafter(high, -math.inf) if bound.high_open else high)
    return [int(number) if whole else float(number) for number in numbers]


def test_every_number_has_a_bound_that_its_default_keeps():
    assert {setting.key for setting in NUMBERS} == {key for key, each in SETTINGS.items() if each.bound is not None}
    assert len(NUMBERS) > 90
    for setting in NUMBERS:
        default = setting.default if isinstance(setting.default, tuple) else (setting.default,)
        assert isinstance(setting.bound, Bound) and all(number in setting.bound for number in default), setting.key


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.key)
def test_a_number_outside_its_bound_is_refused_by_its_key(setting):
    must = f"must be {setting.bound}."
    for number in outside(setting):
        with pytest.raises(UserError) as error:
            parse_config(nested(setting.key, of_setting(setting, number)))
        said = str(error.value)
        assert said.startswith(f"config.{setting.key} is ") and len(said) < 250, said
        assert said.endswith(
            (must, "must be a finite number.", "must be at most 3.4e+38 in size.", f"at most {MAX_INT}.")
        ), said
    for number in inside(setting):
        value = of_setting(setting, number)
        try:
            assert read(parse_config(nested(setting.key, value)), setting.key) == value
        except UserError as error:  # it may clash with the defaults of other settings
            assert must not in str(error)


ODD = [0, -1, 2**31 - 1, 2**31, 2**63, -(2**63), 10**400, 10**5000, 1e38, 1e300, -1e-3, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.key)
def test_any_number_is_accepted_or_refused_in_one_sentence_of_its_key(setting):
    whole = int in (setting.kind, *typing.get_args(setting.kind))
    for number in [*ODD, setting.bound.high, setting.bound.high + 1]:
        try:
            found = read(parse_config(nested(setting.key, of_setting(setting, number))), setting.key)
        except UserError as error:
            said, name = str(error), setting.key.rpartition(".")[2]
            assert name in said and "config." in said and "\n" not in said and len(said) < 400, said
            continue
        for each in found if isinstance(found, tuple) else (found,):
            assert abs(each) <= (max(MAX_INT, setting.bound.high) if whole else MAX_FLOAT), number


def test_what_several_settings_make_is_counted_by_the_device():
    most = {"ppo.iterations": MAX_INT, "ppo.epochs": 1, "ppo.minibatches": 1}
    values = {"ppo": {key[4:]: value for key, value in most.items()}}
    assert parse_config(values).ppo.iterations == MAX_INT
    for changes, named in [
        ({"ppo": {**values["ppo"], "epochs": 2}}, r"config\.ppo\.iterations x config\.ppo\.epochs"),
        ({"ppo": {"questions": 2**20, "num_trajectories": 2**11}}, r"config\.ppo\.questions x config\.ppo\.num_traj"),
        ({"curriculum": {"c_thought": 0}}, "with c_thought 0 set thought_slots to the most thoughts"),
        ({"curriculum": {"thought_slots": 9}}, "with any other c_thought set thought_slots to 0"),
        (
            {"curriculum": {"c_thought": 0, "thought_slots": 9, "pad_latent_to_max": True}},
            "pad_latent_to_max pads to c_thought",
        ),
        ({"curriculum": {"c_thought": 2**20, "max_latent_stage": 2**20}}, r"config\.curriculum\.c_thought x"),
        ({"data": {"prompt_length": MAX_INT}}, r"config\.data\.prompt_length, thoughts"),
        ({"data": {"answer_length": MAX_INT}}, r"config\.data\.answer_length"),
    ]:
        with pytest.raises(UserError, match=named):
            parse_config(changes)


@pytest.mark.parametrize(
    "key", ["ppo.thought_std", "curriculum.guidance.forcing", "ppo.target_thoughts", "data.operations"]
)
def test_every_item_of_a_tuple_has_to_keep_the_bound(key):
    setting = SETTINGS[key]
    good = inside(setting)[0]
    with pytest.raises(UserError, match=f"config.{key} is .*: each must be {setting.bound}"):
        parse_config(nested(key, (good, outside(setting)[-1])))


def test_every_setting_is_declared_once_with_its_meaning():
    assert set(SETTINGS) == set(flatten(default_config().to_dict())) == set(flatten(RunConfig()))
    assert len(SETTINGS) > 150
    for key, setting in SETTINGS.items():
        assert setting.key == key and setting.default == read(RunConfig(), key)
        assert setting.meaning.strip().endswith(".") and len(setting.meaning) > 4, key
        assert setting.allowed, key
    groups = declared_groups(RunConfig)
    assert set(groups) == {key.rpartition(".")[0] for key in SETTINGS} and all(groups.values())


OTHER_VALUES = {
    "phases": ("ppo",),
    "ppo.gamma": 0.9,
    "ppo.gae_lambda": 0.8,
    "ppo.thought_std": (0.4, 0.3),
    "ppo.thought_std_annealing": "cosine",
    "ppo.stop_temperature_annealing": "cosine",
    "ppo.token_temperature_annealing": "cosine",
    "ppo.min_thoughts": 2,
    "ppo.max_thoughts": 5,
    "ppo.target_thoughts": (3, 4),
    "ppo.ensemble": True,
    "mesh.decoding_weights": "tensor",
}


def test_a_stored_config_of_old_keys_is_the_same_run():
    assert set(OTHER_VALUES) == {new for new in RENAMED.values() if new}, "one value for each key that was renamed"
    assert all(new is None or new in SETTINGS for new in RENAMED.values())
    assert not set(RENAMED) & set(SETTINGS)
    stored, current = asdict(RunConfig()), asdict(RunConfig())
    for old, new in RENAMED.items():
        for settings, key in ((stored, new), (stored, old), (current, new)):
            if key is None:
                continue
            *groups, name = key.split(".")
            place = settings
            for group in groups:
                place = place.setdefault(group, {})
            if settings is stored and key == new:
                del place[name]
            else:
                place[name] = OTHER_VALUES[new] if new else 5
    parsed = parse_config(json.loads(json.dumps(stored)))
    assert parsed == parse_config(current) != RunConfig()
    for key, value in OTHER_VALUES.items():
        assert read(parsed, key) == value != SETTINGS[key].default


@pytest.mark.parametrize("old", [old for old, new in RENAMED.items() if new])
def test_a_setting_under_its_old_and_its_new_name_is_refused(old):
    new = str(RENAMED[old])
    stored = asdict(RunConfig())
    for key in (old, new):
        *groups, name = key.split(".")
        place = stored
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = OTHER_VALUES[new]
    with pytest.raises(UserError, match=rf"have config\.{new} and its old name config\.{old}: remove one\."):
        parse_config(json.loads(json.dumps(stored)))


def test_settings_nested_too_deeply_are_refused():
    deep: Any = 1
    for _ in range(100_000):
        deep = {"ppo": deep}
    with pytest.raises(UserError, match="config is nested too deeply"):
        parse_config(deep)
    items: Any = 1
    for _ in range(100_000):
        items = [items]
    with pytest.raises(UserError, match=r"config\.seed is a list nested too deeply to show: it must be of type int"):
        parse_config({"seed": items})


def test_an_old_key_does_not_change_other_settings_of_that_name():
    run = parse_config({"stages": ["curriculum"], "curriculum": {"stages": [0, 2]}})
    assert run.phases == ("curriculum",) and run.curriculum.stages == (0, 2)


@given(st.text("abcdefgh_", min_size=1, max_size=12))
def test_any_unknown_key_is_refused(key):
    if key not in asdict(RunConfig()):
        with pytest.raises(UserError, match=f"config.{key} is not a setting"):
            parse_config({key: 1})


def test_thought_slots_cover_every_stage():
    assert changed(curriculum__c_thought=2, curriculum__max_latent_stage=3).max_thoughts == 6
    assert changed(curriculum__mode="cot", phases=("curriculum",)).max_thoughts == 0
    assert changed(phases=("ppo",), ppo__max_thoughts=3).max_thoughts == 3
    navigator = {"ppo__trainable": "navigator", "ppo__gradient": "none", "model__weight_dtype": "bfloat16"}
    assert changed(phases=("ppo",), **navigator).max_thoughts == 6


def test_stored_settings_that_are_refused_today_are_still_read():
    """Grouped batches had no effect on joined answers, and were not refused."""
    config = load_config(Path(__file__).parents[1] / "configs" / "threads.py")
    stored = asdict(parse_config(config))
    stored["data"]["batch_shapes"] = 2
    assert parse_config(stored) == parse_config(config)
    config.data.batch_shapes = 2
    with pytest.raises(UserError, match="set it to 0"):
        parse_config(config)
