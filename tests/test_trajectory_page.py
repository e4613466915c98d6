"""scripts/view.py: the page's data are what is there, its texts are text, and a browser shows it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from builders import END, QUICK, VOCABULARY, ragged_prompts, small_reasoner
from commands import start
from flax import nnx
from run_folders import CURRICULUM, PPO, save_run

import longshot_jax.checkpoints.pretrained
from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.checkpoints.run_folder import write_config
from longshot_jax.checkpoints.sidecar import FILE
from longshot_jax.data.chains import ChainProblems, write_chains
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import Batches
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.evaluation.interventions import Interventions
from longshot_jax.evaluation.trajectory_page import _add_similarity, _fill, _plane, trajectory_page
from longshot_jax.longshot import LongShot
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.navigator import NavigatorConfig
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.thoughts.stopping import StopRule, ThoughtRule
from longshot_jax.thoughts.think import encode, think, think_given

pytestmark = pytest.mark.slow

ATTACK = "</script><img src=x onerror='window.injected=1'><script>window.injected=2</script>\u2028{{DATA}}"
NODE = shutil.which("node")
JOINED = replace(CURRICULUM, thoughts=NavigatorConfig(roles=2, join=True))


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*)</script>\n<header>', page)[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    texts = Tokenizer.train_bpe(["How many are 2+3? 5", ATTACK, "abcdefghijklmnopqrstuvwxyz 0123456789"], 400)
    save_run(folder / "ppo", replace(PPO, data=replace(PPO.data, prompt_length=200)), "ppo", tokens=texts)
    save_run(folder / "joined", JOINED, "curriculum")
    save_run(folder / "alone", CURRICULUM, "curriculum")
    problems = [
        {"question": f"How many are {n}+3?{ATTACK * (n == 2)}", "steps": [], "answer": str(n)} for n in range(5)
    ]
    problems[1]["steps"] = [ATTACK]
    (folder / "data.json").write_text(json.dumps(problems))
    write_chains(folder / "chains.json", 2, 3, seed=1)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    arguments = ("--checkpoint", folder / "ppo", "--data", folder / "data.json", "--num_trajectories", 2)
    assert start("view.py", *arguments, "--output", folder / "new" / "page.html") == 0
    return folder / "new" / "page.html"


def test_the_page_holds_what_the_model_does(page, folder):
    found = data_of(page.read_text())
    problems = json.loads((folder / "data.json").read_text())
    assert [each["question"] for each in found["questions"]] == [each["question"] for each in problems]
    assert found["bank"] and found["valued"] and found["stops"] and (found["step"], found["phase"]) == (7, "ppo")
    generations = LongShot.from_pretrained(folder / "ppo").generate(
        [each["question"] for each in problems], return_all_trajectories=True
    )
    for row, generation in zip(found["questions"], generations, strict=True):
        (theirs,), (greedy, *samples) = generation.trajectories, row["trajectories"]
        assert [each["kind"] for each in row["trajectories"]] == ["greedy", "sample", "sample"]
        assert (greedy["answer"], greedy["finished"]) == (theirs.answer, theirs.finished)
        assert greedy["stop"] == pytest.approx(theirs.stop_probabilities[-1], rel=1e-3)
        assert len(greedy["thoughts"]) == theirs.thoughts
        for thought, lens in zip(greedy["thoughts"], theirs.lens, strict=True):
            assert [token for token, _ in thought["nearest"]] == [token for token, _ in lens.nearest]
            for name in ("norm", "stop_probability", "value"):
                assert thought[name] == pytest.approx(getattr(lens, name), rel=1e-3)
            assert thought["own"] == greedy["answer"] + ("" if greedy["finished"] else " …")
            assert {"swap", "zero", "similarity", "place", "reads"} <= thought.keys()
        assert samples[0]["thoughts"] != samples[1]["thoughts"]


def test_own_code_grades_the_answers_of_the_page(folder):
    """For this grader every finished answer is right, and an unfinished one is not."""
    (folder / "my_grader.py").write_text("def grade(problem, text):\n    return True\n")
    arguments = ("--checkpoint", folder / "alone", "--data", folder / "chains.json", "--num_trajectories", 8)
    graded = ("--grader", f"{folder / 'my_grader.py'}:grade", "--output", folder / "graded.html")
    assert start("view.py", *arguments, *graded) == 0
    rows = data_of((folder / "graded.html").read_text())["questions"]
    found = [(each, row["answer"]) for row in rows for each in row["trajectories"]]
    assert [each["right"] for each, _ in found] == [each["finished"] for each, _ in found]
    assert any(each["finished"] and each["answer"] != answer for each, answer in found), (
        "no answer tells the rules apart"
    )


def test_no_text_of_the_data_is_markup_and_only_the_pages_own_script_may_run(page):
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "\u2028" not in text
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in text
    for way in ("innerHTML", "insertAdjacentHTML", "outerHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert way not in script
    assert not re.search(r"""\b(src|srcset|action)=|@import|url\(""", re.sub(r"\{.*\}\n*</script>", "", text))
    assert re.findall(r'href="([^"]*)"', text) == ["data:,"]


@pytest.mark.parametrize("name", ["joined", "alone"])
def test_an_intervention_changes_one_thought_and_thinking_goes_on_from_it(folder, name):
    """Against the answers from thoughts that are put together by hand, with raw hidden states fed back."""
    model = load_pretrained(folder / name)
    model = replace(model, params=jax.tree.map(lambda x: 3 * x, model.params))  # so that answers depend on thoughts
    chains = ChainProblems(5, 4, (2,), "test")
    # A thread for each trajectory of a joined answer, or the second one would not exist.
    problems = [replace(each, threads=(each.steps[:1], each.steps[1:])) for each in map(chains.__getitem__, range(4))]
    decoder = Decoder(model.graphdef, model.layout, 2, 3, joined=model.joined)
    batches = Batches(decoder, model.params, problems, ThoughtRule("fixed", 2), None, 4, 0)
    decoded, prompts = batches.run(model.temperatures), (batches.prompt, batches.mask)
    many, interventions = decoded.thoughts.shape[1], Interventions(decoder)
    own = interventions.answers(model.params, prompts, decoded, decoded.thoughts)
    assert own.shape == (4, many, 2, 3) and many == (model.joined or 1)
    np.testing.assert_array_equal(own, np.broadcast_to(decoded.tokens[:, :, None], own.shape))
    replacement = np.random.default_rng(0).normal(size=decoded.thoughts.shape).astype(np.float32)
    tokens = interventions.answers(model.params, prompts, decoded, replacement)
    assert (tokens != own).any()

    def after_first(prompt, mask, given):
        reasoner = nnx.merge(model.graphdef, *model.params)
        encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), many)
        return think_given(reasoner, encoded, given, jnp.ones((4, many), int)).hidden[:, :, 1]

    thinks = jax.jit(after_first, compiler_options=QUICK)
    for column, step in np.ndindex(many, 2):
        given = np.array(decoded.thoughts)
        given[:, column, step] = replacement[:, column, step]
        if step == 0:
            given[:, column, 1] = thinks(*prompts, given)[:, column]
        expected = decoder.decode_given(model.params, prompts, given, decoded.num_thoughts)
        np.testing.assert_array_equal(tokens[:, column, step], np.asarray(expected.tokens)[:, 0])


@pytest.mark.parametrize("reads", ["own", "all"])
def test_after_an_intervention_thoughts_read_the_actions_that_were_taken(reads):
    """Against a run with the sampled noise up to the thought that is replaced by itself."""
    reasoner = small_reasoner(reads=reads, vocab_size=VOCABULARY)
    graphdef, params = nnx.split(reasoner)
    layout = SimpleNamespace(
        mode="coconut", opening=(7,), text_end=None, tokenizer=SimpleNamespace(ends=(END,), latent=3, end_latent=4)
    )
    decoder = Decoder(graphdef, layout, 3, 4)
    prompts, rows = tuple(map(np.asarray, ragged_prompts([4, 6], 6))), np.arange(2)
    temperatures = Temperatures(*np.array([2.0, 1.0, 1.0], np.float32))
    bounds = np.full((2, 3), 3), np.full((2, 3), 3)
    decoded = decoder.decode(
        (params,), prompts, bounds, temperatures, indices=rows, key=jax.random.key(0), num_trajectories=3
    )
    own = Interventions(decoder).answers((params,), prompts, decoded, np.asarray(decoded.thoughts))

    def by_hand(noise):
        encoded = encode(reasoner, *map(jnp.asarray, prompts))
        rule = StopRule(jnp.full((2, 3), 3), jnp.full((2, 3), 3))
        thoughts = think(reasoner, encoded, None, rule, noise, jnp.ones(()))
        return decode_answers(reasoner, encoded, thoughts, (7,), (END,), 4, jnp.ones(()), None).tokens

    run, differs = jax.jit(by_hand, compiler_options=QUICK), False
    for step in range(3):
        before = (jnp.arange(3) <= step)[:, None]
        if not reasoner.navigator.config.reads_others:
            expected = run(jnp.where(before, decoded.noise, 0.0))
            np.testing.assert_array_equal(own[:, :, step], expected)
            differs |= bool((np.asarray(expected) != np.asarray(run(jnp.zeros_like(decoded.noise)))).any())
            continue
        for n in range(3):
            alone = (jnp.arange(3) == n)[:, None, None]
            expected = run(jnp.where(~alone | before, decoded.noise, 0.0))
            np.testing.assert_array_equal(own[:, n, step], expected[:, n])
            differs |= bool((np.asarray(expected) != np.asarray(run(jnp.zeros_like(decoded.noise)))).any())
    assert differs


def test_a_joined_answer_shows_its_roles_and_one_question_has_no_other_to_swap_with(folder):
    model = load_pretrained(folder / "joined")
    found = data_of(
        trajectory_page(
            folder / "joined", model, [Problem("a=1 b=a+1 c=4 d=c+1 d?", ("2", "5"), "5", (("2",), ("5",)))]
        )
    )
    assert found["joined"] and not found["valued"] and not found["stops"] and not found["bank"]
    ((*trajectories,),) = [row["trajectories"] for row in found["questions"]]
    assert [each["kind"] for each in trajectories] == ["role", "role"]
    assert len({each["answer"] for each in trajectories}) == 1
    assert all(each["thoughts"] and each["donor"] is None for each in trajectories)
    assert all("swap" not in thought and thought["similarity"] is not None for thought in trajectories[0]["thoughts"])


def test_similarity_and_map():
    vectors = [[np.float32([[1, 0], [0, 2]]), np.float32([[0, 3]]), np.float32([[1, 1], [0, -1]])]]
    trajectories = [[{"thoughts": [{} for _ in each]} for each in vectors[0]]]
    _add_similarity(trajectories, vectors)
    found = [[thought["similarity"] for thought in each["thoughts"]] for each in trajectories[0]]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found[0], [half / 2, -1], atol=1e-6)
    np.testing.assert_allclose(found[1], [half / 2], atol=1e-6)
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 2)) * [3, 1]
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    places, shares = _plane((plane @ turned + 7).astype(np.float32))
    assert sum(shares) == pytest.approx(1) and shares[0] > 0.8
    gaps = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (places, plane)]
    np.testing.assert_allclose(*gaps, atol=1e-4)
    assert _plane(np.ones((1, 6), np.float32))[1] == [0, 0] and _plane(np.zeros((0, 6), np.float32))[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("checkpoint", "change", "sentence"),
    [
        ("ppo", {"--output": "there.html"}, "exists and is not overwritten: give another name, or remove it"),
        ("ppo", {"--data": "none.json"}, "none.json"),
        ("no_cot", {}, "of mode 'no_cot', which has no thoughts"),
        ("pause", {}, "whose thoughts are all the same embedding"),
        ("converted", {}, "holds converted weights, which were not trained to think"),
        ("plain", {}, f"holds a Llama without {FILE}"),
        ("export", {"--data": None}, f"{FILE} is damaged"),
        ("nothing", {}, "there is no folder"),
        ("nothing", {"--data": None}, "there is no folder"),
        ("ppo", {"--output": "page.pdf"}, "give a name that ends in .html"),
    ],
)
def test_bad_input_is_one_sentence_before_the_model_is_loaded(
    folder, tmp_path, capsys, monkeypatch, checkpoint, change, sentence
):
    if checkpoint == "ppo":
        (tmp_path / checkpoint).symlink_to(folder / "ppo")
    elif checkpoint != "nothing":
        (tmp_path / checkpoint / ("checkpoints" if checkpoint in ("no_cot", "pause", "converted") else "")).mkdir(
            parents=True
        )
    if checkpoint in ("no_cot", "pause"):
        run = replace(CURRICULUM, curriculum=replace(CURRICULUM.curriculum, mode=checkpoint))
        write_config(tmp_path / checkpoint, asdict(run))
    elif checkpoint in ("plain", "export"):
        (tmp_path / checkpoint / "config.json").write_text("{}")
    if checkpoint == "export":
        (tmp_path / checkpoint / FILE).write_text("")
    if checkpoint != "nothing":
        monkeypatch.setattr(
            longshot_jax.checkpoints.pretrained, "load_pretrained", lambda *_: pytest.fail("was loaded")
        )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    options = {"--checkpoint": checkpoint, "--data": folder / "chains.json", "--output": "page.html"} | change
    arguments = [text for option, value in options.items() if value is not None for text in (option, value)]
    assert start("view.py", *arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert sentence in printed and len(printed.splitlines()) == 1
    assert (tmp_path / "there.html").read_text() == "mine" and not (tmp_path / "page.html").exists()


def test_a_stage_without_thoughts_is_refused(folder):
    model = replace(load_pretrained(folder / "joined"), stage_rule=ThoughtRule("fixed", 0))
    with pytest.raises(UserError, match="is of a stage without thoughts"):
        trajectory_page(folder, model, [Problem("a=1 b=a+1 b?", ("2",), "2")])


# Neither Node nor a browser is a package of Python's, so they cannot be installed with the tests. Node runs the page's script in a few elements of its own.
@pytest.mark.skipif(NODE is None, reason="no Node is installed: Debian's package is `nodejs`")
@pytest.mark.parametrize(("many", "stops"), [(2, True), (1500, False)])
def test_the_map_draws_every_thought_once_however_many_there_are(tmp_path, many, stops):
    """150,000 thoughts are more than a call of JavaScript may have arguments."""
    thought = {"nearest": [["7", 0.5]], "norm": 1.0, "stop_probability": 0.2689, "value": 0.0, "similarity": 0.1}
    thought |= {"own": "7", "zero": "1", "reads": []}
    rng, steps = np.random.default_rng(0), 2 if many == 2 else 50
    questions = [
        {
            "question": f"q{q}", "steps": [], "answer": "7",
            "trajectories": [
                {"kind": "sample", "answer": "7", "finished": True, "right": not n, "value": 0.0, "stop": 0.2689, "donor": None,
                 "thoughts": [thought | {"place": place} for place in rng.normal(size=(steps, 2)).tolist()]}
                for n in range(2)
            ],
        }
        for q in range(many)
    ]  # fmt: skip
    content = {"checkpoint": "x", "step": 1, "phase": "curriculum", "feedback": "hidden", "seed": 0, "joined": False}
    content |= {"written": False, "valued": False, "stops": stops, "bank": False, "variance": [0.5, 0.3]}
    (tmp_path / "page.html").write_text(_fill(content | {"questions": questions}))
    command = [NODE, Path(__file__).with_name("page_in_node.js"), tmp_path / "page.html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    before, clicked, coloured = json.loads(done.stdout)
    for found, question, fills in ((before, "0", min(steps, 8)), (clicked, "1", min(steps, 8)), (coloured, "1", 2)):
        assert found["made"] == found["circles"] == many * 2 * steps, "a click draws no point anew"
        assert (found["large"], found["questions"]) == (2 * steps, [question]) and found["ends"]
        assert found["lines"] == [steps, steps] and found["fills"] == fills
        assert found["across"] == [18.0, 622.0] and ("stop" in found["cards"]) == stops


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: Debian's package is `chromium`")
@pytest.mark.parametrize("width", [1400, 390])
def test_in_a_browser(page, tmp_path, width):
    found = data_of(page.read_text())["questions"]
    with Browser(tmp_path) as browser:
        browser.open(page, width, 900)
        shown = "document.querySelector('.question').textContent"
        buttons = "document.querySelectorAll('#list button')"
        assert browser.run(f"{buttons}.length") == 5 and browser.run(shown) == found[0]["question"]
        browser.run(f"{buttons}[2].click()")
        assert browser.run(shown) == found[2]["question"] and ATTACK in found[2]["question"]
        assert browser.run("location.hash") == "#3"
        browser.run("document.querySelector('[aria-label=Previous]').click()")
        assert browser.run(shown) == found[1]["question"]
        assert browser.run("document.querySelectorAll('#cards article').length") == 3
        taken = sum(len(each["thoughts"]) for each in found[1]["trajectories"])
        assert browser.run("document.querySelectorAll('#cards li.thought').length") == taken > 0
        total = sum(len(each["thoughts"]) for row in found for each in row["trajectories"])
        assert browser.run("document.querySelectorAll('svg circle').length") == total
        browser.run("document.querySelector('circle[data-question=\"4\"]').dispatchEvent(new Event('click'))")
        assert browser.run(shown) == found[4]["question"]

        def choose(name: str, value: str) -> int:
            script = f"(() => {{ const e = document.getElementById('{name}'); e.value = {json.dumps(value)};"
            browser.run(script + " e.dispatchEvent(new Event('input')); })()")
            return browser.run(f"{buttons}.length")

        right = sum(row["trajectories"][0]["right"] for row in found)
        assert choose("outcome", "right") == right and choose("outcome", "wrong") == 5 - right
        assert choose("outcome", "") == 5 and choose("search", "onerror") == 2 and choose("search", "4+3") == 1
        assert choose("search", "") == 5 and choose("steps", "1") == 1 and choose("steps", "") == 5
        assert choose("colour", "right") == 5
        assert browser.run("document.documentElement.scrollWidth") <= width, "nothing is cut off at the right"
        # The cards of one question stand side by side, or below one another on a phone.
        tops = browser.run("[...document.querySelectorAll('#cards article')].map((e) => e.getBoundingClientRect().top)")
        assert len(set(tops)) == (1 if width > 900 else 3)
        assert browser.run("[typeof window.injected, document.images.length]") == ["undefined", 0]
        browser.run("document.querySelector('summary').click()")
        assert browser.run("document.querySelector('details').open") is True
        assert not browser.errors
        assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
