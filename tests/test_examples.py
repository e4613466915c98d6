"""The layout of a problem: what is forced before a generated answer is what training put there."""

import numpy as np
import pytest
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files

from longshot_jax.data.answers import same_answer
from longshot_jax.data.examples import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokens import Tokens
from longshot_jax.evaluation.batches import answer_texts

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


@pytest.mark.parametrize("markers", ["coconut", "answer"])
def test_no_token_of_an_answer_is_dropped(markers):
    """Or a wrong answer could be turned into the right one by tokens that nobody sees."""
    tokens = Tokens.for_chains(multiple=64)
    layout = Layout(tokens, markers, "coconut", 64)
    one, eight = tokens.encode("1"), tokens.encode("8")
    strangers = {
        tokens.start_latent: "<|start-latent|>",
        tokens.pad: "<|pad|>",
        tokens.vocabulary_size - 1: "<63>",
    }
    for stranger, shown in strangers.items():
        assert layout.answer_text([*one, stranger, *eight, tokens.end]) == f"1{shown}8"
    again = layout.answer_text([*one, tokens.end_latent, *eight, tokens.end, *one])
    assert again == ("8" if markers == "answer" else "1<|end-latent|>8")


def test_special_tokens_of_a_published_kind_are_not_dropped_either(tmp_path):
    """Llama 3 has more of them than its tokenizer names."""
    tokens = Tokens.load(llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA))
    layout = Layout(tokens, "coconut", "coconut", 64)
    spare = tokens.encode("<|reserved_special_token_10|>")
    assert (
        layout.answer_text([*tokens.encode("1"), *spare, *tokens.encode("8")])
        == "1<|reserved_special_token_10|>8"
    )


def test_an_answer_without_its_end_is_not_right():
    tokens = Tokens.for_chains()
    layout = Layout(tokens, "answer", "coconut", 64)
    end, eight = tokens.end, *tokens.encode("8")
    texts = answer_texts(np.array([[[eight, end, end], [eight, eight, end], [eight, eight, eight]]]), layout)
    assert texts == [["8", "88", "888 <|unfinished|>"]]
    assert [same_answer(text, gold) for text, gold in zip(texts[0], ("8", "88", "888"), strict=True)] == [
        1,
        1,
        0,
    ]


def test_an_instruction_follows_every_question():
    tokens = Tokens.train_bpe(["b=3 d=b+4 d?", "The number alone."], 300)
    plain = Layout(tokens, "answer", "coconut", 64)
    asked = Layout(tokens, "answer", "coconut", 64, instruction="The number alone.")
    assert (
        tokens.decode(asked.question(PROBLEM))
        == tokens.decode(plain.question(PROBLEM)) + "The number alone.\n"
    )
