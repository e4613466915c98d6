"""Controls that test whether answers depend on the thoughts: greedy thoughts are replaced, and answers decoded again.

- `zero`: zeros;
- `noise`: Gaussian vectors with the norms of the thoughts they replace;
- `mean`: the mean thought of all other questions in the same slot, or in all slots where no other question has this one;
- `swap`: the thoughts of another question, with the same number of thoughts if possible.

Of a joined answer all trajectories are replaced so, and these show what each is for:

- `one_zero`, `one_swap`: the first trajectory alone is replaced, as in `zero` and `swap`;
- `identical`: every trajectory has the thoughts of the first;
- `roles_swapped`: every trajectory keeps its thoughts and has the role of the one before it.

A question keeps its number of thoughts. Under each of these controls a model that reads its thoughts falls to chance,
and a model that does not keeps its accuracy. Replacements are made for all questions at once, independently of the batch size.

Where thoughts read a memory bank, a graph or other trajectories (`thoughts.reads`), `no_reads` lets the model think again
without the bank and with zeros in the place of what they read from the others. A model that needs its reads falls to chance.

Shapes: Q questions in total, N trajectories, T thought slots, D hidden size.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from longshot_jax.thoughts.reasoner import Params


def replaced_trajectories(
    kind: str,
    thoughts: Float[np.ndarray, "Q N T D"],
    num_thoughts: Int[np.ndarray, "Q N"],
    seed: int,
    questions: Int[np.ndarray, " Q"] | None = None,
) -> Float[np.ndarray, "Q N T D"] | None:
    """`replaced_thoughts` of all trajectories, or what a control of joined answers replaces.

    A trajectory that no two different questions have keeps its thoughts. None where that would keep all of them.
    """
    if kind == "roles_swapped":
        return thoughts
    if kind == "identical":
        return np.broadcast_to(thoughts[:, :1], thoughts.shape)
    changed = 1 if kind.startswith("one_") else thoughts.shape[1]
    kind = kind.removeprefix("one_")
    columns = [
        replaced_thoughts(kind, thoughts[:, n], num_thoughts[:, n], seed + n, questions)
        if n < changed
        else thoughts[:, n]
        for n in range(thoughts.shape[1])
    ]
    if all(column is None for column in columns[:changed]):
        return None
    kept = [thoughts[:, n] if column is None else column for n, column in enumerate(columns)]
    return np.stack(kept, axis=1)


def replaced_thoughts(
    kind: str,
    thoughts: Float[np.ndarray, "Q T D"],
    num_thoughts: Int[np.ndarray, " Q"],
    seed: int,
    questions: Int[np.ndarray, " Q"] | None = None,
) -> Float[np.ndarray, "Q T D"] | None:
    """Embeddings to feed back instead of `thoughts`; None for `mean` and `swap` without two questions that have thoughts.

    Slots from `num_thoughts` on are ignored. `seed` is that of `noise`. `questions` are as for `swap_donors`.
    """
    thought_mask = np.arange(thoughts.shape[1]) < num_thoughts[:, None]
    real = np.where(thought_mask[..., None], thoughts, 0.0)
    if kind == "zero":
        return np.zeros_like(thoughts)
    if kind == "noise":
        noise = np.random.default_rng(seed).standard_normal(thoughts.shape, np.float32)
        norms = np.linalg.norm(real, axis=-1, keepdims=True)
        return (noise * (norms / np.linalg.norm(noise, axis=-1, keepdims=True))).astype(thoughts.dtype)
    if kind not in ("mean", "swap"):
        raise ValueError(f"there is no control {kind!r}")
    donors = swap_donors(num_thoughts, questions)
    if donors is None:
        return None
    if kind == "mean":
        return _mean_of_others(thought_mask, real, np.arange(len(thoughts)) if questions is None else questions)
    # The last thought of a donor with fewer thoughts is repeated.
    slot = np.minimum(np.arange(thoughts.shape[1]), np.maximum(num_thoughts[donors] - 1, 0)[:, None])
    return np.take_along_axis(thoughts[donors], slot[..., None], axis=1)


def _mean_of_others(
    thought_mask: Bool[np.ndarray, "Q T"], real: Float[np.ndarray, "Q T D"], questions: Int[np.ndarray, " Q"]
) -> Float[np.ndarray, "Q T D"]:
    """The mean thought of the other questions in each slot, or in all slots if none of them has this one.

    In a slot that few questions have, much of a mean with the question's own thought would be this thought.
    """
    _, copies = np.unique(questions, return_inverse=True)

    def of_others(parts: np.ndarray) -> np.ndarray:
        own = np.zeros((copies.max() + 1, *parts.shape[1:]))  # of a question and its copies
        np.add.at(own, copies, parts)
        return (own.sum(axis=0) - own)[copies]

    counts = of_others(thought_mask)
    anywhere = of_others(real.sum(axis=1, dtype=np.float64)) / np.maximum(counts.sum(axis=1), 1)[:, None]
    mean = np.empty_like(real)
    for slot, left in enumerate(counts.T[..., None]):  # a slot at a time: all would be large in float64
        mean[:, slot] = np.where(left > 0, of_others(real[:, slot]) / np.maximum(left, 1), anywhere)
    return mean


def swap_donors(
    num_thoughts: Int[np.ndarray, " Q"], questions: Int[np.ndarray, " Q"] | None = None
) -> Int[np.ndarray, " Q"] | None:
    """Index of the question whose thoughts replace those of each question; None if fewer than two have thoughts.

    Questions with the same number of thoughts exchange them in a ring. A question that is alone with its number takes the
    thoughts of the question with the nearest number, the larger on ties. A question with thoughts never gets its own, nor
    those of a copy of it: `questions` are equal numbers for equal questions; None is that all differ.
    """
    questions = np.arange(len(num_thoughts)) if questions is None else questions
    thinkers = np.flatnonzero(num_thoughts > 0)
    if len(np.unique(questions[thinkers])) < 2:
        return None
    donors = np.arange(len(num_thoughts))
    for count in np.unique(num_thoughts[thinkers]):
        group = np.flatnonzero(num_thoughts == count)
        donors[group] = np.roll(group, 1)
        for place in np.flatnonzero(questions[donors[group]] == questions[group]):
            row = group[place]
            before = np.roll(group, -place)[::-1]  # around the ring, from the neighbour to the row itself
            different = before[questions[before] != questions[row]]
            if not len(different):
                others = thinkers[questions[thinkers] != questions[row]]
                gap = num_thoughts[others] - count
                different = others[np.lexsort((gap < 0, np.abs(gap)))]
            donors[row] = different[0]
    return donors


def question_numbers(questions: Sequence[str]) -> Int[np.ndarray, " Q"]:
    """A number of each question, equal for equal ones."""
    seen: dict[str, int] = {}
    return np.asarray([seen.setdefault(question, len(seen)) for question in questions], int)


def without_reads(params: Params, others: bool) -> Params | None:
    """The parameters of the same model, which reads zeros from graph and other trajectories; None if it reads neither.

    `others`: whether there are other trajectories to read.
    """
    writers = {("navigator", "graph", "out"), *([("navigator", "cross_attention", "out")] if others else [])}

    def silenced(state: nnx.State) -> nnx.State:
        flat = dict(nnx.to_flat_state(state))
        zeros = {path: flat[path].replace(jnp.zeros_like(flat[path][...])) for path in writers & flat.keys()}
        return nnx.from_flat_state(flat | zeros)

    reads = any(path in writers for state in params for path, _ in nnx.to_flat_state(state))
    return tuple(map(silenced, params)) if reads else None
