"""Controls: does the answer come from the thoughts? Each replaces the greedy thoughts and decodes the answer again.

- `zero`: zeros;
- `noise`: Gaussian vectors, each of the norm of the thought that it replaces;
- `mean`: the mean over all questions of the thoughts in that slot;
- `swap`: the thoughts of another question, with as many thoughts wherever there is one.

A question keeps its own number of thoughts. A model that reads its thoughts falls to chance under each; one that
does not is as good as before. Replacements are made on the host over all questions at once, so that they do not
depend on how an evaluation is cut into batches.

Shapes: Q questions of the whole file, T thought slots, D hidden size.
"""

import numpy as np
from jaxtyping import Float, Int


def replaced_thoughts(
    kind: str, thoughts: Float[np.ndarray, "Q T D"], counts: Int[np.ndarray, " Q"], seed: int
) -> Float[np.ndarray, "Q T D"] | None:
    """Thoughts to decode from instead of `thoughts`; None for `swap` where there is but one question with thoughts.

    Args:
      kind: `zero`, `noise`, `mean` or `swap`.
      thoughts: embeddings that were fed back; slots from `counts` on are not read.
      counts: thoughts of each question.
      seed: of `noise`.
    """
    taken = np.arange(thoughts.shape[1]) < counts[:, None]
    real = np.where(taken[..., None], thoughts, 0.0)
    if kind == "zero":
        return np.zeros_like(thoughts)
    if kind == "noise":
        noise = np.random.default_rng(seed).standard_normal(thoughts.shape, np.float32)
        norms = np.linalg.norm(real, axis=-1, keepdims=True)
        return (noise * (norms / np.linalg.norm(noise, axis=-1, keepdims=True))).astype(thoughts.dtype)
    if kind == "mean":
        slots = np.maximum(taken.sum(axis=0), 1)
        mean = real.sum(axis=0, dtype=np.float64) / slots[:, None]
        return np.broadcast_to(mean.astype(thoughts.dtype), thoughts.shape)
    if kind == "swap":
        donors = swap_donors(counts)
        if donors is None:
            return None
        # A donor with fewer thoughts repeats its last one.
        slot = np.minimum(np.arange(thoughts.shape[1]), np.maximum(counts[donors] - 1, 0)[:, None])
        return np.take_along_axis(thoughts[donors], slot[..., None], axis=1)
    raise ValueError(f"there is no control {kind!r}")


def swap_donors(counts: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"] | None:
    """For each question the one whose thoughts it is given: never itself, of the same count where one exists.

    Questions of one count pass theirs around in a ring. One that is alone with its count takes those of the
    question nearest in count, rather one with more. None where fewer than two questions have thoughts.
    """
    thinkers = np.flatnonzero(counts > 0)
    if len(thinkers) < 2:
        return None
    donors = np.arange(len(counts))
    for count in np.unique(counts[thinkers]):
        group = np.flatnonzero(counts == count)
        if len(group) > 1:
            donors[group] = np.roll(group, 1)
        else:
            others = thinkers[thinkers != group[0]]
            gap = counts[others] - count
            donors[group[0]] = others[np.lexsort((gap < 0, np.abs(gap)))[0]]
    return donors
