"""Word problems by path (MAWPS and ASDiv-A, SVAMP, MultiArith), their equations, and numbers drawn anew."""

import json
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import tiny

from longshot_jax.data.equations import decimal, evaluate, from_infix, from_prefix, written_steps
from longshot_jax.data.loader import problem_batches
from longshot_jax.data.problems import Problem, load_problems
from longshot_jax.data.redraw import RedrawnProblems, template_of
from longshot_jax.data.sources import Problems, build_layout, check_problems, file_fingerprints, read_problems
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError

HEAD = "Question,Numbers,Equation,Answer,group_nums,Body,Ques\n"
ROWS = [
    '"Ida had number0 pins , and Bo \'s box holds number1 . How many are there ?",12.0 7.0,+ number0 number1,19.0,"[0]",a,b',
    '"Each of number1 jars holds number0 nuts . number2 are eaten . How many are left ?",6.0 4.0 9.0,'
    '- * number0 number1 number2,15.0,"[0]",a,b',
    'What is number0 % of number1 ?,5.0 30.0,* * number0 number1 0.01,1.5,"[0]",a,b',
    'Too wrong : number0 of number1 ?,5.0 30.0,* number0 number1,160.0,"[0]",a,b',
    'How long is number0 of number1 ?,1.0 3.0,/ number0 number1,0.3333333333,"[0]",a,b',
]
SVAMP = {
    "ID": "c",
    "Body": "Jo paid 76 dollars",
    "Question": "How much?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
}
MULTIARITH = {
    "iIndex": 1,
    "sQuestion": " Lu has 3 sets of 4. ",
    "lEquations": ["X=((3.0*4.0)/2.0)"],
    "lSolutions": [6.0],
}


def write(path, text):
    path.write_text(text)
    return str(path)


def test_the_csv_becomes_questions_with_numbers_and_equations(tmp_path):
    problems = load_problems(write(tmp_path / "a.csv", HEAD + "\n".join(ROWS) + "\n"))
    assert problems == [
        Problem("Ida had 12 pins, and Bo's box holds 7. How many are there?", ("12+7=19",), "19"),
        Problem("Each of 4 jars holds 6 nuts. 9 are eaten. How many are left?", ("6*4=24", "24-9=15"), "15"),
        Problem("What is 5% of 30?", ("5*30=150", "150*0.01=1.5"), "1.5"),
    ]  # not the wrong one, and not the one whose answer cannot be written


def test_tests_keep_their_answers_with_and_without_steps(tmp_path):
    rows = [SVAMP, SVAMP | {"Body": "Jo paid it.", "Answer": 50.0}, MULTIARITH]
    problems = load_problems(write(tmp_path / "a.json", json.dumps(rows)))
    assert problems == [
        Problem("Jo paid 76 dollars, How much?", ("76-25=51",), "51"),
        Problem("Jo paid it. How much?", (), "50"),
        Problem("Lu has 3 sets of 4.", ("3*4=12", "12/2=6"), "6"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.csv", "Question,Numbers\nx,1\n", "line 1: no column Equation"),
        ("a.csv", "Question,Answer\nx,1\n", "line 1: the columns Question, Answer are .* write them small"),
        ("a.csv", HEAD + ROWS[0] + "\nx,1.0\n", "line 3: another number of columns"),
        (
            "a.csv",
            HEAD + ROWS[0].replace("+ number0 number1", "+ number0 number5"),
            r"line 2: '\+ number0 number5' is not",
        ),
        ("a.csv", HEAD + ROWS[0].replace("+ number0 number1", "+ number0"), r"line 2: .* \(it ends too early\)"),
        (
            "a.csv",
            HEAD + ROWS[0].replace("holds number1", "holds number2"),
            "line 2: number2 has no number in the column",
        ),
        (
            "a.csv",
            HEAD + ROWS[0].replace("12.0 7.0", "12.0 x"),
            r"line 2: '\+ number0 number1' is not an equation \('x' is not",
        ),
        ("a.csv", HEAD + ROWS[0].replace("19.0", "n"), "line 2: Answer must be a number, not 'n'"),
        ("a.csv", HEAD, "holds no problems"),
        ("a.json", json.dumps([SVAMP | {"Equation": "__import__('os')"}]), "item 1: .* is not an equation"),
        ("a.json", json.dumps([SVAMP | {"Answer": "many"}]), "item 1: the answer must be a number"),
        ("a.json", json.dumps([SVAMP | {"Answer": "1e999999999"}]), "item 1: the answer must be a number"),
        ("a.json", json.dumps([SVAMP | {"Equation": "9**9**9"}]), "item 1: '9[*][*]9[*][*]9' is not an equation"),
        (
            "a.json",
            json.dumps([MULTIARITH | {"lSolutions": []}]),
            "item 1: lEquations and lSolutions must be lists of one",
        ),
        ("a.json", json.dumps([MULTIARITH | {"sQuestion": None}]), 'item 1: "question" is empty'),
        ("a.json", json.dumps([SVAMP, SVAMP | {"Body": None}]), 'item 2: "Body" must be a text that is not empty'),
        ("a.json", json.dumps([SVAMP | {"Question": " "}]), 'item 1: "Question" must be a text that is not empty'),
        ("a.csv", HEAD + ROWS[0].replace("+ number0 number1", "+ " * 3000), "line 2: .* is not an equation"),
        ("a.csv", HEAD.replace("Body", "Answer") + ROWS[0], "line 1: the column 'Answer' stands there twice"),
    ],
)
def test_broken_rows_are_named(tmp_path, name, text, named):
    with pytest.raises(UserError, match=named):
        load_problems(write(tmp_path / name, text))


NUMBERS = st.integers(0, 999)


@settings(deadline=None, max_examples=60)
@given(st.recursive(NUMBERS, lambda part: st.tuples(st.sampled_from("+-*/"), part, part), max_leaves=5))
def test_both_notations_give_the_value_that_python_gives(tree):
    def prefix(part):
        return str(part) if isinstance(part, int) else f"{part[0]} {prefix(part[1])} {prefix(part[2])}"

    def infix(part):
        return str(part) if isinstance(part, int) else f"({infix(part[1])} {part[0]} {infix(part[2])})"

    try:
        expected = eval(re.sub(r"(\d+)", r"Fraction(\1)", infix(tree)))
    except ZeroDivisionError:
        assert written_steps(from_infix(infix(tree)), "0") is None
        return
    one, other = from_prefix(prefix(tree), ()), from_infix(infix(tree))
    assert one == other and evaluate(one) == expected
    steps = written_steps(one, decimal(expected) or "none")
    if steps:
        assert all(eval(re.sub(r"(\d+(?:\.\d+)?)", r"Fraction('\1')", step.replace("=", "=="))) for step in steps)
        assert steps[-1].endswith(f"={decimal(expected)}")


def test_numbers_are_written_without_needless_decimals():
    values = [Fraction("12.0"), Fraction("-0.5"), Fraction(1, 8), Fraction(1, 3), Fraction(100), Fraction(0)]
    assert [decimal(value) for value in values] == ["12", "-0.5", "0.125", None, "100", "0"]


PINS = Problem(
    "Ida had 12 pins, 1,250 nuts and 7 of 9 jars. How many pins and jars?",
    ("<<12+7=19>>", "<<19*1250=23750>>"),
    "23750",
)


def test_new_numbers_are_whole_alike_and_true():
    template = template_of(PINS)
    seen = set()
    for seed in range(60):
        problem = template.redrawn(np.random.default_rng(seed))
        pins, nuts, jars = re.fullmatch(
            r"Ida had (\d\d) pins, (\d,\d{3}) nuts and (\d) of 9 jars\. How many pins and jars\?", problem.question
        ).groups()
        pins, nuts, jars = int(pins), int(nuts.replace(",", "")), int(jars)
        both, total = pins + jars, (pins + jars) * nuts
        assert problem.steps == (f"<<{pins}+{jars}={both}>>", f"<<{both}*{nuts}={total}>>")
        assert problem.answer == str(total) and both < 100 and total < 100_000 and jars > 1
        seen.add((pins, nuts, jars))
    assert len(seen) == 60
    division = template_of(Problem("Share 48 nuts among 6, then 3 leave.", ("48/6=8", "8-3=5"), "5"))
    drawn = [division.redrawn(np.random.default_rng(seed)).steps for seed in range(20)]
    assert all(eval(step.replace("=", "==")) and int(step.split("=")[1]) > 0 for steps in drawn for step in steps)
    assert len(set(drawn)) > 5
    halved = template_of(Problem("Of 56 pupils half play, 24 of them 2 games.", ("56/2=28", "28-24=4"), "4"))
    assert halved is None, "a half, or the games?"
    groups = template_of(
        Problem("56 pupils in groups, the first of 24 plays 2 games. How many more?", ("56-24=32", "32*2=64"), "64")
    )
    assert all(" 2 games" in groups.redrawn(np.random.default_rng(seed)).question for seed in range(9))
    alone = template_of(Problem("He has 1 pin and 25 nuts.", ("1+25=26",), "26"))
    assert {alone.redrawn(np.random.default_rng(seed)).question[:13] for seed in range(9)} == {"He has 1 pin "}


@pytest.mark.parametrize(
    ("question", "steps", "answer"),
    [
        ("He works 2 hours.", ("2*60=120",), "120"),  # a constant
        ("He has 2 pins and 2 nuts.", ("2+2=4",), "4"),  # which 2?
        ("He has 2 pins, and she twice as many.", ("2*2=4",), "4"),
        ("He has 4 pins, 2 more, and 6 nuts.", ("4+2=6", "6*6=36"), "36"),  # a result or the nuts?
        (
            "He has 5 pins and eats 3. She has twice as many as are left.",
            ("5-3=2", "2*2=4"),
            "4",
        ),  # a word or a result?
        ("2 red and 3 blue, 5 bags of 5.", ("2+3=5", "5*5=25"), "25"),
        ("He buys 4 4-packs.", ("4*4=16",), "16"),  # digits that are part of a word
        ("It takes twenty minutes for each of 20 balls.", ("20*20=400",), "400"),
        ("She types 60 words a minute. How many in an hour?", ("60*60=3600",), "3600"),  # one of the two is the hour's
        ("He has 7 pins and 2 nuts for a week.", ("7*2=14",), "14"),  # the pins or the days?
        ("He triples his 3 pins.", ("3*3=9",), "9"),
        ("He works 5 hours on weekdays.", ("5*5=25",), "25"),
        ("He has 5 pins.", ("5/2=2.5",), "2.5"),
        ("He has 5 pins, and 7 go.", ("5-7=-2",), "-2"),
        ("He has 5 pins and 6.", ("He has 5+6 = 11 pins.",), "11"),
        ("He has 5 pins and 6.", ("5+6=12",), "12"),
        ("He has 5 pins and 6.", ("5+6=11",), "12"),
        ("It is 5% of 60.", ("5*60=300",), "300"),
        ("He has 5 pins and 6.", (), "11"),
    ],
)
def test_what_cannot_be_redrawn_stays(question, steps, answer):
    assert template_of(Problem(question, steps, answer)) is None


def test_a_problem_of_several_threads_stays():
    """Its steps are those of the threads, each in a trajectory of its own."""
    pins = ("He has 5 pins and 6.", ("5+6=11",), "11")
    assert template_of(Problem(*pins)) is not None
    assert template_of(Problem(*pins, threads=(("5+6=11",), ("6+5=11",)))) is None


def test_a_stream_is_redrawn_by_seed_and_place(tmp_path):
    file = tmp_path / "a.csv"
    lines = [row.replace("Ida", name).replace("nuts", name) for name in "ABCDEFGHIJKL" for row in ROWS[:2]]
    write(file, HEAD + "\n".join(lines) + "\n")
    run = tiny(data__train=str(file), data__test="chains", data__redraw=1.0)
    problems = read_problems(run)
    assert isinstance(problems.train, RedrawnProblems) and isinstance(problems.validation, list)
    plain = read_problems(tiny(data__train=str(file), data__test="chains"))
    assert list(problems.train) == plain.train and problems.validation == plain.validation
    stream, again = (problem_batches(read_problems(run).train, 8, seed=3) for _ in range(2))
    old = problem_batches(plain.train, 8, seed=3)
    epochs = [problem for number in range(9) for problem in stream[number]]
    assert epochs[8:16] == again[1] and len({problem.question for problem in epochs}) > 65
    originals = [problem for number in range(9) for problem in old[number]]
    shape = [re.sub(r"\d", "0", problem.question) for problem in epochs]
    assert shape == [re.sub(r"\d", "0", problem.question) for problem in originals]  # the same problems in order
    half = problem_batches(
        read_problems(tiny(data__train=str(file), data__test="chains", data__redraw=0.5)).train, 8, seed=3
    )
    changed = np.mean(
        [one != other for number in range(9) for one, other in zip(half[number], old[number], strict=True)]
    )
    assert 0.3 < changed < 0.7


def test_what_does_not_fit_stays_the_original():
    layout = build_layout(tiny(), Tokenizer.for_chains())
    fits = RedrawnProblems([Problem("a=5 b=6 a?", ("5+6=11",), "11")], "a file", 0, 1.0)
    checked = check_problems(
        tiny(data__train="file.csv", data__answer_length=14), layout, Problems(fits, [fits[0]])
    ).train
    assert any(checked.redrawn(place, fits[0]) != fits[0] for place in range(9))
    once = checked.filtered(lambda problem: problem.answer == "11")
    assert {once.redrawn(place, fits[0]).answer for place in range(30)} == {"11"}
    assert len({checked.redrawn(place, fits[0]).answer for place in range(30)}) > 2
    both = checked.filtered(lambda problem: problem.answer != "12").filtered(lambda problem: problem.answer != "13")
    answers = {both.redrawn(place, fits[0]).answer for place in range(200)}
    assert len(answers) > 3 and not answers & {"12", "13"}


def test_a_problem_is_not_redrawn_into_a_held_out_one(tmp_path):
    def texts(pairs):
        return "".join(
            json.dumps({"question": f"{a} pins and {b}?", "answer": f"{a}+{b}={a + b}\n#### {a + b}"}) + "\n"
            for a, b in pairs
        )

    pairs = [(a, b) for a in range(2, 10) for b in range(2, 10) if a != b]
    train, test = write(tmp_path / "a.jsonl", texts(pairs[:40])), write(tmp_path / "t.jsonl", texts(pairs[40:50]))
    problems = read_problems(tiny(data__train=train, data__test=test, data__redraw=1.0))
    held_out = {problem.question for problem in [*problems.validation, *load_problems(test)]}
    drawn = {problems.train.redrawn(place, problem).question for place in range(40) for problem in problems.train}
    assert len(drawn) > 30 and not drawn & held_out
    # Another test file would change what is drawn, so a resumed run must notice it.
    run = tiny(data__train=train, data__test=test, data__redraw=1.0)
    before = file_fingerprints(run, problems)
    write(tmp_path / "t.jsonl", texts(pairs[41:51]))
    after = file_fingerprints(run, read_problems(run))
    assert {key for key in before if before[key] != after[key]} == {"data.test"} and len(before) == 3
    anything = RedrawnProblems(list(problems.train), "a file", 0, 1.0)
    assert {anything.redrawn(place, problem).question for place in range(40) for problem in anything} & held_out


def test_a_redrawn_problem_keeps_its_own_rule():
    @dataclass(frozen=True)
    class Mine(Problem):
        tolerance: int = 0

    other = template_of(Mine("5 and 6?", ("5+6=11",), "11", tolerance=3)).redrawn(np.random.default_rng(3))
    assert isinstance(other, Mine) and other.tolerance == 3 and other.question != "5 and 6?"


def test_redraw_needs_equations_and_a_file(tmp_path):
    prose = write(
        tmp_path / "a.jsonl",
        "\n".join(json.dumps({"question": f"{n}?", "answer": f"So.\n#### {n}"}) for n in range(30)),
    )
    with pytest.raises(UserError, match=r"config\.data\.redraw is 0\.5, but no problem of .*a\.jsonl has equations"):
        read_problems(tiny(data__train=prose, data__test="chains", data__redraw=0.5))
    with pytest.raises(
        UserError, match=r"config\.data\.redraw is 1\.0, but config\.data\.train 'stories' is generated"
    ):
        read_problems(tiny(data__train="stories", data__redraw=1.0))


def test_the_published_files(shared_data):
    train = load_problems(str(shared_data / "svamp/mawps_asdiv_train.csv"))
    assert len(train) == 3071  # of 3,138: the others are wrong, or have numbers of more than four decimals
    assert sum(template_of(problem) is not None for problem in train) > 2500
    test = load_problems(str(shared_data / "svamp/SVAMP.json"))
    assert len(test) == 1000 and sum(not problem.steps for problem in test) == 3
    for problem in [*train, *test]:
        assert "number" not in re.sub(r"numbers?\b", "", problem.question)
        assert all(
            eval(re.sub(r"(\d+(?:\.\d+)?)", r"Fraction('\1')", step.replace("=", "=="))) for step in problem.steps
        )
