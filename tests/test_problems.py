"""Problems from every file form, from the hub's absence, and from every kind of broken file."""

import csv
import json
import socket
import threading
import time
from decimal import Decimal

import pytest

from longshot_jax.data import problems as problems_module
from longshot_jax.data.hub import hub_reachable
from longshot_jax.data.problems import Problem, load_problems
from longshot_jax.errors import UserError

EQUATIONS = (
    "How many eggs?||<<16-3-4=9>> <<9*2=18>> #### 18\n"
    "What was the price? It is \u2028odd.|| #### 26\r\n"
    "Too || many bars?||<<1+1=2>> #### 1,002\n"
)
PROSE = [
    {"question": "Clips?", "answer": "She sold 48/2 = <<48/2=24>>24.\nIn all <<48+24=72>>72.\n#### 72"},
    {"question": "Eggs?", "answer": "#### -3.5"},
]
PROSQA = {
    "question": "Tom is a terpus. Every terpus is a lempus. Is Tom a lempus or scrompus?",
    "answer": "Tom is a lempus.",
    "steps": ["Tom is a terpus.", "Every terpus is a lempus."],
    "idx_to_symbol": ["Tom", "terpus", "lempus", "scrompus"],
    "edges": [[0, 1], [1, 2]],
    "root": 0,
    "target": 2,
    "neg_target": 3,
}


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def test_equation_form(tmp_path):
    first, second, third = load_problems(write(tmp_path, "a.txt", EQUATIONS))
    assert first == Problem("How many eggs?", ("<<16-3-4=9>>", "<<9*2=18>>"), "18")
    assert second == Problem("What was the price? It is \u2028odd.", (), "26")
    assert third == Problem("Too || many bars?", ("<<1+1=2>>",), "1,002")


def test_gsm8k_prose(tmp_path):
    lines = "\n".join(json.dumps(row) for row in PROSE) + "\n\n"
    first, second = load_problems(write(tmp_path, "a.jsonl", lines))
    assert first == Problem("Clips?", ("She sold 48/2 = <<48/2=24>>24.", "In all <<48+24=72>>72."), "72")
    assert second == Problem("Eggs?", (), "-3.5")


def test_coconut_json_ignores_other_keys(tmp_path):
    path = write(tmp_path, "a.json", "\ufeff" + json.dumps([PROSQA, {**PROSQA, "steps": []}]))
    first, second = load_problems(path)
    assert first == Problem(PROSQA["question"], tuple(PROSQA["steps"]), "Tom is a lempus.")
    assert second.steps == ()


ROWS = [
    ({"question": "q", "answer": "5"}, Problem("q", (), "5")),
    ({"question": "q", "answer": 5}, Problem("q", (), "5")),
    ({"question": "q", "answer": "a\nb\n#### 5"}, Problem("q", ("a", "b"), "5")),
    ({"question": "q", "answer": "Because 2+3=5. #### 5"}, Problem("q", ("Because 2+3=5.",), "5")),
    ({"question": "q", "answer": "5", "steps": ["a", "b"]}, Problem("q", ("a", "b"), "5")),
    ({"question": "q", "answer": "#### 5", "steps": ["a", "b"]}, Problem("q", ("a", "b"), "5")),
    ({"question": "q", "answer": "5", "steps": "a\n\nb\n"}, Problem("q", ("a", "b"), "5")),
    ({"question": "q", "answer": "5", "steps": None}, Problem("q", (), "5")),
    (
        {"question": "q", "answer": "#### 5", "steps": ["a", "b", "c"], "threads": [["a"], ["b"]]},
        Problem("q", ("a", "b", "c"), "5", (("a",), ("b",))),
    ),
]


@pytest.mark.parametrize("form", [".json", ".jsonl", ".parquet", ".csv", "hub"])
@pytest.mark.parametrize(("row", "problem"), ROWS)
def test_every_form_has_the_same_rows(monkeypatch, tmp_path, form, row, problem):
    path = tmp_path / f"a{form}"
    if form == "hub":
        import datasets

        monkeypatch.setattr(problems_module, "hub_reachable", lambda: True)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [row])
        path = "someone/set:main:train"
    elif form == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    elif form == ".csv":
        if any(isinstance(value, list) for value in row.values()):
            pytest.skip("a csv has no lists")
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
    else:
        path.write_text(json.dumps([row] if form == ".json" else row))
    assert load_problems(str(path)) == [problem]


def test_numbers_have_the_digits_of_the_file(tmp_path):
    """An answer is graded by its digits: a power of ten is no number, and 0.1 is not 0.10000000149011612."""
    written = {
        "0.1": "0.1", "1e-7": "0.0000001", "1E22": "10000000000000000000000", "-0.0": "0", "2.50": "2.5", "300.0": "300",
        "12345678901234567890.5": "12345678901234567890.5", "0.30000000000000004": "0.30000000000000004",
    }  # fmt: skip
    lines = "\n".join(f'{{"question": "q", "answer": {number}}}' for number in written)
    assert [each.answer for each in load_problems(write(tmp_path, "a.jsonl", lines))] == list(written.values())
    import pyarrow
    import pyarrow.parquet

    columns = {
        pyarrow.float32(): ([0.1, 2.5, 1e-7, 16777216.0, 123456.79, 1234567.25], "0.1 2.5 0.0000001 16777216"),
        pyarrow.float64(): ([0.1, 1e-7, 1234567.25, 123456792.0, 0.1 + 0.2], "0.1 0.0000001 1234567.25 123456792"),
        pyarrow.decimal128(38, 7): ([Decimal("2.50"), Decimal("0.0000001"), Decimal(100)], "2.5 0.0000001 100"),
    }
    for kind, (values, expected) in columns.items():
        table = pyarrow.table({"question": ["q"] * len(values), "answer": pyarrow.array(values, kind)})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        answers = [each.answer for each in load_problems(str(tmp_path / "a.parquet"))]
        assert answers[: len(expected.split())] == expected.split(), kind


@pytest.mark.parametrize(
    ("name", "text", "place", "words"),
    [
        ("a.txt", "Good?||<<1+1=2>> #### 2\nBroken #### 3\n", "line 2", "no ||"),
        ("a.txt", "Broken?||<<1+1=2>> 2\n", "line 1", "no ####"),
        ("a.txt", "Broken?||<<1+1=2>> and so #### 2\n", "line 1", "'and so'"),
        ("a.txt", "Broken?||<<1+1=2> #### 2\n", "line 1", "is not an equation"),
        ("a.txt", "Empty?||<<1+1=2>> ####  \n", "line 1", '"answer" is empty'),
        ("a.txt", "\n \n  ||<<1+1=2>> #### 2\n", "line 3", '"question" is empty'),
        ("a.txt", "", "a.txt", "no problems"),
        ("a.txt", "\n\n", "a.txt", "no problems"),
        ("a.jsonl", '{"question": "a", "answer": "#### 1"}\n{"question": \n', "line 2", "broken JSON"),
        ("a.jsonl", "[" * 100_000, "line 1", "nested"),
        ("a.jsonl", "[1]\n", "line 1", "not an object"),
        ("a.jsonl", '{"question": "a"}\n', "line 1", '"answer" is missing'),
        ("a.jsonl", '{"question": "a", "answer": true}\n', "line 1", '"answer" must be a text, not bool'),
        ("a.jsonl", '{"question": "a", "answer": 1e99999999}\n', "line 1", '"answer" must be a text, not Decimal'),
        ("a.jsonl", '{"question": "a", "answer": 1e99999999999999999999}\n', "line 1", '"answer" must be a text'),
        ("a.jsonl", '{"question": "a", "answer": "so\\n7"}\n', "line 1", 'must be "#### N", or "steps" hold the lines'),
        (
            "a.jsonl",
            '{"question": "a", "answer": "#### 7\\nor 8"}\n',
            "line 1",
            'must be "#### N", or "steps" hold the lines',
        ),
        ("a.jsonl", '{"question": "a", "answer": "7", "threads": 3}\n', "line 1", '"threads" must be a list of lists'),
        ("a.jsonl", '{"question": "a", "answer": "so 7\\n####"}\n', "line 1", '"answer" is empty'),
        ("a.jsonl", '{"question": " ", "answer": "#### 7"}\n', "line 1", '"question" is empty'),
        ("a.jsonl", "", "a.jsonl", "no problems"),
        ("a.json", "", "a.json", "no problems"),
        ("a.json", "[]", "a.json", "no problems"),
        ("a.json", "[\n{},\n{]", "line 3", "broken JSON"),
        ("a.json", "[" * 100_000, "a.json", "nested"),
        ("a.json", '{"question": "a"}', "a.json", "no JSON list"),
        ("a.json", '[{"question": "a", "answer": "b", "steps": []}, 3]', "item 2", "not an object"),
        ("a.json", '[{"answer": "b", "steps": []}]', "item 1", '"question" is missing'),
        ("a.json", '[{"question": "a", "answer": "", "steps": []}]', "item 1", '"answer" is empty'),
        ("a.json", '[{"question": "a", "answer": null, "steps": []}]', "item 1", "not NoneType"),
        ("a.json", '[{"question": "a", "answer": "b", "steps": {}}]', "item 1", '"steps"'),
        ("a.json", '[{"question": "a", "answer": "b", "steps": ["c", null]}]', "item 1", '"steps"'),
        ("a.json", '[{"question": "a", "response": "b"}]', "item 1", '"answer" is missing'),
        ("a.json", '[{"question": "a", "response": "b"}]', "item 1", "config.data.fields"),
        (
            "a.json",
            '{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n',
            "a.json",
            "to end in .jsonl",
        ),
        ("a.json", '{"version": 1, "data": [{}]}', "a.json", "take the list out of its key 'data'"),
        ("a.json", '[{"question": "a", "answer": "b", "steps": ["c", " "]}]', "item 1", '"steps"'),
        ("a.jsonl", '{"question": "a", "answer": ' + "1" * 5000 + "}", "line 1", "broken JSON"),
        ("a.json", "[" + "1" * 5000 + "]", "a.json", "unreadable JSON"),
        ("a.json", '[{"question": "\\ud800", "answer": "b", "steps": []}]', "item 1", "half a character"),
        ("a.json", '[{"question": "a", "answer": "b", "steps": ["\\udfff"]}]', "item 1", "half a character"),
        (
            "a.csv",
            "question,reply\n1,2\n",
            "line 1",
            "no column Question among question, reply: a csv must have the columns question and answer",
        ),
        ("a.csv", "question;answer\n1;2\n", "line 1", "separated by semicolons: separate them by commas"),
        ("a.csv", "question\tanswer\n1\t2\n", "line 1", "separated by tabs: separate them by commas"),
        ("a.csv", "question,answer,steps\n1,2,\"['a', 'b']\"\n", "line 2", "list written as a text"),
        ("a.csv", "question,answer,steps\n1,2,\"['a'\n 'b']\"\n", "line 3", "list written as a text"),
        ("a.csv", "question,answer,steps\n1,2,[]\n", "line 2", "list written as a text"),
        ("a.csv", "question,answer\n1,\n", "line 2", '"answer" is empty'),
        ("a.xml", "question,answer", "a.xml", ".json, .jsonl, .csv, .parquet or .txt"),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, place, words):
    path = write(tmp_path, name, text)
    with pytest.raises(UserError) as caught:
        load_problems(path)
    message = str(caught.value)
    assert message.startswith(path) and place in message and words in message
    assert "\n" not in message


def test_a_csv_with_columns_of_the_plain_names(tmp_path):
    text = 'answer,question,source,steps\n9,2+3+4,me,"2+3=5\n5+4=9"\n#### 4,2+2,me,\n'
    assert load_problems(write(tmp_path, "a.csv", text)) == [
        Problem("2+3+4", ("2+3=5", "5+4=9"), "9"),
        Problem("2+2", (), "4"),
    ]
    assert load_problems(write(tmp_path, "c.csv", "question,answer,,\n2+2,4,,\n")) == [
        Problem("2+2", (), "4")
    ]  # of a table
    with pytest.raises(UserError, match="line 1: broken csv"):
        load_problems(write(tmp_path, "d.csv", 'question,"answer'))
    spaced = load_problems(write(tmp_path, "e.csv", 'question, answer\n"1, 2", "#### 3"\n'))
    assert spaced == [Problem("1, 2", (), "3")]
    (long,) = load_problems(write(tmp_path, "f.csv", f"question,answer\n{'x' * 140_000},4\n"))
    assert len(long.question) == 140_000
    (matrix,) = load_problems(write(tmp_path, "g.csv", 'question,answer,steps\n2,4,"[1, 2]\n[3]"\n'))
    assert matrix.steps == ("[1, 2]", "[3]")
    assert load_problems(write(tmp_path, "b.csv", "question,answer\n2+2,4\n")) == [Problem("2+2", (), "4")]


def test_missing_file_folder_and_encoding(tmp_path):
    with pytest.raises(UserError, match=r"no data file .*none\.json"):
        load_problems(str(tmp_path / "none.json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="not a data file"):
        load_problems(str(tmp_path / "folder.json"))
    (tmp_path / "latin.txt").write_bytes("Café?|| #### 1".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_problems(str(tmp_path / "latin.txt"))


def test_hub_name_without_network_fails_quickly(monkeypatch):
    import datasets  # noqa: F401  (its import is not what is timed)

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"openai/gsm8k:main:train is out of reach .*local"):
        load_problems("openai/gsm8k:main:train")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:port", "https://my mirror", "garbage"])
def test_a_hub_that_does_not_speak_http_is_out_of_reach(monkeypatch, endpoint):
    if endpoint == "garbage":  # as from a proxy
        server = socket.create_server(("127.0.0.1", 0))

        def answer():
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"no HTTP\r\n\r\n")
            connection.close()
            server.close()

        threading.Thread(target=answer, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    assert hub_reachable() is False


def test_a_downloaded_data_set_needs_no_network(monkeypatch, tmp_path):
    """As the library leaves it in its cache; HF_HUB_OFFLINE=0 does not mean that the hub is out of reach."""
    import datasets

    requested = []
    monkeypatch.setattr(problems_module, "hub_reachable", lambda: requested.append(1) or False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # whatever it was when the library was imported
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    write(tmp_path, "rows.jsonl", json.dumps(PROSE[0]))
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path))
    (made,) = (tmp_path / "json").glob("*/*/*/dataset_info.json")
    info = json.loads(made.read_text()) | {"dataset_name": "gsm8k", "config_name": "main"}
    info["splits"]["train"]["dataset_name"] = "gsm8k"
    made.write_text(json.dumps(info))
    (made.parent / "json-train.arrow").rename(made.parent / "gsm8k-train.arrow")
    (tmp_path / "openai___gsm8k" / "main" / "0.0.0").mkdir(parents=True)
    made.parent.rename(tmp_path / "openai___gsm8k" / "main" / "0.0.0" / ("0" * 40))
    (problem,) = load_problems("openai/gsm8k:main:train")
    assert problem.answer == "72" and requested == [1]
    assert not datasets.config.HF_HUB_OFFLINE
    with pytest.raises(UserError, match=r"out of reach \(no network\) and was not downloaded before"):
        load_problems("openai/gsm8k:socratic:train")


def test_hub_rows_of_both_forms(monkeypatch):
    import datasets

    requested = []
    sets = {"main": PROSE, "steps": [PROSQA], "broken": [PROSE[0], {"question": "a"}], "none": []}

    def load_dataset(name, config, split):
        requested.append((name, config, split))
        if config == "unknown":
            raise ValueError("BuilderConfig 'unknown' not found.\nAvailable: main")
        return sets[config]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(problems_module, "hub_reachable", lambda: True)
    assert load_problems("openai/gsm8k:main:train")[0].answer == "72"
    assert requested == [("openai/gsm8k", "main", "train")]
    assert load_problems("gsm8k:steps:train[:10%]")[0].answer == "Tom is a lempus."
    with pytest.raises(UserError, match=r"gsm8k:broken:test, item 2: \"answer\" is missing"):
        load_problems("gsm8k:broken:test")
    with pytest.raises(UserError, match="holds no problems"):
        load_problems("gsm8k:none:test")
    with pytest.raises(UserError, match=r"cannot be loaded.*not found") as caught:
        load_problems("gsm8k:unknown:test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "count", "with_steps"),
    [
        ("gsm8k_aug/test.txt", 1319, None),
        ("gsm8k_aug/valid.txt", 500, None),
        ("gsm8k_aug/train_no_aug.txt", 6973, 6884),
        ("gsm8k/train.jsonl", 7473, 7473),
        ("gsm8k/test.jsonl", 1319, 1319),
        ("prosqa/prosqa_valid.json", 300, 300),
        ("prontoqa/prontoqa.json", 3000, 3000),
    ],
)
def test_real_files_load_whole(shared_data, file, count, with_steps):
    loaded = load_problems(str(shared_data / file))
    assert len(loaded) == count
    if with_steps is not None:
        assert sum(bool(problem.steps) for problem in loaded) == with_steps


def test_both_forms_of_gsm8k_agree(shared_data):
    """The equation form keeps order and answers of the published test file."""
    prose = load_problems(str(shared_data / "gsm8k/test.jsonl"))
    equations = load_problems(str(shared_data / "gsm8k_aug/test.txt"))
    strip = str.maketrans("", "", ", ")
    assert [p.answer.translate(strip) for p in prose] == [p.answer.translate(strip) for p in equations]


def test_other_columns_and_headings_change_nothing(tmp_path):
    """A column named threads holds no lists in a csv, SVAMP's names may stand beside ours, and a heading is no marker."""
    columns = write(tmp_path, "a.csv", "question,answer,threads,Question,Body,Equation\nq,1,forum-12,x,y,z\n")
    assert load_problems(columns) == [Problem("q", (), "1")]
    heading = write(tmp_path, "b.jsonl", json.dumps({"q": "q", "a": "It says\n#### Solution\nis 5"}))
    assert load_problems(heading, ("q", "a"))[0].answer == "It says\n#### Solution\nis 5"


def test_exponents_of_svamp_are_numbers(tmp_path):
    row = {"Body": "b.", "Question": "q?", "Equation": "( 500.0 + 500.0 )"}
    path = write(tmp_path, "a.json", json.dumps([row]).replace("}", ', "Answer": 1e3}'))
    assert load_problems(path)[0].answer == "1000"
