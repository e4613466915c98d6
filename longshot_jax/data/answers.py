"""Reading an answer out of a decoded text, and deciding whether it is the right one.

The rule is strict, because a lenient one rewards wrong answers:

* If the right answer is a number, the prediction must be one number and nothing else, of exactly the same value.
  Thousands separators, a plus sign, trailing zeros and a full stop change nothing. A currency sign may be missing on
  either side; where both carry one it must be the same. A percent sign is part of the value: both have it, or neither,
  because 0.5 % is not 0.5. Words around the number ("18 dollars", "about 18", "18 or 19") make it
  wrong: a unit can change the value ("18 dozen"), and a model that knows the answer can be taught to give it alone.
  "1,5" and "12,34" are not numbers, nor are fractions and powers of ten ("1e3").
* Otherwise the two texts must agree up to case, runs of white space and one full stop at the end.

Nothing is ever compared within a tolerance.
"""

import re
import unicodedata
from decimal import Decimal

_MARKER = re.compile(r"#{3,}")
_CURRENCY = "$€£¥₹"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<currency>[{_CURRENCY}]?) ?(?P<inner_sign>[+-]?)"
    r"(?P<number>(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    rf" ?(?P<trailing>[%{_CURRENCY}]?)\.?"
)
# The minus sign proper, the small and the full-width hyphen.
_MINUS_SIGNS = str.maketrans({sign: "-" for sign in "\u2212\ufe63\uff0d"})


def extract_answer(text: str) -> str:
    """What follows the last `###` or `####` of `text`, or the whole text where there is none; stripped."""
    return _MARKER.split(text)[-1].strip()


def same_answer(predicted: str, gold: str) -> bool:
    """True if `predicted` is the answer `gold`, both given with or without the `####` marker.

    Numbers are compared exactly, as decimals of any length; other answers by their normalised text. The module's
    docstring states the whole rule. An empty prediction is never right.
    """
    predicted, gold = extract_answer(predicted), extract_answer(gold)
    right = _number(gold)
    if right is None:
        return _normalised(predicted) == _normalised(gold) != ""
    given = _number(predicted)
    if given is None:
        return False
    (value, percent, currency), (right_value, right_percent, right_currency) = given, right
    same_currency = not currency or not right_currency or currency == right_currency
    return value == right_value and percent == right_percent and same_currency


def _number(text: str) -> tuple[Decimal, bool, str] | None:
    """The value, whether it is in per cent, and the currency sign ("" if none) of a text that is one number."""
    parts = _NUMBER.fullmatch(text.strip().translate(_MINUS_SIGNS))
    if parts is None:
        return None
    if (parts["sign"] and parts["inner_sign"]) or (parts["currency"] and parts["trailing"]):
        return None  # "--5", "$5%"
    digits = parts["number"].replace(",", "")
    value = Decimal(digits)  # exact for any number of digits
    if "-" in (parts["sign"], parts["inner_sign"]):
        value = value.copy_negate()  # unary minus would round to the context's precision
    percent = parts["trailing"] == "%"
    return value, percent, "" if percent else parts["currency"] or parts["trailing"]


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(folded.split()).removesuffix(".").rstrip()
