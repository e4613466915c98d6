"""Small reasoners, questions and an uncached oracle, shared by the tests of the laws."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longshot_jax.config.model import LoraConfig
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.thoughts.reads.history import History
from longshot_jax.thoughts.reads.memory_bank import MemoryBank, empty_bank, write_bank
from longshot_jax.thoughts.reasoner import Reasoner

VOCABULARY, END = 13, 2
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "rope_theta": 100.0,
}
READS = {
    "nothing": {},
    "own": {"graph": "own", "heads": 1, "graph_layers": 2},
    "all": {"graph": "all", "heads": 1, "cross_attention": True, "step_embeddings": 2},
}
ADAPTERS = LoraConfig(rank=2, alpha=1.0)
# The laws are about values, not speed: a test waits for compilation more than for anything else.
QUICK = {"xla_backend_optimization_level": "0"} if os.environ.get("JAX_PLATFORMS") == "cpu" else {}


def small_reasoner(
    feedback: str = "hidden",
    normalised: bool = False,
    memory_top: int = 0,
    seed: int = 0,
    reasoning_dim: int = 5,
    dtype: jax.typing.DTypeLike = jnp.float32,
    reads: str = "nothing",
    max_trajectories: int = 0,
    roles: int = 0,
    join: bool = False,
    lora: LoraConfig | None = None,
    noise: str = "fixed",
    sampled_tokens: int = 1,
    **shape: int | float,
) -> Reasoner:
    """A random reasoner in which no weight of navigator and adapters is zero, so that every head matters.

    `reads` is a key of READS: what its thoughts read of earlier actions.
    """
    config = LlamaConfig(**SMALL | shape)
    others = {"max_trajectories": max_trajectories, "roles": roles, "join": join}
    others |= {"noise": noise, "sampled_tokens": sampled_tokens}
    kind = NavigatorConfig(feedback, normalised, reasoning_dim, memory_top, **READS[reads], **others)
    abstract = nnx.eval_shape(
        lambda: Reasoner(Llama(config, nnx.Rngs(0), compute_dtype=dtype, lora=lora), kind, nnx.Rngs(0))
    )
    graphdef, params = nnx.split(abstract)
    generator = np.random.default_rng(seed)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        values = generator.normal(size=leaf.shape) * (0.2 if "norm" in name or "bias" in name else 0.5)
        return jnp.asarray(values + ("norm" in name or "scale" in name), dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(fill, params))


def shaken(reasoner: Reasoner, seed: int, size: float) -> Reasoner:
    """A copy with normal noise of standard deviation `size` on every weight."""
    graphdef, params = nnx.split(reasoner)
    generator = np.random.default_rng(seed)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: x + jnp.asarray(size * generator.normal(size=x.shape), x.dtype), params)
    )


def small_bank(dim: int = 5, entries: int = 6, seed: int = 5) -> MemoryBank:
    """A bank with free slots, whose entries have positive values."""
    positions = jax.random.normal(jax.random.key(seed), (entries, dim))
    return write_bank(empty_bank(entries + 3, dim), positions, jnp.linspace(0.5, 1.5, entries), jnp.ones(entries, bool))


def ragged_prompts(lengths: list[int], width: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Left-padded random prompts; the padding holds random tokens too, which must change nothing.

    A row's real tokens depend only on the seed and its own length.
    """
    tokens = np.random.default_rng([seed, 99]).integers(0, VOCABULARY, (len(lengths), width))
    for row, length in enumerate(lengths):
        own = np.random.default_rng([seed, row]).integers(0, VOCABULARY, length)
        tokens[row, width - length :] = own
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)


@partial(jax.jit, static_argnums=0)
def question_keys(count: int, seed: int = 0) -> jax.Array:
    """One random key per question, by its index."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(count))


def from_scratch(reasoner: Reasoner, embeddings: Any, xp: Any = np, positions: Any = None, sees: Any = None) -> Any:
    """Last hidden states [Q, D] of input embeddings [Q, D]: one row, no padding, no cache, nothing of the package.

    Runs on NumPy, or with `xp=jnp` under transformations, in the precision of the embeddings. By default positions
    count up and each sees every earlier one; `sees` [Q, Q] says which position sees which.
    """
    config, layers = reasoner.backbone.config, reasoner.backbone.layers
    length, size = embeddings.shape[0], config.head_dim
    sees = np.tril(np.ones((length, length), bool)) if sees is None else sees
    angles = (np.arange(length) if positions is None else positions)[:, None] * config.rope_theta ** (
        -np.arange(0, size, 2) / size
    )
    angles = angles[:, None].astype(embeddings.dtype)

    def norm(x, scale):
        return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + config.rms_norm_eps) * scale

    def turn(x):
        first, second = x[..., : size // 2], x[..., size // 2 :]
        cosine, sine = np.cos(angles), np.sin(angles)
        return xp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)

    def weights(name, layer):
        matrix = xp.asarray(getattr(layers, name)[...])[layer]
        if layers.lora is not None and name in layers.lora.config.targets:
            into, out = (xp.asarray(getattr(layers.lora, f"{name}_{way}")[...])[layer] for way in ("in", "out"))
            matrix = matrix + layers.lora.config.alpha / layers.lora.config.rank * xp.tensordot(into, out, 1)
        return matrix

    x = embeddings
    groups = config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        normed = norm(x, weights("attention_norm", layer))
        query = turn(xp.einsum("qd,dhc->qhc", normed, weights("query", layer)))
        key = turn(xp.einsum("qd,dkc->qkc", normed, weights("key", layer)))
        value = xp.einsum("qd,dkc->qkc", normed, weights("value", layer))
        key, value = xp.repeat(key, groups, axis=1), xp.repeat(value, groups, axis=1)
        logits = xp.einsum("qhc,phc->hqp", query, key) / size**0.5
        logits = xp.where(sees, logits, -np.inf)
        attention = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        attention = attention / xp.sum(attention, axis=-1, keepdims=True)
        mixed = xp.einsum("hqp,phc->qhc", attention, value)
        x = x + xp.einsum("qhc,hcd->qd", mixed, weights("output", layer))
        normed = norm(x, weights("mlp_norm", layer))
        gate = normed @ weights("gate", layer)
        gate = gate / (1 + xp.exp(-gate))
        x = x + (gate * (normed @ weights("up", layer))) @ weights("down", layer)
    return norm(x, xp.asarray(reasoner.backbone.final_norm[...]))


@dataclass
class OracleTrajectory:
    """One trajectory of the oracle: everything without padding."""

    actions: list[np.ndarray]
    hidden: list[np.ndarray]
    stop_logits: list[float]
    tokens: list[int]
    log_probs: list[float]


def _history_of(navigator: Any, found: list[OracleTrajectory], shape: tuple[int, ...]) -> History | None:
    """The actions of all trajectories so far, where thoughts read them."""
    if not navigator.config.reads_history:
        return None
    actions, values, thought_mask = (
        np.zeros(shape, np.float32),
        np.zeros(shape[:2], np.float32),
        np.zeros(shape[:2], bool),
    )
    for row, trajectory in enumerate(found):
        for step, action in enumerate(trajectory.actions):
            actions[row, step], thought_mask[row, step] = action, True
            values[row, step] = navigator.value(jnp.asarray(trajectory.hidden[step]))
    return History(*(jnp.asarray(x)[None] for x in (actions, values, thought_mask)))


def oracle_trajectories(
    reasoner: Reasoner,
    tokens: list[int],
    memory: MemoryBank | None,
    bounds: list[tuple[int, int]],
    noise: np.ndarray,
    thought_std: float,
    opening: tuple[int, ...],
    answer_length: int,
    ensemble: bool,
) -> list[OracleTrajectory]:
    """Thinks and decodes greedily, one question, recomputing every prefix from scratch at every step.

    `bounds` are (fewest, most) thoughts and `noise` [N, T, X] of each trajectory. The trajectories advance side by
    side, because an ensemble is fed its mean and stops by majority.
    """
    navigator, backbone = reasoner.navigator, reasoner.backbone
    table = np.asarray(backbone.embedding[...])
    head = table if backbone.config.tie_word_embeddings else np.asarray(backbone.head[...])
    prefix = table[tokens]
    rows = [prefix for _ in bounds]
    found = [OracleTrajectory([], [], [], [], []) for _ in bounds]
    going = list(range(len(bounds)))
    for step in range(noise.shape[1] + 1):
        votes = {}
        for row in going:
            hidden = from_scratch(reasoner, rows[row])[-1]
            logit = float(navigator.stop_logit(jnp.asarray(hidden)))
            found[row].hidden.append(hidden)
            found[row].stop_logits.append(logit)
            fewest, most = bounds[row]
            votes[row] = step >= fewest and (step >= most or logit > 0)
        if step == noise.shape[1]:
            break
        if ensemble:
            going = [] if 2 * sum(votes.values()) > len(going) else going
        else:
            going = [row for row in going if not votes[row]]
        history, hidden = (
            _history_of(navigator, found, noise.shape),
            np.zeros((len(bounds), backbone.config.hidden_size)),
        )
        for row in going:
            hidden[row] = found[row].hidden[-1]
        source = hidden
        if navigator.config.feedback == "vocabulary":
            source = jax.nn.softmax(hidden @ head.T) @ table
        means = navigator.action_mean(
            jnp.asarray(source, table.dtype)[None, :, None], memory, history, jnp.asarray([step])
        )[0, :, 0]
        stds = thought_std * np.ones(len(bounds))
        if navigator.config.noise == "learned":
            logits = hidden @ np.asarray(navigator.noise_weight[...]) + np.asarray(navigator.noise_bias[...])
            stds = stds * 8 ** np.tanh(logits)
        actions = {row: means[row] + stds[row] * noise[row, step] for row in going}
        shared = sum(actions.values()) / max(len(going), 1)
        for row in going:
            found[row].actions.append(np.asarray(actions[row]))
            fed = shared if ensemble else actions[row]
            thought = navigator.to_embedding(fed, jnp.asarray(found[row].hidden[-1]))
            rows[row] = np.concatenate([rows[row], np.asarray(thought)[None]])
    for row, trajectory in enumerate(found):
        inputs = np.concatenate([rows[row], table[list(opening)]])
        while len(trajectory.tokens) < answer_length and END not in trajectory.tokens:
            logits = head @ from_scratch(reasoner, inputs)[-1]
            token = int(np.argmax(logits))
            trajectory.tokens.append(token)
            trajectory.log_probs.append(float(logits[token] - np.log(np.sum(np.exp(logits)))))
            inputs = np.concatenate([inputs, table[[token]]])
    return found
