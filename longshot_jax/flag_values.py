"""What a flag of a command may be: a whole number in its bounds, or one of some words; argparse says what is wrong."""

import argparse
from collections.abc import Callable

_MOST = 2**31 - 1  # seeds, too, are numbers of 32 bits


def whole_number(least: int = 0, *words: str) -> Callable[[str], int | str]:
    """Reads a whole number of at least `least`, or one of `words`."""
    kinds = ", ".join([*words, f"a whole number from {least}"])

    def read(text: str) -> int | str:
        if text in words:
            return text
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= _MOST:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kinds if not words else 'one of ' + kinds}")
        return number

    return read
