"""The run-time checker of shape annotations used by the tests."""

from beartype import beartype


def check_functions(function):
    """Beartype for functions and methods; constructors pass unchecked.

    State dataclasses are rebuilt by jax with fewer dimensions inside vmap and scan, and hold axis numbers or
    shardings where those are described, so their fields' annotations hold only outside.
    """
    return function if function.__name__ == "__init__" else beartype(function)
