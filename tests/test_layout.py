"""The layout of a problem: what is forced before a generated answer is what training put there."""

import numpy as np
import pytest
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files

from longshot_jax.data.grading import same_answer
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.evaluation.batches import answer_texts

PROBLEM = Problem("b=3 d=b+4 d?", ("7",), "7")


def check_opening(tokenizer: Tokenizer, markers):
    layout = Layout(tokenizer, markers, "coconut", 64)
    trained = [*layout.closing, *layout.answer(PROBLEM)]
    opening = layout.opening
    assert tokenizer.end_latent in opening and tuple(trained[: len(opening)]) == opening
    assert tokenizer.end not in opening
    generated = trained[len(opening) :]
    assert layout.answer_text(generated).strip() == "7"
    assert layout.question(PROBLEM).count(tokenizer.start_latent) == (markers == "coconut")


@pytest.mark.parametrize("markers", ["coconut", "answer"])
def test_an_answer_opens_as_it_was_trained(markers):
    check_opening(Tokenizer.for_chains(), markers)
    check_opening(Tokenizer.train_bpe(["b=3 d=b+4 d?", "### 7"], 300), markers)


@pytest.mark.parametrize("markers", ["coconut", "answer"])
def test_an_answer_opens_as_it_was_trained_with_a_published_tokenizer(shared_data, markers):
    check_opening(Tokenizer.load(str(shared_data / "tokenizers" / "gpt2")), markers)


def test_without_thoughts_nothing_closes_them():
    for mode in ("cot", "no_cot", "no_thoughts"):
        layout = Layout(Tokenizer.for_chains(), "coconut", mode, 64)
        assert layout.closing == () == layout.opening


@pytest.mark.parametrize("markers", ["coconut", "answer"])
def test_no_token_of_an_answer_is_dropped(markers):
    """Or a wrong answer could be turned into the right one by tokens that are not shown."""
    tokenizer = Tokenizer.for_chains(multiple=64)
    layout = Layout(tokenizer, markers, "coconut", 64)
    one, eight = tokenizer.encode("1"), tokenizer.encode("8")
    strangers = {
        tokenizer.start_latent: "<|start-latent|>",
        tokenizer.pad: "<|pad|>",
        tokenizer.vocabulary_size - 1: "<63>",
    }
    for stranger, shown in strangers.items():
        assert layout.answer_text([*one, stranger, *eight, tokenizer.end]) == f"1{shown}8"
    again = layout.answer_text([*one, tokenizer.end_latent, *eight, tokenizer.end, *one])
    assert again == ("8" if markers == "answer" else "1<|end-latent|>8")


def test_special_tokens_of_a_published_kind_are_not_dropped_either(tmp_path):
    """Llama 3 has more of them than its tokenizer names."""
    tokenizer = Tokenizer.load(llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA))
    layout = Layout(tokenizer, "coconut", "coconut", 64)
    spare = tokenizer.encode("<|reserved_special_token_10|>")
    assert (
        layout.answer_text([*tokenizer.encode("1"), *spare, *tokenizer.encode("8")])
        == "1<|reserved_special_token_10|>8"
    )


def test_an_answer_without_its_end_is_not_right():
    tokenizer = Tokenizer.for_chains()
    layout = Layout(tokenizer, "answer", "coconut", 64)
    end, eight = tokenizer.end, *tokenizer.encode("8")
    texts = answer_texts(np.array([[[eight, end, end], [eight, eight, end], [eight, eight, eight]]]), layout)
    assert texts == [["8", "88", "888 <|unfinished|>"]]
    assert [same_answer(text, gold) for text, gold in zip(texts[0], ("8", "88", "888"), strict=True)] == [1, 1, 0]


def test_an_instruction_follows_every_question():
    tokenizer = Tokenizer.train_bpe(["b=3 d=b+4 d?", "The number alone."], 300)
    plain = Layout(tokenizer, "answer", "coconut", 64)
    instructed = Layout(tokenizer, "answer", "coconut", 64, instruction="The number alone.")
    assert (
        tokenizer.decode(instructed.question(PROBLEM))
        == tokenizer.decode(plain.question(PROBLEM)) + "The number alone.\n"
    )


@pytest.mark.parametrize(("answer", "start"), [("Wednesday", 1), ("12", 2)])
def test_an_answer_starts_with_the_first_token_of_its_text(answer, start):
    """The space before it belongs to a word's first token, and is a token of its own before single digits."""
    tokenizer, problem = Tokenizer.train_bpe(["### Wednesday"] * 9, 400), Problem("x?", (), answer)
    layout = Layout(tokenizer, "coconut", "coconut", 64)
    ids = layout.answer(problem)
    assert layout.answer_start(ids) == start and tokenizer.decode(ids[start:-1]).strip() == answer
    layout = Layout(tokenizer, "answer", "coconut", 64)
    ids = layout.answer(problem)
    assert ids[layout.answer_start(ids) : -1] == tokenizer.encode(answer)


def test_every_character_of_an_answer_may_be_a_token():
    layout = Layout(Tokenizer.for_chains(), "coconut", "coconut", 64)
    ids = layout.answer(Problem("a=1 a?", (), "12"))
    assert ids[layout.answer_start(ids) : -1] == layout.tokenizer.encode("12")
