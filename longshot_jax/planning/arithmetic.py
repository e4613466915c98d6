"""FLOPs and memory traffic of a traced function, counted from its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, whatever its length. Here a product in a loop (over layers,
thoughts, answer tokens, minibatches) counts once per iteration. Only matrix products are counted: each reads its
operands and writes its result once, and all other operations are assumed to be fused into them. This is a lower bound,
as a roofline requires.

A stricter one is the floor: of a product's operands only those count that its iteration of the innermost loop did not
compute, which are weights, caches and inputs, each once. No fusion can avoid reading them, unless they stay on the chip.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclass(frozen=True)
class Product:
    """A matrix product. `flops` (multiplications and additions) and `bytes` (read and written) are of one execution.

    Attributes:
      times: number of executions.
      given: bytes of operands that its iteration of the innermost loop neither computed nor multiplied with before.
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
    # A jitted function may have compiler options, with which it cannot be traced inside another one.
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    jaxpr = jitted.trace(*args).jaxpr.jaxpr
    products: list[Product] = []
    _walk(jaxpr, jaxpr.invars, _Loop(1.0, False, loop_trips), products)
    return Arithmetic(tuple(products))


@dataclass(frozen=True)
class _Loop:
    times: float
    decoding: bool
    trips: int  # assumed where the length depends on data
    read: set[Any] = field(default_factory=set)  # the arrays that products of one iteration have read

    def of(self, length: int | None) -> "_Loop":
        return replace(
            self,
            times=self.times * (self.trips if length is None else length),
            decoding=self.decoding or length is None,
            read=set(),
        )


# The result is the operand in another order, place or precision; or a part of it, or several joined.
_MOVES = {
    "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "optimization_barrier", "reshape", "rev",
    "sharding_constraint", "squeeze", "transpose",
}  # fmt: skip
_PARTS = {"concatenate", "dynamic_slice", "dynamic_update_slice", "slice"}


def _walk(jaxpr: Jaxpr, given: Sequence[Any], loop: _Loop, products: list[Product]) -> list[Any]:
    """Appends the products of a function to `products`.

    `given` names for each input the array that it shows, or is None where the same iteration of a loop computed it.
    Returns the same of the results.
    """
    known = {variable: array for variable, array in zip(jaxpr.invars, given, strict=True) if array is not None}
    known |= {variable: variable for variable in jaxpr.constvars}

    def shown(atoms: Iterable[Any]) -> list[Any]:
        return [None if isinstance(atom, Literal) else known.get(atom) for atom in atoms]

    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        operands = shown(equation.invars)
        results: list[Any] = [None] * len(equation.outvars)
        if name == "dot_general":
            products.append(_product(equation, operands, loop))
        elif name in ("scan", "while"):
            inner = parameters["jaxpr" if name == "scan" else "body_jaxpr"].jaxpr
            _walk(inner, inner.invars, loop.of(parameters["length"] if name == "scan" else None), products)
        elif name == "cond":
            branches: list[list[Product]] = [[] for _ in parameters["branches"]]
            for branch, part in zip(parameters["branches"], branches, strict=True):
                _walk(branch.jaxpr, operands[1:], replace(loop, read=set(loop.read)), part)
            products += max(branches, key=lambda part: Arithmetic(tuple(part)).flops)
        elif name in _MOVES:
            results = operands[: len(results)]
        elif name in _PARTS and any(array is not None for array in operands):
            results = list(equation.outvars)
        else:
            for inner in _inside(parameters):
                same = len(inner.invars) == len(operands)
                moved = _walk(inner, operands if same else [None] * len(inner.invars), loop, products)
                results = moved if len(moved) == len(results) else results
        known |= {
            variable: array for variable, array in zip(equation.outvars, results, strict=True) if array is not None
        }
    return shown(jaxpr.outvars)


def _product(equation: Any, given: Sequence[Any], loop: _Loop) -> Product:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, right = (operand.aval for operand in equation.invars)
    (result,) = (output.aval for output in equation.outvars)
    depth = prod(left.shape[axis] for axis in contracted)
    # A given array may be read in fewer bytes than it is multiplied in.
    sources = [x if array is None else array.aval for x, array in zip((left, right), given, strict=True)]
    widths = [min(x.dtype.itemsize, source.dtype.itemsize) for x, source in zip((left, right), sources, strict=True)]
    sizes = [
        prod(x.shape) * width for x, width in zip((left, right, result), (*widths, result.dtype.itemsize), strict=True)
    ]
    once = {array: size for array, size in zip(given, sizes, strict=False) if array is not None}
    new = [size for array, size in once.items() if array not in loop.read]
    loop.read.update(once)
    return Product(
        flops=2.0 * prod(result.shape) * depth,
        bytes=float(sum(sizes)),
        times=loop.times,
        given=float(sum(new)),
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
