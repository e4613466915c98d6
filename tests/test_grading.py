"""The right answer in every spelling is right; anything else is wrong."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_jax.data.grading import extract_answer, same_answer
from longshot_jax.data.problems import load_problems

SPELLINGS_OF_18 = [
    "18",
    "18.0",
    "$18",
    "18.",
    "¥18",
    " 18 ",
    "+18",
    "#### 18",
    "so\n### 18",
    "18.00.",
    "018",
    "$ 18",
    "18 €",
]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16-3=13\n#### 13", "13"),
        ("### 7", "7"),
        ("#### 1 #### 2 ", "2"),
        (" Tom is a lempus. ", "Tom is a lempus."),
        ("number ## 3", "number ## 3"),
        ("#### ", ""),
        ("", ""),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("predicted", SPELLINGS_OF_18)
@pytest.mark.parametrize("gold", SPELLINGS_OF_18[:7])
def test_spellings_of_one_number(predicted, gold):
    carries = [sign for text in (predicted, gold) for sign in "$¥€" if sign in text]
    assert same_answer(predicted, gold) == (len(set(carries)) <= 1)  # two different units are two answers


def test_same_is_an_equivalence_within_one_currency():
    """So that a vote does not depend on the order of the answers."""
    spelled = ["18", "$18", "18.0", "018", "18%", "+18.0 %", "$18%", "0.18", "18 dollars", "Tom", "tom."]
    for one in spelled:
        for other in (each for each in spelled if same_answer(one, each)):
            assert [same_answer(one, each) for each in spelled] == [same_answer(other, each) for each in spelled]


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("1,234", "1234"),
        ("$1,234,567.50", "1234567.5"),
        ("-5", "−5"),
        ("-$5", "$-5"),
        (".5", "0.50"),
        ("-0", "0"),
        ("18 %", "+18.0%"),
        ("1" * 6000, "1" * 6000 + ".0"),
        ("tom  IS a lempus", "Tom is a lempus."),
        ("True", "true."),
        ("#### False", "False"),
        ("a or b", "a or b"),
    ],
)
def test_right(predicted, gold):
    assert same_answer(predicted, gold)
    assert same_answer(gold, predicted)


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("18 dollars", "18"),  # words around the number: refused, whatever they say
        ("The answer is 18", "18"),
        ("18 dozen", "18"),
        ("18 or 19", "18"),
        ("18 19", "18"),
        ("#### 18\nor so", "18"),
        ("#### 18 #### 19", "18"),
        ("180", "18"),
        ("1 8", "18"),
        ("-18", "18"),
        ("--18", "18"),
        ("-$-18", "18"),
        ("18.0000000001", "18"),
        ("17.99999999999999999999999999999", "18"),
        ("1" * 40 + "0", "1" * 40 + "1"),  # beyond the precision of floats and of default decimals
        ("-" + "1" * 40 + "0", "-" + "1" * 40 + "1"),
        ("1,5", "15"),
        ("1,5", "1.5"),
        ("12,34", "1234"),
        ("1,2345", "12345"),
        ("0,018", "18"),
        ("1.234.567", "1234567"),
        ("1e3", "1000"),
        ("1_000", "1000"),
        ("١٨", "18"),  # digits of another script
        ("½", "0.5"),
        ("0.5", "50%"),
        ("0.5%", "0.5"),
        ("18%", "18"),
        ("$18%", "18"),
        ("18..", "18"),
        ("18,", "18"),
        ("nan", "18"),
        ("inf", "18"),
        ("", "18"),
        ("####", "18"),
        ("", ""),
        (".", "."),
        ("Tom is a lempus. Yes", "Tom is a lempus."),
        ("Tom is a lempuss.", "Tom is a lempus."),
        ("Tom is not a lempus.", "Tom is a lempus."),
        ("True or False", "True"),
        ("", "True"),
        ("18", "True"),
        ("Tom is a lempus...", "Tom is a lempus."),
    ],
)
def test_wrong(predicted, gold):
    assert not same_answer(predicted, gold)


decimals = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12)


def spelled(value, grouped, currency, zeros, stop):
    text = f"{abs(value):,.3f}" if grouped else f"{abs(value):.3f}"
    text = text + "0" * zeros if zeros else text.rstrip("0").rstrip(".")
    return ("-" if value < 0 else "") + ("$" if currency else "") + text + ("." if stop else "")


@given(decimals, st.booleans(), st.booleans(), st.integers(0, 3), st.booleans())
def test_every_spelling_is_accepted(value, grouped, currency, zeros, stop):
    assert same_answer(spelled(value, grouped, currency, zeros, stop), f"{value:f}")


@given(decimals, decimals, st.booleans(), st.booleans(), st.integers(0, 3))
def test_equal_exactly_if_the_values_are(one, other, grouped, currency, zeros):
    assert same_answer(spelled(one, grouped, currency, zeros, False), f"{other:f}") == (one == other)


@given(decimals, st.integers(1, 60))
def test_no_tolerance(value, place):
    """However small the difference, the answer is another one."""
    sign, digits, exponent = value.as_tuple()
    beside = Decimal((sign, digits + (0,) * place + (1,), exponent - place - 1))
    assert not same_answer(f"{beside:f}", f"{value:f}")


@given(decimals, st.text(min_size=1).filter(lambda text: text.strip() and not set(text) & set("#.0123456789$€£¥₹%")))
def test_junk_after_a_number_is_wrong(value, junk):
    assert not same_answer(f"{value:f} {junk}", f"{value:f}")


@given(st.text(), st.text())
def test_never_raises_and_is_symmetric(one, other):
    assert same_answer(one, other) == same_answer(other, one)


@given(st.text().filter(lambda text: any(c.isalnum() for c in extract_answer(text))))
def test_an_answer_is_itself(text):
    assert same_answer(text, text)


@pytest.mark.parametrize(
    "file",
    [
        "gsm8k/train.jsonl",
        "gsm8k/test.jsonl",
        "gsm8k_aug/test.txt",
        "prosqa/prosqa_valid.json",
        "prontoqa/prontoqa.json",
    ],
)
def test_real_answers_are_right_only_for_themselves(shared_data, file):
    answers = [problem.answer for problem in load_problems(str(shared_data / file))]
    assert all(same_answer(f"so #### {answer}", answer) for answer in answers)
    assert not any(same_answer(f"{answer}%", answer) for answer in answers)
    different = sorted({answer.replace(",", "") for answer in answers})[:80]
    assert all(same_answer(a, b) == (a == b) for a in different for b in different)
