"""The recipes for pretrained weights, as they stand, on a small Llama in a Hugging Face directory."""

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from huggingface_folders import CONFIG, LLAMA, LLAMA_SPECIALS, llama_files, write

from longshot_jax import LongShot
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.config import parse_config
from longshot_jax.data.problems import load_problems
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.lora import is_adapter
from longshot_jax.train import train

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[1] / "configs"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}: {{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant: {% endif %}"
)
ROWS = 266  # 265 tokens; the reserved ones stand for the latent tokens


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A directory like an instruct model's: weights, tokenizer, chat template."""
    folder = tmp_path_factory.mktemp("llama")
    llama_files(folder, LLAMA_SPECIALS, TEMPLATE, **LLAMA)
    shape = {"vocab_size": ROWS, "hidden_size": 16, "intermediate_size": 24, "head_dim": 4}
    assert not CONFIG["tie_word_embeddings"]
    return write(folder, **shape)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """GSM8K's published form."""
    file = tmp_path_factory.mktemp("data") / "problems.jsonl"
    rows = [
        {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}
        for a in range(10)
        for b in range(10)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def recipe(name, backbone, problems, iterations):
    """The config's own values, but for the model, the data, their lengths and how long it runs."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.model.source, config.data.train, config.data.test = str(backbone), str(problems), str(problems)
    config.data.validation = ""
    config.ppo.iterations = iterations
    for phase in (config.text, config.curriculum):
        phase.batch_size = phase.micro_batch_size = 4
    config.text.max_steps = config.curriculum.max_steps_per_stage = 1
    config.data.length_bucket = config.data.batch_shapes = 0
    config.data.prompt_length, config.data.answer_length = 160, 64  # one token a byte
    config.mesh.fsdp = 1
    config.model.lora.rank = 4  # no matrix of so small a Llama has 16
    config.evaluation.questions = 16
    return parse_config(config)


@pytest.mark.long  # adapters and all weights of a Hugging Face directory are also trained below
@pytest.mark.parametrize("name", ["published_single", "published_multi"])
def test_recipe_trains_a_hugging_face_directory(name, backbone, problems, tmp_path):
    run = recipe(name, backbone, problems, iterations=2)
    result = train(run, tmp_path / "run", io.StringIO())
    assert result.phases["ppo"]["updates"] == 2 * run.ppo.epochs * run.ppo.minibatches
    model = LongShot.from_pretrained(tmp_path / "run", which="latest")
    before = load_weights(backbone, read_config(backbone))
    # As stored: a model loaded for inference is cast to the compute dtype, in which a small step may change nothing.
    params = SavedReasoner.find(tmp_path / "run", "latest").params()["backbone"]
    adapters, after = nnx.split_state(params, is_adapter, ...)
    seconds = [leaf for path, leaf in jax.tree.leaves_with_path(adapters) if "_out" in jax.tree_util.keystr(path)]
    assert len(seconds) == (7 if run.lora else 0) and all(np.any(leaf) for leaf in seconds)
    # Rows of latent tokens start from those of other tokens, also where nothing is trained.
    tokenizer = model.model.layout.tokenizer
    latent = [tokenizer.start_latent, tokenizer.latent, tokenizer.end_latent]

    def differs(a, b):
        a, b = np.asarray(a, np.float32)[: len(b)], np.asarray(b.astype(a.dtype), np.float32)
        if len(b) == read_config(backbone).vocab_size:
            a, b = (np.delete(x, [row for row in latent if row < len(b)], axis=0) for x in (a, b))
        return not np.array_equal(a, b)

    moved = [differs(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)]
    assert all(moved) if run.ppo.trainable == "all" else not any(moved)
    found = model.generate("What is 3 + 4?", num_trajectories=3, return_all_trajectories=True)
    counts = [trajectory.thoughts for trajectory in found.trajectories]
    assert len(counts) == 3 and all(run.ppo.min_thoughts <= count <= run.ppo.max_thoughts for count in counts)


@pytest.mark.parametrize("name", ["smollm2_stories", "smollm2_gsm8k", "single"])
def test_recipe_of_three_phases_runs_them_all(name, backbone, problems, tmp_path):
    run = recipe(name, backbone, problems, iterations=1)
    run = replace(run, ppo=replace(run.ppo, questions=8, num_trajectories=2, micro_batches=2))
    result = train(run, tmp_path / "run", io.StringIO())
    assert {phase: result.phases[phase]["updates"] for phase in run.phases} == {
        "text": 1,
        "curriculum": len(run.curriculum.stages),
        "ppo": run.ppo.epochs * run.ppo.minibatches,
    }
    assert run.thoughts.normalised == (run.thoughts.feedback == "hidden")
    model = LongShot.from_pretrained(tmp_path / "run").model
    assert model.max_thoughts == run.max_thoughts
    assert model.source.get("sampled_tokens") == (1 if run.thoughts.noise == "tokens" else None)


def test_the_recipe_of_soft_tokens_leaves_the_backbone_to_its_text_phase(backbone, problems, tmp_path):
    run = recipe("smollm2_soft_stories", backbone, problems, iterations=1)
    text = train(replace(run, phases=("text",)), tmp_path / "text", io.StringIO())
    assert text.phases["text"]["updates"] == 1
    said = io.StringIO()
    result = train(run, tmp_path / "run", said)
    assert {phase: result.phases[phase]["updates"] for phase in run.phases} == {"text": 1, "curriculum": 1}
    assert "thought_slots" not in said.getvalue()
    before, after = (SavedReasoner.find(tmp_path / name, "latest").params() for name in ("text", "run"))
    for ours, theirs in zip(jax.tree.leaves(before["backbone"]), jax.tree.leaves(after["backbone"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.any(after["navigator"]["stop_weight"][...])
    model, some = LongShot.from_pretrained(tmp_path / "run"), load_problems(str(problems))[:10]
    results = model.evaluate(some, num_trajectories=0, controls=False, thoughts="steps")
    assert results["thoughts"] == [len(model.model.layout.step(problem.steps[0])) for problem in some]
    assert model.model.rule.stops
