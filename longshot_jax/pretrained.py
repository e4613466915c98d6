"""A trained model from a folder: that of a run, of converted weights, or a Hugging Face Llama directory."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from longshot_jax.config import RunConfig, parse_config
from longshot_jax.conversion import llama_from_json
from longshot_jax.data.examples import Layout
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError
from longshot_jax.evaluation.decoding import ThoughtRule, Weights, make_temperatures, rule_after
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.thoughts.coupling import Coupling
from longshot_jax.thoughts.memory import MemoryBank, empty_bank
from longshot_jax.thoughts.navigator import NavigatorConfig, Reasoner
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.training.checkpoint import Checkpoints, Which
from longshot_jax.training.optimizer import is_trainable
from longshot_jax.training.problem_sources import build_layout

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
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
    path: str | Path, which: Which | None = None, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Pretrained:
    """Reads a folder.

    Args:
      path: of a run, of converted weights, or a Hugging Face Llama directory.
      which: checkpoint of a run; None is the best, or the newest where none has a metric.
      dtype: of a Hugging Face Llama's weights and arithmetic; a run has its own.

    Raises:
      UserError: the folder is none of these, or cannot be read.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: give a run folder or a Hugging Face Llama directory.")
    if (path / "checkpoints").is_dir():
        with Checkpoints.reader(path) as checkpoints:
            if which is None:
                which = "latest" if checkpoints.best_step is None else "best"
            host = checkpoints.host(which)
            if "llama" not in host:
                raise UserError(f"{path} holds no Llama: give the folder of a run.")
            if "config" in host:
                return _from_run(path, checkpoints, host, which)
            return _from_converted(path, checkpoints, host, which)
    if not (path / "config.json").exists():
        raise UserError(
            f"{path} holds neither checkpoints nor a config.json: give a run folder or a Hugging Face Llama directory."
        )
    tokens = _tokens_in(path)
    config = read_config(path)
    if tokens is not None:
        # Only the latent tokens may lie beyond the model's own rows: otherwise it is another model's tokenizer.
        tokens.check_fits(config.vocab_size + _LATENT_TOKENS)
    rows = max(config.vocab_size, tokens.vocabulary_size if tokens else 0)
    weights = load_weights(path, config, jnp.dtype(dtype), embedding_rows=rows)
    return _plain(replace(config, vocab_size=rows), weights, tokens, dtype)


def _from_run(path: Path, checkpoints: Checkpoints, host: dict[str, Any], which: Which) -> Pretrained:
    run, stage = parse_config(host["config"]), host["stage"]
    llama = llama_from_json(host["llama"])
    trainable = run.ppo.trainable if stage == "ppo" else "all"
    graph, trained, frozen = _abstract(
        llama,
        run.thoughts,
        run.model.compute_dtype,
        is_trainable(trainable),
        host.get("llama_dtype", "float32"),
    )
    weights = tuple(
        checkpoints.restore_partial(part, name, which)[0]
        for name, part in (("trainable", trained), ("frozen", frozen))
        if jax.tree.leaves(part)
    )
    memory, sigma, temperatures = None, 0.0, make_temperatures()
    if stage == "ppo":
        ppo, scalar = run.ppo, jax.ShapeDtypeStruct((), jnp.float32)
        rms, _ = checkpoints.restore_partial(scalar, "thought_rms", which)
        sigma = ppo.noise[1]
        # The schedules' ends: what the finished policy was trained under.
        temperatures = make_temperatures(
            sigma * float(rms), ppo.stop_temperature[1], ppo.token_temperature[1]
        )
        if ppo.memory_slots:
            bank = jax.eval_shape(lambda: empty_bank(ppo.memory_slots, run.thoughts.reasoning_dim))
            memory, _ = checkpoints.restore_partial(bank, "memory", which)
    tokens = _tokens_in(path / "tokenizer")
    if tokens is None:
        raise UserError(f"{path / 'tokenizer'} holds no tokenizer: restore it from where the run was made.")
    tokens.check_fits(llama.vocab_size)
    rule = rule_after(run, stage)
    answer_length = (run.ppo.answer_length if stage == "ppo" else 0) or run.data.answer_length
    return Pretrained(
        graph=graph,
        weights=weights,
        llama=llama,
        layout=build_layout(run, tokens),
        rule=rule,
        max_thoughts=_thought_slots(run, rule),
        answer_length=answer_length,
        sigma=sigma,
        temperatures=temperatures,
        memory=memory,
        source={
            "step": host["step"],
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


def _from_converted(path: Path, checkpoints: Checkpoints, host: dict[str, Any], which: Which) -> Pretrained:
    """The Llama alone, as `convert.py from-hf` writes it."""
    llama = llama_from_json(host["llama"])
    _, part, _ = _abstract(llama, NavigatorConfig(), "float32", _in_llama)
    template = jax.tree.map(lambda x: x, part["llama"])
    weights, _ = checkpoints.restore_partial(template, host["llama_path"], which)
    return _plain(llama, weights, _tokens_in(path / "tokenizer"), "float32")


def _plain(llama: LlamaConfig, weights: Any, tokens: Tokens | None, dtype: str) -> Pretrained:
    """A Llama without a trained navigator: COCONUT's raw hidden states as thoughts, none unless they are asked for."""
    graph, backbone, navigator = _abstract(llama, NavigatorConfig(), dtype, _in_llama)
    backbone = jax.tree.unflatten(jax.tree.structure(backbone), jax.tree.leaves(weights))
    fresh = jax.jit(lambda: nnx.split(_make(llama, NavigatorConfig(), dtype), _in_llama, ...)[2])()
    longest = llama.max_position_embeddings - _PLAIN_ANSWER_LENGTH
    return Pretrained(
        graph=graph,
        weights=(backbone, jax.tree.unflatten(jax.tree.structure(navigator), jax.tree.leaves(fresh))),
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


def _in_llama(path: tuple[Any, ...], _: Any) -> bool:
    return path[0] == "llama"


def _make(llama: LlamaConfig, navigator: NavigatorConfig, dtype: str, stored: str = "float32") -> Reasoner:
    rngs = nnx.Rngs(0)
    model = Llama(llama, rngs, compute_dtype=jnp.dtype(dtype), weight_dtype=jnp.dtype(stored))
    return Reasoner(model, navigator, rngs)


def _abstract(
    llama: LlamaConfig, navigator: NavigatorConfig, dtype: str, first: Any, stored: str = "float32"
) -> Any:
    """Structure, and shapes of the weights in two parts: those that the filter `first` picks, and the others."""
    return nnx.split(nnx.eval_shape(lambda: _make(llama, navigator, dtype, stored)), first, ...)


def _tokens_in(folder: Path) -> Tokens | None:
    """The tokenizer in a folder, None where there is none."""
    return Tokens.load(str(folder)) if any((folder / name).exists() for name in _TOKENIZER_FILES) else None
