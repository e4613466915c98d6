"""Controls that test whether answers depend on the thoughts: greedy thoughts are replaced, and answers decoded again.

- `zero`: zeros;
- `noise`: Gaussian vectors with the norms of the thoughts they replace;
- `mean`: the mean thought of all questions in the same slot;
- `swap`: the thoughts of another question, with the same number of thoughts if possible.

A question keeps its number of thoughts. Under each control a model that reads its thoughts falls to chance, and a model
that does not keeps its accuracy. Replacements are made for all questions at once, independently of the batch size.

Shapes: Q questions in total, T thought slots, D hidden size.
"""

import numpy as np
from jaxtyping import Float, Int


def replaced_thoughts(
    kind: str, thoughts: Float[np.ndarray, "Q T D"], num_thoughts: Int[np.ndarray, " Q"], seed: int
) -> Float[np.ndarray, "Q T D"] | None:
    """Embeddings to feed back instead of `thoughts`; None for `swap` if fewer than two questions have thoughts.

    Slots from `num_thoughts` on are ignored. `seed` is that of `noise`.
    """
    thought_mask = np.arange(thoughts.shape[1]) < num_thoughts[:, None]
    real = np.where(thought_mask[..., None], thoughts, 0.0)
    if kind == "zero":
        return np.zeros_like(thoughts)
    if kind == "noise":
        noise = np.random.default_rng(seed).standard_normal(thoughts.shape, np.float32)
        norms = np.linalg.norm(real, axis=-1, keepdims=True)
        return (noise * (norms / np.linalg.norm(noise, axis=-1, keepdims=True))).astype(thoughts.dtype)
    if kind == "mean":
        slots = np.maximum(thought_mask.sum(axis=0), 1)
        mean = real.sum(axis=0, dtype=np.float64) / slots[:, None]
        return np.broadcast_to(mean.astype(thoughts.dtype), thoughts.shape)
    if kind != "swap":
        raise ValueError(f"there is no control {kind!r}")
    donors = swap_donors(num_thoughts)
    if donors is None:
        return None
    # The last thought of a donor with fewer thoughts is repeated.
    slot = np.minimum(np.arange(thoughts.shape[1]), np.maximum(num_thoughts[donors] - 1, 0)[:, None])
    return np.take_along_axis(thoughts[donors], slot[..., None], axis=1)


def swap_donors(num_thoughts: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"] | None:
    """Index of the question whose thoughts replace those of each question; None if fewer than two have thoughts.

    Questions with the same number of thoughts exchange them in a ring. A question with a unique number takes the
    thoughts of the question with the nearest number, the larger on ties. A question with thoughts never gets its own.
    """
    thinkers = np.flatnonzero(num_thoughts > 0)
    if len(thinkers) < 2:
        return None
    donors = np.arange(len(num_thoughts))
    for count in np.unique(num_thoughts[thinkers]):
        group = np.flatnonzero(num_thoughts == count)
        if len(group) > 1:
            donors[group] = np.roll(group, 1)
        else:
            others = thinkers[thinkers != group[0]]
            gap = num_thoughts[others] - count
            donors[group[0]] = others[np.lexsort((gap < 0, np.abs(gap)))[0]]
    return donors
