"""The run-time checker of shape annotations used by the tests."""

import warnings

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning


def check_functions(function):
    """Beartype for functions and methods; constructors pass unchecked.

    State dataclasses are rebuilt by jax with fewer dimensions inside vmap and scan, and hold axis numbers or
    shardings where those are described, so their fields' annotations hold only outside.
    """
    if function.__name__ == "__init__":
        return function
    with warnings.catch_warnings():
        # The bounds of Flax's own type variables, in every hint of an nnx.State.
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return beartype(function)
