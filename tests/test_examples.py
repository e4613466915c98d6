"""The layout of a problem: what is forced before a generated answer is what training put there."""

import pytest

from longshot_jax.data.examples import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokens import Tokens

PROBLEM = Problem("b=3 d=b+4 d?", ("7",), "7")


def check_opening(tokens: Tokens, markers):
    layout = Layout(tokens, markers, "coconut", 64)
    trained = [*layout.closing, *layout.answer(PROBLEM)]
    opening = layout.opening
    assert tokens.end_latent in opening and tuple(trained[: len(opening)]) == opening
    assert tokens.end not in opening
    generated = trained[len(opening) :]
    assert layout.answer_text(generated).strip() == "7"
    assert layout.question(PROBLEM).count(tokens.start_latent) == (markers == "coconut")


@pytest.mark.parametrize("markers", ["coconut", "answer"])
def test_an_answer_opens_as_it_was_trained(markers):
    check_opening(Tokens.for_chains(), markers)
    check_opening(Tokens.train_bpe(["b=3 d=b+4 d?", "### 7"], 300), markers)


@pytest.mark.parametrize("markers", ["coconut", "answer"])
def test_an_answer_opens_as_it_was_trained_with_a_published_tokenizer(shared_data, markers):
    check_opening(Tokens.load(str(shared_data / "tokenizers" / "gpt2")), markers)


def test_without_thoughts_nothing_closes_them():
    for mode in ("cot", "no_cot", "no_thoughts"):
        layout = Layout(Tokens.for_chains(), "coconut", mode, 64)
        assert layout.closing == () == layout.opening
