"""Extracts the answer from a decoded text and compares it with the correct one.

The rule is strict, because a lenient one rewards wrong answers:

* If the correct answer is a number, the prediction must be a number alone, of exactly the same value. Thousands
  separators, a plus sign, trailing zeros and a full stop are ignored. A currency sign may be missing on either side;
  two must be equal. A percent sign is part of the value (0.5 % is not 0.5), so both must have it or neither. Words
  around the number ("18 dollars", "about 18", "18 or 19") are wrong: a unit can change the value ("18 dozen"), and a
  model can be trained to give the number alone. "1,5", "12,34", fractions and powers of ten ("1e3") are not numbers.
* Otherwise the two texts must agree up to case, runs of white space and one full stop at the end.

There is no numerical tolerance.
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
# The minus sign, the small and the full-width hyphen.
_MINUS_SIGNS = str.maketrans({sign: "-" for sign in "\u2212\ufe63\uff0d"})


def extract_answer(text: str) -> str:
    """The text after the last `###` or `####`, or the whole text if there is no marker; stripped."""
    return _MARKER.split(text)[-1].strip()


def same_answer(predicted: str, gold: str) -> bool:
    """True if `predicted` equals the correct answer `gold` by the module's rule; both may carry a `####` marker.

    Numbers are compared as decimals of any length. An empty prediction is never correct.
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
    """Value, whether it is in per cent, and currency sign ("" if none); None if the text is not one number."""
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
