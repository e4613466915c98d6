"""Sharding rules, what they refuse, and that a mesh changes no number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from longshot_jax.config.model import MeshConfig
from longshot_jax.errors import UserError
from longshot_jax.model.sharding import (
    check_divides,
    constrain,
    fetch,
    make_mesh,
    on_mesh,
    partition_spec,
    place_batch,
    shardings,
)
from longshot_jax.thoughts.reads.memory_bank import empty_bank


def mesh_of(data=1, fsdp=1, tensor=1):
    """A mesh without devices: shapes are all that rules look at."""
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def test_rules_cut_named_dimensions():
    mesh = mesh_of(2, 4, 2)
    assert partition_spec((32, 64), ("vocab", "embed"), mesh) == PartitionSpec("tensor", "fsdp")
    assert partition_spec((2, 64, 8, 16), ("layers", "embed", "heads", "head_dim"), mesh) == PartitionSpec(
        None, "fsdp", "tensor", None
    )
    assert partition_spec((64,), ("norm",), mesh) == PartitionSpec(None)
    assert partition_spec((64, 64), ("embed", None), mesh_of()) == PartitionSpec(None, None)


def test_the_memory_bank_is_cut_along_its_slots_where_they_divide():
    mesh = make_mesh(MeshConfig())
    cut, whole = (
        shardings(jax.eval_shape(lambda slots=slots: empty_bank(slots, 8)), mesh_of(2, 4, 2))
        for slots in (65_536, 500 + 2)
    )
    assert cut.positions.spec == PartitionSpec("fsdp", None) and cut.values.spec == PartitionSpec("fsdp")
    assert cut.filled.spec == PartitionSpec() and whole.positions.spec == PartitionSpec(None, None)
    assert shardings(empty_bank(4, 2), mesh).positions.is_fully_replicated


def test_activations_are_pinned_where_a_mesh_is_known():
    mesh = mesh_of(2, 2, 2)

    def specs(shape, *names):
        # An abstract mesh has no devices: the constraint is read from the traced function.
        traced = jax.make_jaxpr(on_mesh(mesh, lambda x: constrain(x, *names)))(jnp.zeros(shape))
        return [equation.params["sharding"].spec for equation in traced.eqns]

    assert specs((8, 6, 4, 2), "batch", None, "heads", None) == [PartitionSpec(("data", "fsdp"), None, "tensor", None)]
    assert specs((6, 3), "batch", "mlp") == [PartitionSpec("data", None)], "two parts of six rows, one of three"
    assert not jax.make_jaxpr(lambda x: constrain(x, "batch"))(jnp.zeros(8)).eqns


def test_refuses_one_axis_twice_and_uneven_parts():
    with pytest.raises(UserError, match=r"backbone\.x has two dimensions along mesh axis fsdp"):
        partition_spec((8, 8), ("embed", "embed"), mesh_of(fsdp=2), name="backbone.x")
    with pytest.raises(UserError, match=r"config\.mesh\.tensor 4 does not divide dimension heads of w, which is 6: 3"):
        partition_spec((8, 6), ("embed", "heads"), mesh_of(tensor=4), name="w")
    with pytest.raises(KeyError):
        partition_spec((8,), ("no such axis",), mesh_of())


def test_refuses_more_devices_than_exist():
    count = len(jax.devices())
    with pytest.raises(UserError, match=rf"= {4 * count} devices, but there are {count}: data 1 x fsdp {count} x"):
        make_mesh(MeshConfig(data=2, fsdp=2 * count))
    with pytest.raises(UserError, match="at least 1"):
        make_mesh(MeshConfig(fsdp=0))


def test_batches_must_be_divisible():
    check_divides(8, "config.ppo.questions", mesh_of(2, 4))
    with pytest.raises(UserError, match=r"config\.ppo\.questions 12 is not a multiple of the 8 parts.*: 16 would be"):
        check_divides(12, "config.ppo.questions", mesh_of(2, 4, 2))


def test_place_and_fetch_return_what_was_given():
    mesh = make_mesh(MeshConfig())
    batch = {"rows": np.arange(6).reshape(3, 2), "scalar": np.float32(2.5)}
    back = fetch(place_batch(batch, mesh))
    np.testing.assert_array_equal(back["rows"], batch["rows"])
    assert back["scalar"] == 2.5
    (plain,) = jax.tree.leaves(shardings({"x": jax.ShapeDtypeStruct((3,), np.float32)}, mesh))
    assert plain.is_fully_replicated


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.parametrize(("kind", "uncut", "cut"), [([], 2, 4), (["joined"], 1, 1)], ids=["alone", "joined"])
def test_updates_are_the_same_on_1_2_4_and_8_devices(kind, uncut, cut):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    program = subprocess.run(
        [sys.executable, str(root / "tests" / "sharded_updates.py"), *kind],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert program.returncode == 0, program.stderr[-2000:]
    report = json.loads(program.stdout.splitlines()[-1])
    cuts = [figures["cut_weights"] for figures in report]
    assert len(cuts) == uncut + cut and not any(cuts[:uncut]) and min(cuts[uncut:]) > 5
    for figures in report:
        assert figures["moments_like_weights"]
        assert figures["loss"] < 1e-5 and figures["policy_loss"] < 1e-5, figures
        assert figures["gradient_size"] > 1e-3 and figures["policy_gradient_size"] > 1e-3
        assert figures["gradient"] < 1e-5 * max(1, figures["gradient_size"]), figures
        assert figures["policy_gradient"] < 1e-5 * max(1, figures["policy_gradient_size"]), figures
