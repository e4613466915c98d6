"""A trained model from a folder: that of a run, of converted weights, or a Hugging Face Llama directory."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from longshot_jax.config import ModelConfig, RunConfig
from longshot_jax.data.examples import Layout
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError
from longshot_jax.evaluation.decoding import ThoughtRule, Weights, make_temperatures, rule_after
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.storage import joined
from longshot_jax.thoughts.coupling import Coupling
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.training.checkpoint import Which
from longshot_jax.training.companion import Companion, exported_run, read_companion
from longshot_jax.training.problem_sources import build_layout
from longshot_jax.training.saved import SavedReasoner, make_reasoner

_LATENT_TOKENS = 3
_PLAIN_ANSWER_LENGTH = 64  # of a Llama that was not trained here
_PROMPT_BUCKET = 32


@dataclass(frozen=True)
class Pretrained:
    """A model and how it was trained to be asked.

    Attributes:
      graph, weights: `nnx.merge(graph, *weights)` is the `Reasoner`.
      llama: its shape.
      layout: of prompts and answers; None without a tokenizer.
      rule: number of thoughts.
      max_thoughts: T; answer_length: A, in tokens.
      sigma: noise of samples, relative to the rms of thoughts; temperatures: of samples.
      memory: the bank, or None.
      max_trajectories: most that the model chooses for a question, 0 where it does not; coupling: of samples' noise.
      source: which checkpoint this is: step and stage, seed and mode of its run; for reports.
    """

    graph: nnx.GraphDef
    weights: Weights
    llama: LlamaConfig
    layout: Layout | None
    rule: ThoughtRule
    max_thoughts: int
    answer_length: int
    sigma: float
    temperatures: Temperatures
    memory: MemoryBank | None
    source: dict[str, Any]
    max_trajectories: int = 0
    coupling: Coupling = "independent"


def load_pretrained(
    path: str | Path, which: Which | None = None, dtype: Literal["float32", "bfloat16"] | None = None
) -> Pretrained:
    """Reads a folder.

    Args:
      path: of a run, of converted weights, or a Hugging Face Llama directory: any, or one that a run was exported to.
      which: checkpoint of a run; None is the best, or the newest where none has a metric.
      dtype: of the arithmetic of a Hugging Face directory, and of its stored weights. None is float32, and for an
        exported run its own arithmetic on float32 weights. A run folder has its own.

    Raises:
      UserError: the folder is none of these, or cannot be read.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: give a run folder or a Hugging Face Llama directory.")
    if (path / "checkpoints").is_dir():
        saved = SavedReasoner.find(path, which)
        tokens, weights = Tokens.find(path / "tokenizer"), saved.weights()
        if saved.is_llama_alone:
            return _plain(saved.llama, weights["llama"], tokens, "float32")
        if tokens is None:
            raise UserError(
                f"{path / 'tokenizer'} holds no tokenizer: restore it from where the run was made."
            )
        return _trained(saved.companion(weights), saved.run, saved.llama, weights, tokens)
    if not (path / "config.json").exists():
        raise UserError(
            f"{path} holds neither checkpoints nor a config.json: give a run folder or a Hugging Face Llama directory."
        )
    tokens, config = Tokens.find(path), read_config(path)
    companion = read_companion(path, config.hidden_size)
    if tokens is not None:
        # Only the latent tokens may lie beyond the model's own rows: otherwise it is another model's tokenizer.
        tokens.check_fits(config.vocab_size + (_LATENT_TOKENS if companion is None else 0))
    elif companion is not None:
        raise UserError(f"{path} holds a run but no tokenizer: restore it from where the run was exported.")
    rows = max(config.vocab_size, tokens.vocabulary_size if tokens else 0)
    weights = load_weights(path, config, jnp.dtype(dtype or "float32"), embedding_rows=rows)
    llama = replace(config, vocab_size=rows)
    if companion is None or tokens is None:
        return _plain(llama, weights, tokens, dtype or "float32")
    run = exported_run(companion.run, dtype)
    return _trained(companion, run, llama, joined(llama=weights, navigator=companion.navigator), tokens)


def _trained(
    companion: Companion, run: RunConfig, llama: LlamaConfig, weights: nnx.State, tokens: Tokens
) -> Pretrained:
    """A reasoner as its run left it; `run` says how its weights are stored here."""
    run = replace(run, model=replace(run.model, attention="plain"))  # which every device has
    sigma, temperatures, stage = 0.0, make_temperatures(), companion.stage
    if stage == "ppo":
        ppo = run.ppo
        sigma = ppo.noise[1]
        # The schedules' ends: what the finished policy was trained under.
        temperatures = make_temperatures(
            sigma * companion.thought_rms, ppo.stop_temperature[1], ppo.token_temperature[1]
        )
    tokens.check_fits(llama.vocab_size)
    rule = rule_after(run, stage)
    answer_length = (run.ppo.answer_length if stage == "ppo" else 0) or run.data.answer_length
    return Pretrained(
        graph=nnx.split(nnx.eval_shape(lambda: make_reasoner(run, llama)))[0],
        weights=(weights,),
        llama=llama,
        layout=build_layout(run, tokens),
        rule=rule,
        max_thoughts=_thought_slots(run, rule),
        answer_length=answer_length,
        sigma=sigma,
        temperatures=temperatures,
        memory=companion.memory,
        source={
            "step": companion.step,
            "stage": stage,
            "run_seed": run.seed,
            "mode": run.curriculum.mode,
            "feedback": run.thoughts.feedback,
        },
        max_trajectories=run.thoughts.max_trajectories if stage == "ppo" else 0,
        coupling=run.ppo.coupling if stage == "ppo" else "independent",
    )


def _thought_slots(run: RunConfig, rule: ThoughtRule) -> int:
    return max(run.max_thoughts, rule.most) if rule.most else 0


def _plain(llama: LlamaConfig, weights: Any, tokens: Tokens | None, dtype: Any) -> Pretrained:
    """A Llama without a trained navigator: COCONUT's raw hidden states as thoughts, none unless they are asked for."""
    run = RunConfig(model=ModelConfig(compute_dtype=dtype))
    graph = nnx.split(nnx.eval_shape(lambda: make_reasoner(run, llama)))[0]
    # Nothing of the random Llama is computed: the compiler drops what is not returned.
    navigator = jax.jit(lambda: nnx.split(make_reasoner(run, llama))[1]["navigator"])()
    longest = llama.max_position_embeddings - _PLAIN_ANSWER_LENGTH
    return Pretrained(
        graph=graph,
        weights=(joined(llama=weights, navigator=navigator),),
        llama=llama,
        layout=None if tokens is None else Layout(tokens, "coconut", "cot", longest, _PROMPT_BUCKET),
        rule=ThoughtRule("fixed", 0),
        max_thoughts=0,
        answer_length=_PLAIN_ANSWER_LENGTH,
        sigma=0.0,
        temperatures=make_temperatures(),
        memory=None,
        source={"mode": "plain"},
    )
