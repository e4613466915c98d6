"""Run folders as training leaves them, with random weights."""

from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from longshot_jax.config import RunConfig
from longshot_jax.conversion import llama_to_json
from longshot_jax.data.tokens import Tokens
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.thoughts.memory import empty_bank
from longshot_jax.thoughts.navigator import NavigatorConfig, Reasoner
from longshot_jax.training.checkpoint import Checkpoints
from longshot_jax.training.optimizer import is_trainable
from longshot_jax.training.settings import PPOConfig
from longshot_jax.training.workdir import write_config

PPO = RunConfig(
    stages=("ppo",),
    markers="answer",
    thoughts=NavigatorConfig("navigator", reasoning_dim=4, memory_top=1, stop_bias=0.0),
    ppo=PPOConfig(max_steps=3, min_steps=1, trainable="navigator", memory_slots=2, noise=(0.5, 0.1)),
)
CURRICULUM = RunConfig(stages=("curriculum",), markers="answer")


def save_run(folder: Path, run: RunConfig, stage: str, metric: float | None = 0.5, seed: int = 0) -> Reasoner:
    """A run folder as training leaves it, with random weights; optimizer and the like are left out."""
    tokens = Tokens.for_chains()
    shape = LlamaConfig(tokens.vocabulary_size, 16, 24, 1, 2, 2, 8, tie_word_embeddings=True)
    llama = Llama(shape, nnx.Rngs(seed), weight_dtype=jnp.dtype(run.model.weight_dtype), lora=run.lora)
    reasoner = Reasoner(llama, run.thoughts, nnx.Rngs(seed))
    if run.lora is not None:
        for name in run.lora.targets:  # they start at zero
            factor = getattr(llama.layers.lora, f"{name}_out")
            factor[...] = jnp.sin(jnp.arange(factor.size, dtype=jnp.float32)).reshape(factor.shape)
    trainable = run.trainable(stage)
    _, trained, frozen = nnx.split(reasoner, is_trainable(trainable), ...)
    space = run.thoughts.reasoning_dim
    state = {
        "trainable": trained,
        "frozen": frozen,
        "memory": empty_bank(run.ppo.memory_slots, space) if run.ppo.memory_slots else None,
        "thought_rms": jnp.asarray(2.0),
        "optimizer": jnp.ones(3),
    }
    path = "trainable.llama" if trainable == "all" else "frozen.llama"
    host = {
        "config": asdict(run),
        "llama": llama_to_json(shape),
        "llama_path": path,
        "stage": stage,
        "step": 7,
    }
    with Checkpoints(folder, 1, 1) as checkpoints:
        checkpoints.save(7, state, host, metric)
    tokens.save(folder / "tokenizer")
    write_config(folder, asdict(run))
    return reasoner
