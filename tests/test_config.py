"""Settings: unknown keys, wrong types and impossible combinations are refused by name."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_jax.config import RunConfig, default_config, parse_config
from longshot_jax.config_bounds import BOUNDS, check_bounds, settings_of
from longshot_jax.errors import UserError


def changed(**overrides):
    config = default_config()
    for key, value in overrides.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return parse_config(config)


def test_defaults_and_json_come_back_the_same():
    assert parse_config(default_config()) == RunConfig()
    run = changed(ppo__noise=(0.3, 0.1), curriculum__stages=(1, 2), thoughts__feedback="navigator")
    assert parse_config(json.loads(json.dumps(asdict(run)))) == run


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ppo": {"iteration": 1}}, r"config\.ppo\.iteration is no setting: did you mean config\.ppo\.iterations"),
        ({"ppo": {"top_k": 5}}, r"config\.ppo\.top_k is no setting, because a rollout samples the whole distribution"),
        ({"ppo": 3}, r"config\.ppo must be a group"),
        ({"ppo": {"iterations": 1.5}}, r"config\.ppo\.iterations is 1\.5: it must be of type int"),
        ({"ppo": {"iterations": True}}, r"config\.ppo\.iterations is True"),
        ({"ppo": {"noise": (0.1,)}}, r"config\.ppo\.noise .*must hold 2 values"),
        ({"ppo": {"noise": 0.1}}, r"config\.ppo\.noise .*must be a tuple"),
        ({"data": {"operations": ("one",)}}, r"config\.data\.operations is 'one'"),
        ({"markers": "none"}, r"config\.markers is 'none': it must be one of coconut, answer"),
        ({"stages": ("sft",)}, r"config\.stages holds 'sft'"),
        ({"ppo": {"questions": 30, "minibatches": 4}}, r"config\.ppo\.questions 30 is not a multiple"),
        ({"ppo": {"min_steps": 7}}, r"min_steps 7 is more than max_steps 6"),
        ({"ppo": {"target_iterations": 1}}, r"needs config\.ppo\.target_steps"),
        ({"ppo": {"target_steps": (9,)}}, r"target_steps \(9,\) must not be above max_steps 6"),
        ({"ppo": {"baseline": "group", "num_trajectories": 1}}, r"compares trajectories of one question"),
        ({"ppo": {"baseline": "group", "together": True}}, r"independent trajectories"),
        (
            {"ppo": {"baseline": "leave_one_out"}, "thoughts": {"graph": "all"}},
            r"independent trajectories, and config\.thoughts\.graph 'all' lets them read one another",
        ),
        (
            {"ppo": {"baseline": "group"}, "thoughts": {"cross_attention": True}},
            r"config\.thoughts\.cross_attention lets them read one another",
        ),
        ({"ppo": {"dropout": 0.1}}, r"config\.ppo\.dropout is no setting, because .*take config\.curriculum\.dropout"),
        ({"curriculum": {"dropout": 1.0}}, r"config\.curriculum\.dropout is 1\.0: it must be from 0 to below 1"),
        ({"stages": ("curriculum",), "curriculum": {"dropout": 0.1, "mode": "pause"}}, r"dropout is of thoughts, and mode 'pause' has none"),
        ({"curriculum": {"dropout": 0.1, "guidance": {"jacobi": 2}}}, r"dropout is of thoughts made one after the other"),
        ({"ppo": {"baseline": "group", "shared_reward": True}}, r"shared_reward makes their rewards one: take the critic"),
        ({"thoughts": {"max_trajectories": 5}}, r"max_trajectories 5 is the most .*num_trajectories \(now 8\) to one number"),
        ({"ppo": {"baseline": "group"}, "thoughts": {"max_trajectories": 8}}, r"max_trajectories chooses their number"),
        ({"ppo": {"target_trajectories": (2,), "target_iterations": 1}}, r"forces a number that is no choice"),
        (
            {"ppo": {"target_trajectories": (9,)}, "thoughts": {"max_trajectories": 8}},
            r"target_trajectories \(9,\) must lie between 2 and config\.thoughts\.max_trajectories 8",
        ),
        (
            {"ppo": {"loss_mean": "sequence"}, "thoughts": {"max_trajectories": 8}},
            r"loss_mean 'sequence' has no place for",
        ),
        ({"ppo": {"kl_in": "reward", "shared_reward": True}}, r"kl_in 'reward' charges each trajectory for itself"),
        ({"ppo": {"rewards": {"vote_correct": 1.0}}}, r"set config\.ppo\.shared_reward"),
        (
            {"ppo": {"gradient": "pathwise", "rewards": {"diversity": 0.1}}},
            r"diversity is earned by thoughts, and under gradient 'pathwise'",
        ),
        ({"ppo": {"coupling": "antithetic", "baseline": "group"}}, r"coupling 'antithetic' with gradient 'score' is biased"),
        ({"ppo": {"coupling": "orthogonal", "together": True}}, r"as with config\.ppo\.together: take gradient 'pathwise'"),
        ({"thoughts": {"graph": "own", "reasoning_dim": 6}}, r"reasoning_dim 6 is not a multiple of config\.thoughts\.heads 4"),
        ({"ppo": {"noise": (0.0, 0.0)}}, r"config\.ppo\.gradient 'score' needs noise"),
        ({"ppo": {"minibatches": 0}}, r"config\.ppo\.minibatches is 0: it must be at least 1"),
        ({"ppo": {"epochs": 0}}, r"config\.ppo\.epochs is 0"),
        ({"ppo": {"optimizer": {"clip_norm": 0.0}}}, r"config\.ppo\.optimizer\.clip_norm is 0\.0: it must be above 0"),
        ({"ppo": {"optimizer": {"learning_rate": float("nan")}}}, r"learning_rate is nan: it must be at least 0"),
        ({"ppo": {"discount": 1.5}}, r"config\.ppo\.discount is 1\.5: it must be from 0 to 1"),
        ({"ppo": {"rewards": {"correct": float("inf")}}}, r"correct is inf: it must be a finite number"),
        ({"curriculum": {"optimizer": {"b2": 1.0}}}, r"b2 is 1\.0: it must be from 0 to below 1"),
        ({"curriculum": {"stages": ()}}, r"config\.curriculum\.stages is empty"),
        ({"stages": ()}, r"config\.stages is empty"),
        ({"stages": ("ppo", "ppo")}, r"names a stage twice"),
        ({"seed": -1}, r"config\.seed is -1: it must be from 0 to 4294967294"),
        ({"checkpoint": {"every": 0}}, r"config\.checkpoint\.every is 0: it must be at least 1"),
        ({"evaluation": {"questions": 0}}, r"config\.evaluation\.questions is 0"),
        ({"ppo": {"dual_clip": 0.9}}, r"dual_clip 0\.9 .* above 1, usually 3, or 0"),
        ({"ppo": {"value_clip": -0.1}}, r"config\.ppo\.value_clip is -0\.1: it must be at least 0"),
        ({"ppo": {"early_stop_kl": -1.0}}, r"config\.ppo\.early_stop_kl is -1\.0: it must be at least 0"),
        ({"ppo": {"kl_target": 0.1, "kl_coefficient": 0.0}}, r"0 stays 0"),
        ({"ppo": {"kl_in": "reward", "kl_coefficient": 0.0}}, r"kl_in 'reward' charges nothing"),
        ({"ppo": {"kl_estimator": "k1"}}, r"kl_estimator 'k1' has no gradient in the loss"),
        ({"ppo": {"noise": (0.2, -0.1)}}, r"config\.ppo\.noise is \(0\.2, -0\.1\): each must be at least 0"),
        ({"ppo": {"token_temperature": (1.0, 0.0)}}, r"config\.ppo\.token_temperature is \(1\.0, 0\.0\): each must be above 0"),
        ({"ppo": {"stop_temperature": (1.5, 0.5), "stop_annealing": "constant"}}, r"its annealing is 'constant'"),
        ({"ppo": {"gradient": "mixture", "noise": (0.2, 0.0)}}, r"'mixture' needs noise to the end"),
        ({"curriculum": {"mode": "pause", "guidance": {"target": 1.0}}, "stages": ("curriculum",)}, r"'pause' has none of its own"),
        ({"curriculum": {"guidance": {"jacobi": 2, "forcing": (1.0, 0.0)}}}, r"jacobi makes all thoughts at once"),
        ({"thoughts": {"memory_top": 3}}, r"set config\.ppo\.memory_slots"),
        ({"ppo": {"memory_slots": 3}}, r"set config\.thoughts\.memory_top"),
        ({"curriculum": {"batch_size": 10, "micro_batch_size": 4}}, r"not a multiple of\s+config\.curriculum\.micro"),
        ({"data": {"prompt_length": 20, "length_bucket": 8}}, r"prompt_length 20 is not a multiple"),
        ({"curriculum": {"mode": "pause"}}, r"mode 'pause' trains a model without thoughts of its own"),
        ({"model": {"weight_dtype": "bfloat16"}}, r"weight_dtype 'bfloat16' would round away"),
        (
            {"thoughts": {"feedback": "navigator_residual"}, "ppo": {"gradient": "none", "trainable": "navigator"}},
            r"'navigator_residual' with gradient 'none' has no exact rescore",
        ),
    ],
)  # fmt: skip
def test_refusals_name_the_key(values, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_config(values)


def test_every_number_has_a_bound_that_its_default_keeps():
    def is_number(value):
        values = value if isinstance(value, tuple) else (value,)
        return all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)

    numbers = dict(settings_of(RunConfig()))
    assert {key for key, value in numbers.items() if is_number(value)} == set(BOUNDS)
    check_bounds(RunConfig())


@given(st.text("abcdefgh_", min_size=1, max_size=12))
def test_any_unknown_key_is_refused(key):
    if key not in asdict(RunConfig()):
        with pytest.raises(UserError, match=f"config.{key} is no setting"):
            parse_config({key: 1})


def test_thought_slots_cover_every_stage():
    assert changed(curriculum__c_thought=2, curriculum__max_latent_stage=3).max_thoughts == 6
    assert changed(curriculum__mode="cot", stages=("curriculum",)).max_thoughts == 0
    assert changed(stages=("ppo",), ppo__max_steps=3).max_thoughts == 3
    assert (
        changed(stages=("ppo",), ppo__trainable="navigator", model__weight_dtype="bfloat16").max_thoughts == 6
    )
