"""FLOPs and memory traffic of a traced function, counted from its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, whatever its length. Here a product in a loop (over layers,
thoughts, answer tokens, minibatches) counts once per iteration. Only matrix products are counted: each reads its
operands and writes its result once, and all other operations are assumed to be fused into them. This is a lower bound,
as a roofline requires.

A stricter one is the floor: of a product's operands only those count that its iteration of the innermost loop did not
compute, which are weights, caches and inputs. No fusion can avoid reading them, unless they stay on the chip.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclass(frozen=True)
class Product:
    """A matrix product. `flops` (multiplications and additions) and `bytes` (read and written) are of one execution.

    Attributes:
      times: number of executions.
      given: the bytes of the operands that its iteration of the innermost loop did not compute.
      decoding: in a loop whose length depends on data.
    """

    flops: float
    bytes: float
    times: float
    given: float = 0.0
    decoding: bool = False


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

    def floor(self, *, decoding: bool = False) -> float:
        """Bytes of weights, caches and inputs, read once in each iteration of a loop; `decoding`: of decoding alone."""
        return sum(product.given * product.times for product in self.products if product.decoding or not decoding)

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
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    products: list[Product] = []
    _walk(jaxpr, [True] * len(jaxpr.invars), _Loop(1.0, False, loop_trips), products)
    return Arithmetic(tuple(products))


@dataclass(frozen=True)
class _Loop:
    times: float
    decoding: bool
    trips: int  # assumed where the length depends on data

    def of(self, length: int | None) -> "_Loop":
        return replace(
            self,
            times=self.times * (self.trips if length is None else length),
            decoding=self.decoding or length is None,
        )


# The result is the operand, or the operands, in another order, place or precision.
_MOVES = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "dynamic_update_slice",
    "expand_dims", "optimization_barrier", "reshape", "rev", "sharding_constraint", "slice", "squeeze", "transpose",
}  # fmt: skip


def _walk(jaxpr: Jaxpr, given: Sequence[bool], loop: _Loop, products: list[Product]) -> list[bool]:
    """Appends the products of a function whose inputs are `given`, or computed in the same iteration of a loop.

    Returns which results are inputs that were only moved.
    """
    known = {variable for variable, is_given in zip(jaxpr.invars, given, strict=True) if is_given}
    known |= set(jaxpr.constvars)

    def is_given(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in known

    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        operands = [is_given(atom) for atom in equation.invars]
        results = [False] * len(equation.outvars)
        if name == "dot_general":
            products.append(_product(equation, operands, loop))
        elif name == "scan":
            inner = parameters["jaxpr"].jaxpr
            _walk(inner, [True] * len(inner.invars), loop.of(parameters["length"]), products)
        elif name == "while":
            inner = parameters["body_jaxpr"].jaxpr
            _walk(inner, [True] * len(inner.invars), loop.of(None), products)
        elif name == "cond":
            branches: list[list[Product]] = [[] for _ in parameters["branches"]]
            for branch, part in zip(parameters["branches"], branches, strict=True):
                _walk(branch.jaxpr, operands[1:], loop, part)
            products += max(branches, key=lambda part: Arithmetic(tuple(part)).flops)
        elif name in _MOVES:
            results = [any(operands)] * len(results)
        else:
            for inner in _inside(parameters):
                same = len(inner.invars) == len(operands)
                moved = _walk(inner, operands if same else [False] * len(inner.invars), loop, products)
                results = moved if len(moved) == len(results) else results
        known |= {variable for variable, moved in zip(equation.outvars, results, strict=True) if moved}
    return [is_given(atom) for atom in jaxpr.outvars]


def _product(equation: Any, given: Sequence[bool], loop: _Loop) -> Product:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, right = (operand.aval for operand in equation.invars)
    (result,) = (output.aval for output in equation.outvars)
    depth = prod(left.shape[axis] for axis in contracted)
    sizes = [prod(x.shape) * x.dtype.itemsize for x in (left, right, result)]
    return Product(
        flops=2.0 * prod(result.shape) * depth,
        bytes=float(sum(sizes)),
        times=loop.times,
        given=float(sum(size for size, is_given in zip(sizes, given, strict=False) if is_given)),
        decoding=loop.decoding,
    )


def _inside(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """The functions that an equation calls once: jit, checkpoint, custom derivatives."""
    for name, value in parameters.items():
        if name in ("fwd_jaxpr_thunk", "bwd"):
            continue
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
