"""Problems that occur more than once, recognised by their questions.

Two questions are the same if they are equal after Unicode normalisation (NFKC), case folding and joining of white space.
Only a hash of 16 bytes is kept of each, so that hundreds of thousands of problems take seconds.
"""

import hashlib
import unicodedata
from collections.abc import Collection, Sequence

from longshot_jax.data.problems import Problem


def question_key(problem: Problem) -> bytes:
    """A hash that problems with the same question share."""
    text = problem.question
    if not text.isascii():  # folding can undo a normal form
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def spaced_questions(keys: Sequence[bytes], stride: int, most: int) -> frozenset[bytes]:
    """Every `stride`-th different question, `most` at most, evenly spaced in the order of their first occurrences."""
    different = list(dict.fromkeys(keys))
    count = min(len(different) // stride, most)
    return frozenset(different[number * len(different) // count] for number in range(count))


def without(problems: Sequence[Problem], keys: Sequence[bytes], excluded: Collection[bytes]) -> list[Problem]:
    """The problems, with these keys, whose question is not `excluded`."""
    return [problem for problem, key in zip(problems, keys, strict=True) if key not in excluded]
