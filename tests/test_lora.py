"""Adapters: they start as nothing, learn alone, and merge into the matrices that they stand beside."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import ADAPTERS, SMALL, small_reasoner
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from run_folders import PPO as RUN
from run_folders import save_run
from test_ppo_update import PPO, rewards, rolled_out, updated
from tiny_run import tiny, watch_batches

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.initialize import abstract_reasoner, build_reasoner
from longshot_jax.config.model import LoraConfig, ModelConfig
from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.longshot import LongShot
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.sharding import make_mesh, shardings
from longshot_jax.model.storage import plain_weights
from longshot_jax.train import train
from longshot_jax.training.optimizer import make_optimizer

SHAPE = LlamaConfig(**SMALL)
TOKENS = np.array([[1, 4, 2, 7], [3, 3, 5, 0]], np.int32)


@jax.jit
def logits(backbone):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden, _ = backbone(backbone.embed(jnp.asarray(TOKENS)), positions, jnp.ones(TOKENS.shape, bool))
    return backbone.logits(hidden)


def plain_graph(shape=SHAPE):
    return nnx.split(nnx.eval_shape(lambda: Llama(shape, nnx.Rngs(0))))[0]


def without_adapters(weights, lora):
    return nnx.merge(plain_graph(), plain_weights(weights, lora))


def test_a_fresh_adapter_changes_nothing():
    adapted = Llama(SHAPE, nnx.Rngs(0), lora=LoraConfig(2, 8.0))
    plain = without_adapters(nnx.split(adapted)[1], None)
    np.testing.assert_array_equal(logits(plain), logits(adapted))


@pytest.mark.parametrize("targets", [ADAPTERS.targets, ("query", "down")], ids=["all", "two"])
def test_merged_weights_compute_the_same(targets):
    lora = replace(ADAPTERS, targets=targets)
    adapted = small_reasoner(lora=lora).backbone
    weights = nnx.split(adapted)[1]
    np.testing.assert_allclose(logits(without_adapters(weights, lora)), logits(adapted), atol=1e-5)
    assert np.abs(logits(without_adapters(weights, None)) - logits(adapted)).max() > 0.1


def test_factors_are_cut_like_the_matrices_beside_them():
    mesh = AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    shape = replace(SHAPE, vocab_size=14, num_attention_heads=4, num_key_value_heads=2, head_dim=2)
    weights = nnx.split(nnx.eval_shape(lambda: Llama(shape, nnx.Rngs(0), lora=ADAPTERS)))[1]
    places = shardings(weights, mesh)["layers"]["lora"]
    specs = {
        name: tuple(jax.tree.leaves(places[name])[0].spec)
        for name in ("query_in", "query_out", "output_in", "down_out")
    }
    assert specs == {
        "query_in": (None, "fsdp", None),
        "query_out": (None, None, "tensor", None),
        "output_in": (None, "tensor", None, None),
        "down_out": (None, None, "fsdp"),
    }


@pytest.mark.slow
@pytest.mark.law
def test_only_adapters_and_navigator_are_trained():
    """Ratio one, and what moves, has moments and has a reference."""
    reasoner = small_reasoner("navigator", lora=ADAPTERS)
    config = replace(PPO, trainable="lora", kl_coefficient=0.1, micro_batches=2)
    data = (*rolled_out(reasoner), *rewards())
    before, after, metrics = updated(reasoner, config, data, optax.sgd(1.0), reference=True)
    for kind in ("stops", "thoughts", "tokens"):
        assert metrics[f"{kind}/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert abs(metrics["kl"]) < 1e-6
    for old, new in zip(jax.tree.leaves(before.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(old, new)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.trainable, after.trainable)
    assert all(jax.tree.leaves(moved["backbone"])), moved
    trained = {path for path, _ in nnx.to_flat_state(before.trainable)}
    assert all("navigator" in path or "lora" in path for path in trained)
    assert jax.tree.structure(before.reference) == jax.tree.structure(before.trainable)
    moments = make_optimizer(OptimizerConfig(), 1).init(before.trainable)
    count = sum(leaf.size for leaf in jax.tree.leaves(before.trainable))
    assert sum(leaf.size for leaf in jax.tree.leaves(moments)) < 2 * count + 20


ADAPTED_PPO = replace(RUN, ppo=replace(RUN.ppo, trainable="lora"))
ADAPTED = {
    "curriculum__trainable": "lora",
    "ppo__trainable": "lora",
    "model__lora__rank": 2,
    "thoughts__feedback": "navigator",
    "thoughts__normalised": True,
    "curriculum__stages": (1,),
    "ppo__iterations": 2,
}


def arrays(folder, step="latest"):
    with Checkpoints.reader(folder) as checkpoints:
        return checkpoints._read_metadata(checkpoints.step_of(step))[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of PPO with adapters, as training leaves it."""
    folder = tmp_path_factory.mktemp("adapted")
    save_run(folder, replace(ADAPTED_PPO, model=ModelConfig(lora=ADAPTERS)), "ppo")
    return folder


@pytest.mark.slow
def test_a_run_is_asked_with_its_adapters(folder):
    saved = arrays(folder)
    assert not any(name.startswith("trainable.backbone") and ".lora." not in name for name in saved)
    model = LongShot.from_pretrained(folder)
    assert isinstance(model.generate("a=6 n=a+2 n?"), str)
    weights = model.model.params[0]["backbone"]
    plain = nnx.merge(plain_graph(model.model.backbone), plain_weights(weights, ADAPTERS))
    np.testing.assert_allclose(model.logits(TOKENS), logits(plain), atol=1e-5)
    unadapted = nnx.merge(plain_graph(model.model.backbone), plain_weights(weights, None))
    assert np.abs(model.logits(TOKENS) - logits(unadapted)).max() > 0.01


@pytest.mark.parametrize(
    "other",
    [{}, {"model__lora__rank": 3}, {"ppo__trainable": "all"}, {"model__weight_dtype": "bfloat16"}],
    ids=["same adapters", "other adapters", "none", "other storage"],
)
def test_another_run_starts_from_it(folder, other):
    """With the same adapters, or with these merged into the matrices."""
    same = {"model__lora__rank": 2, "model__lora__alpha": 1.0}
    run = tiny(**ADAPTED | same | {"phases": ("ppo",), "initialize_from": str(folder)} | other)
    abstract = abstract_reasoner(run, Tokenizer.load(str(folder / "tokenizer")), make_mesh(run.mesh), None)
    weights, _ = build_reasoner(run, abstract, None)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), weights) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract.params
    )
    expected = LongShot.from_pretrained(folder).logits(TOKENS)
    result = logits(nnx.merge(abstract.graphdef, weights).backbone)
    np.testing.assert_allclose(result, expected, atol=3e-2 if "model__weight_dtype" in other else 1e-5)


@pytest.mark.slow
def test_a_run_trains_adapters_alone_and_resumes_with_the_same_bits(tmp_path, monkeypatch):
    train(tiny(**ADAPTED), tmp_path / "whole", io.StringIO())
    start, end = arrays(tmp_path / "whole", 6), arrays(tmp_path / "whole")  # of PPO
    moved = {name for name in end if start[name].get("fingerprint") != end[name].get("fingerprint")}
    assert not any(name.startswith("frozen") for name in moved)
    assert any(name.startswith("trainable.backbone.layers.lora.down_out") for name in moved)
    stopping = [4, 7]  # in the curriculum, then in PPO

    def stop(taken: int) -> None:
        if stopping and taken == stopping[0]:
            stopping.pop(0)
            raise KeyboardInterrupt

    watch_batches(monkeypatch.setattr, stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tiny(**ADAPTED), tmp_path / "parts", io.StringIO())
    with Checkpoints.reader(tmp_path / "parts") as checkpoints:
        assert checkpoints.metadata()["phase"] == "ppo" and checkpoints.steps[-1] < 8
    train(tiny(**ADAPTED), tmp_path / "parts", io.StringIO())
    assert arrays(tmp_path / "parts") == end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__lora__rank": 0}, r"config\.model\.lora\.rank is 0: .*at least 1"),
        ({"model__lora__targets": ()}, "name one or more matrices"),
        ({"model__lora__targets": ("up", "up")}, "each once"),
        ({"curriculum__trainable": "all", "model__weight_dtype": "bfloat16"}, r"config\.curriculum\.trainable to 'lora'"),
        ({"curriculum__trainable": "navigator", "curriculum__mode": "cot"}, "has nothing to train"),
    ],
)  # fmt: skip
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**ADAPTED | changes)


def test_a_rank_above_the_matrix_is_refused(tmp_path):
    with pytest.raises(UserError, match="rank 17 exceeds the largest rank of the matrix 'query', 16"):
        train(tiny(**ADAPTED | {"model__lora__rank": 17}), tmp_path, io.StringIO())
