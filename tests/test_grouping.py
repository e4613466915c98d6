"""Batches grouped by length: few shapes, little padding, pure in their number, nothing lost; evaluation in its order."""

import io
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import grain
import numpy as np
import pytest
from test_accuracy import PARAMS, STEPS, decoder_of
from tiny_run import tiny

from longshot_jax.config.curriculum import CurriculumConfig, GuidanceConfig
from longshot_jax.curriculum.batch import choose_padding, curriculum_batch, padded_lengths, replaced_steps
from longshot_jax.data.chains import ChainProblems
from longshot_jax.data.grouping import choose_shapes, grouped_batches, smallest_shape
from longshot_jax.data.layout import Layout
from longshot_jax.data.loader import problem_stream
from longshot_jax.data.problems import load_problems
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.evaluation.accuracy import evaluate
from longshot_jax.evaluation.batches import Batches
from longshot_jax.train import train

LAYOUT = Layout(Tokenizer.for_chains(), "answer", "coconut", 30)


def drawn_lengths(count):
    rng = np.random.default_rng(3)
    return [
        (int(prompt), int(written))
        for prompt, written in zip(*rng.integers((5, 3), (60, 30), (count, 2)).T, strict=True)
    ]


def waste(shapes, lengths):
    return sum(sum(smallest_shape(shapes, length)) - sum(length) for length in lengths)


def test_shapes_are_few_hold_everything_and_waste_little():
    lengths = drawn_lengths(300)
    shapes = choose_shapes(lengths, 4, (64, 32), multiple=4)
    assert len(shapes) == 4 and shapes[-1] == (64, 32)
    assert all(s % 4 == 0 and a % 4 == 0 for s, a in shapes)
    for length in lengths:
        fits = [shape for shape in shapes if shape[0] >= length[0] and shape[1] >= length[1]]
        assert sum(smallest_shape(shapes, length)) == min(map(sum, fits))
    # The second shape is the best one that there is.
    corners = product(range(4, 65, 4), range(4, 33, 4))
    best = min(waste(sorted([corner, (64, 32)], key=sum), lengths) for corner in corners)
    assert waste(choose_shapes(lengths, 2, (64, 32), multiple=4), lengths) == best
    assert choose_shapes(lengths, 1, (64, 32)) == ((64, 32),)
    assert choose_shapes([(8, 8)] * 5, 9, (64, 32)) == ((8, 8), (64, 32))  # no more than save anything
    assert len(choose_shapes([(s, 8) for s in range(1, 4000)], 50, (4001, 16))) == 40


@pytest.mark.parametrize(("count", "batch_size"), [(500, 4), (2500, 8), (7, 8)])
def test_each_window_holds_its_part_of_the_stream_in_batches_of_one_shape(count, batch_size):
    items = list(enumerate(drawn_lengths(count)))
    shapes = choose_shapes([length for _, length in items], 5, (64, 32))

    def batches():
        stream = grain.MapDataset.source(items).shuffle(1).repeat()
        return stream, grouped_batches(stream, batch_size, count, lambda item: item[1], shapes, seed=2)

    stream, groups = batches()
    window = min(max(count // batch_size, 1), 256)
    for first in (0, window):
        held = [groups[number] for number in range(first, first + window)]
        assert {len(batch) for batch in held} == {batch_size}
        expected = [stream[place] for place in range(first * batch_size, (first + window) * batch_size)]
        assert Counter(item for batch in held for item in batch) == Counter(expected)
        mixed = [len({smallest_shape(shapes, length) for _, length in batch}) > 1 for batch in held]
        assert sum(mixed) <= len(shapes)
    again = batches()[1]  # from any place on
    assert [again[number] for number in (window + 1, 0, 2 * window)] == [
        groups[number] for number in (window + 1, 0, 2 * window)
    ]
    if count > 7:  # shuffled: what follows a batch is seldom of its shape
        own = [smallest_shape(shapes, groups[number][0][1]) for number in range(window)]
        assert np.mean([one == other for one, other in pairwise(own)]) < 0.5


@pytest.mark.parametrize("guidance", [GuidanceConfig(), GuidanceConfig(explanation=1.0, distillation=1.0)])
def test_a_padded_batch_holds_the_same_tokens_in_one_of_the_shapes(guidance):
    problems = list(ChainProblems(0, 300, (1, 2, 3, 4, 5)))
    config = CurriculumConfig(stages=(0, 1), max_latent_stage=2, uniform_prob=0.3, guidance=guidance)
    padding = choose_padding(problems, 3, config, LAYOUT, 20)
    assert len(padding.shapes) == 3 and padding.step_length == 8
    rng = np.random.default_rng(0)
    replaced = [replaced_steps(1, problem.steps, config, LAYOUT, rng) for problem in problems]
    for first in range(0, 20, 4):
        part, held = problems[first : first + 4], replaced[first : first + 4]
        plain = curriculum_batch(part, 1, config, LAYOUT, 20, np.random.default_rng(0), replaced=held)
        batch = curriculum_batch(part, 1, config, LAYOUT, 20, np.random.default_rng(0), replaced=held, padding=padding)
        shape = batch.prompt.shape[1], batch.tokens.shape[1]
        longest = [padded_lengths(*each, config, LAYOUT) for each in zip(part, held, strict=True)]
        assert shape == smallest_shape(padding.shapes, tuple(np.max(longest, axis=0).tolist()))
        for one, other in ((plain, batch), (plain.text, batch.text))[: 2 if guidance.distillation else 1]:
            for name in ("prompt", "tokens"):
                masks = [getattr(each, "prompt_mask" if name == "prompt" else "token_mask") for each in (one, other)]
                ids = [getattr(each, name)[mask] for each, mask in zip((one, other), masks, strict=True)]
                assert ids[0].tolist() == ids[1].tolist()
                assert masks[0].sum(axis=1).tolist() == masks[1].sum(axis=1).tolist()
            assert other.prompt.shape[1] == shape[0] and other.tokens.shape[1] == shape[1]
        if guidance.explanation:
            assert batch.steps.tokens.shape[-1] == 8 < plain.steps.tokens.shape[-1]
            assert batch.steps.mask.sum() == plain.steps.mask.sum()


def test_most_positions_of_gsm8k_are_real(shared_data):
    """At least 85 % in batches of 8; in random order 63 %."""
    layout = Layout(Tokenizer.load(str(shared_data / "tokenizers/gpt2")), "coconut", "cot", 320)
    problems, config = load_problems(str(shared_data / "gsm8k/train.jsonl"))[:2048], CurriculumConfig(mode="cot")
    padding = choose_padding(problems, 24, config, layout, 480)
    stream = problem_stream(problems, 0).map(lambda problem: (problem, (0, 0)))
    lengths = lambda item: padded_lengths(*item, config, layout)  # noqa: E731
    groups = grouped_batches(stream, 8, len(problems), lengths, padding.shapes, 0)
    real = total = 0
    for number in range(256):
        own = np.array([lengths(item) for item in groups[number]])
        real += own.sum()
        total += 8 * sum(smallest_shape(padding.shapes, tuple(own.max(axis=0).tolist())))
    assert real / total > 0.85


@pytest.mark.slow
def test_a_run_with_shapes_reports_its_real_positions(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = {"curriculum__stages": (1,), "curriculum__max_steps_per_stage": 4, "evaluation__questions": 1}
    lengths = {"data__operations": (1, 4), "data__prompt_length": 25, "data__answer_length": 6}
    run = tiny(phases=("curriculum",), data__batch_shapes=2, **short, **lengths)
    train(run, tmp_path, io.StringIO())
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    # Chains of one operation have 10 + 3 tokens, of four 25 + 6, padded to (16, 6) and (25, 6).
    values = [round(event.value, 3) for event in events.Scalars("curriculum/real_positions")]
    assert len(values) == 4 and set(values) == {round(13 / 22, 3), 1.0}


def test_an_evaluation_in_groups_gives_the_results_of_one_in_order():
    problems = list(ChainProblems(0, 11, (3, 1), "test"))
    plain = decoder_of()
    grouped = replace(plain, layout=replace(plain.layout, bucket=5))
    assert Batches(grouped, (PARAMS,), problems, STEPS, None, 4, 0).lengths == [10, 20, 20]
    results = [
        evaluate(decoder, (PARAMS,), problems, STEPS, batch_size=4, num_trajectories=0, controls=False)
        for decoder in (plain, grouped)
    ]
    assert results[0] == results[1] and len(set(results[0]["answers"])) > 3
