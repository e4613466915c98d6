"""FLOPs and memory traffic of a traced function, counted from its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, whatever its length. Here a product in a loop (over layers,
thoughts, answer tokens, minibatches) counts once per iteration. Only matrix products are counted: each reads its
operands and writes its result once, and all other operations are assumed to be fused into them. This is a lower bound,
as a roofline requires.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


@dataclass(frozen=True)
class Product:
    """A matrix product. `flops` (multiplications and additions) and `bytes` (read and written) are of one execution.

    `times` is the number of executions.
    """

    flops: float
    bytes: float
    times: float


@dataclass(frozen=True)
class Arithmetic:
    """All matrix products of a function, with their total FLOPs and bytes."""

    products: tuple[Product, ...]

    @property
    def flops(self) -> float:
        return sum(product.flops * product.times for product in self.products)

    @property
    def bytes(self) -> float:
        return sum(product.bytes * product.times for product in self.products)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Roofline time: each product takes the time of its arithmetic or of its traffic, whichever is longer."""
        return sum(
            product.times * max(product.flops / flops_per_second, product.bytes / bytes_per_second)
            for product in self.products
        )


def count(function: Any, *args: Any, loop_trips: int = 1) -> Arithmetic:
    """The products of `function(*args)`; `args` may be shapes.

    `loop_trips` is the assumed length of a loop whose length depends on data, such as the tokens of the longest answer.
    """
    return Arithmetic(tuple(_products(jax.make_jaxpr(function)(*args).jaxpr, 1.0, loop_trips)))


def _products(jaxpr: Jaxpr, times: float, loop_trips: int) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            yield _product(equation, times)
        elif name == "scan":
            yield from _products(parameters["jaxpr"].jaxpr, times * parameters["length"], loop_trips)
        elif name == "while":
            yield from _products(parameters["body_jaxpr"].jaxpr, times * loop_trips, loop_trips)
        elif name == "cond":
            branches = [list(_products(b.jaxpr, times, loop_trips)) for b in parameters["branches"]]
            yield from max(branches, key=lambda part: Arithmetic(tuple(part)).flops)
        else:
            for inner in _inside(parameters):
                yield from _products(inner, times, loop_trips)


def _product(equation: Any, times: float) -> Product:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, right = (operand.aval for operand in equation.invars)
    (result,) = (output.aval for output in equation.outvars)
    depth = prod(left.shape[axis] for axis in contracted)
    moved = sum(prod(x.shape) * x.dtype.itemsize for x in (left, right, result))
    return Product(2.0 * prod(result.shape) * depth, float(moved), times)


def _inside(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """The functions that an equation calls once: jit, checkpoint, custom derivatives."""
    for name, value in parameters.items():
        if name in ("fwd_jaxpr_thunk", "bwd"):
            continue
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
