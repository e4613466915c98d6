"""Equations of word problems: read from their files' notations, and written as steps `a+b=c`, one an operation."""

import ast
import operator
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

Tree = Fraction | tuple[str, Any, Any]  # an operation and its two sides

_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?")
_PLACES = 4  # decimals of a number that is written
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_INFIX: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def number_of(text: str) -> Fraction:
    """The number that a text is, such as 12.0. Raises ValueError; an exponent, which could fill the memory, is refused."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text[:40]!r} is not a number")
    return Fraction(text.strip())


def from_prefix(text: str, numbers: Sequence[str]) -> Tree:
    """The equation of `* number0 number1`, with the numbers in order. Raises ValueError for anything else."""
    words = text.split()

    def read() -> Tree:
        if not words:
            raise ValueError("it ends too early")
        word = words.pop(0)
        if word in _OPERATIONS:
            return word, read(), read()
        if word.startswith("number") and word[6:].isdecimal() and int(word[6:]) < len(numbers):
            word = numbers[int(word[6:])]
        return number_of(word)

    tree = read()
    if words:
        raise ValueError(f"{words[0]!r} is left over")
    return tree


def from_infix(text: str) -> Tree:
    """The equation of `( 76.0 - 25.0 ) * 2`. Raises ValueError for anything but numbers, `+ - * /` and parentheses."""

    def read(node: ast.AST) -> Tree:
        match node:
            case ast.BinOp(left, operation, right) if type(operation) in _INFIX:
                return _INFIX[type(operation)], read(left), read(right)
            case ast.Constant(int() | float() as value) if not isinstance(value, bool):
                return number_of(str(value))
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
                return -number_of(str(value))
        raise ValueError("it is more than numbers, + - * / and parentheses")

    try:
        return read(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None


def evaluate(tree: Tree) -> Fraction:
    """The exact value. Raises ZeroDivisionError."""
    return tree if isinstance(tree, Fraction) else _OPERATIONS[tree[0]](evaluate(tree[1]), evaluate(tree[2]))


def decimal(value: Fraction) -> str | None:
    """The number as it is written, such as 12 or 2.5; None if it has more than four decimals."""
    scaled = value * 10**_PLACES
    if scaled.denominator != 1:
        return None
    whole = f"{abs(scaled.numerator):0{_PLACES + 1}d}"
    return ("-" * (value < 0) + f"{whole[:-_PLACES]}.{whole[-_PLACES:]}").rstrip("0").rstrip(".")


def written_steps(tree: Tree, answer: str) -> tuple[str, ...] | None:
    """The steps, innermost and left operations first; None unless all numbers can be written and the last is `answer`.

    An equation that is a number alone has no steps.
    """
    steps: list[str] = []

    def write(part: Tree) -> Fraction:
        if isinstance(part, Fraction):
            return part
        kind, left, right = part
        one, other = write(left), write(right)
        value = _OPERATIONS[kind](one, other)
        texts = decimal(one), decimal(other), decimal(value)
        if None in texts:
            raise ValueError("it has a number with too many decimals")
        steps.append(f"{texts[0]}{kind}{texts[1]}={texts[2]}")
        return value

    try:
        value = write(tree)
    except (ValueError, ZeroDivisionError):
        return None
    return tuple(steps) if decimal(value) == answer else None
