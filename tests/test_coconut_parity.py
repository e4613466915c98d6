"""The curriculum's loss and gradients against the published COCONUT implementation, ragged rows included."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.loss import curriculum_sums
from longshot_jax.data.layout import padded
from longshot_jax.longshot import LongShot
from longshot_jax.model.huggingface.tensor_names import tensors_of

GOLDEN = Path(__file__).parent / "fixtures" / "golden_llama3"
LATENT, PAD = 91, 89


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "golden.npz")


@pytest.fixture(scope="module")
def batch(golden) -> CurriculumBatch:
    """The golden rows as the curriculum sees them: question up to `<|start-latent|>`, thoughts, then the rest."""
    prompts, rests, labels, num_thoughts = [], [], [], []
    for ids, mask, label in zip(golden["c_ids"], golden["c_mask"], golden["c_labels"], strict=True):
        ids, label = ids[mask == 1], label[mask == 1]
        latent = np.flatnonzero(ids == LATENT)
        assert (np.diff(latent) == 1).all()
        prompts.append(ids[: latent[0]].tolist())
        rests.append(ids[latent[-1] + 1 :].tolist())
        labels.append((label[latent[-1] + 1 :] != -100).tolist())
        num_thoughts.append(len(latent))
    prompt, prompt_mask = padded(prompts, 24, PAD, left=True)
    tokens, token_mask = padded(rests, 16, PAD)
    loss_mask, _ = padded(labels, 16, 0)
    num_thoughts = np.asarray(num_thoughts, np.int32)
    rows = CurriculumBatch(prompt, prompt_mask, num_thoughts, tokens, token_mask, loss_mask.astype(bool))
    return jax.tree.map(jnp.asarray, rows)


@pytest.mark.card
@pytest.mark.law
def test_loss_and_gradient_norms_are_coconuts(golden, batch):
    assert sorted(batch.num_thoughts.tolist()) == [2, 3, 4]
    assert batch.loss_mask.sum() == (golden["c_labels"] != -100).sum()
    model = LongShot.from_pretrained(GOLDEN, dtype="float32").model

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        # Five slots for at most four thoughts: the spare one must count for nothing.
        sums = curriculum_sums(nnx.merge(model.graphdef, *params), batch, max_thoughts=5)
        return sums.loss_sum / sums.count

    value, gradients = loss(model.params)
    np.testing.assert_allclose(value, golden["c_loss"], rtol=1e-5)
    norms = {}
    for tensor in tensors_of(gradients[0]["backbone"]):
        gradient = tensor.weight if tensor.layer is None else tensor.weight[tensor.layer]
        norms[tensor.name] = float(jnp.linalg.norm(gradient))
    assert set(norms) == set(golden["g_names"].tolist())
    expected = dict(zip(golden["g_names"].tolist(), golden["g_norms"].tolist(), strict=True))
    for name, norm in expected.items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name


def test_the_bound_notices_whether_thoughts_are_thoughts(golden, batch):
    """With the latent token's embedding in their place the loss is another one."""
    model = LongShot.from_pretrained(GOLDEN, dtype="float32").model

    @jax.jit
    def pauses(params):
        reasoner = nnx.merge(model.graphdef, *params)
        return curriculum_sums(reasoner, batch, max_thoughts=5, pause_token=LATENT)

    sums = pauses(model.params)
    assert abs(float(sums.loss_sum / sums.count) - float(golden["c_loss"])) > 1e-2
