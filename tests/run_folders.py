"""Run folders as training leaves them, with random weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from longshot_jax.checkpoints.checkpoint import Checkpoints, _digest
from longshot_jax.checkpoints.run_folder import write_config
from longshot_jax.config import RunConfig
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.thoughts.reads.memory_bank import empty_bank
from longshot_jax.thoughts.reasoner import Reasoner, is_trainable

PPO = RunConfig(
    phases=("ppo",),
    markers="answer",
    thoughts=NavigatorConfig("navigator", reasoning_dim=4, memory_top=1, stop_bias=0.0),
    ppo=PPOConfig(max_thoughts=3, min_thoughts=1, trainable="navigator", memory_slots=2, thought_std=(0.5, 0.1)),
)
CURRICULUM = RunConfig(phases=("curriculum",), markers="answer")


def save_run(
    folder: Path, run: RunConfig, phase: str, metric: float | None = 0.5, seed: int = 0, tokens: Tokenizer | None = None
) -> Reasoner:
    """A run folder as training leaves it, with random weights; optimizer and the like are left out."""
    tokens = tokens or Tokenizer.for_chains()
    shape = LlamaConfig(tokens.vocabulary_size, 16, 24, 1, 2, 2, 8, tie_word_embeddings=True)
    backbone = Llama(shape, nnx.Rngs(seed), weight_dtype=jnp.dtype(run.model.weight_dtype), lora=run.lora)
    reasoner = Reasoner(backbone, run.thoughts, nnx.Rngs(seed))
    if run.lora is not None:
        for name in run.lora.targets:  # they start at zero
            factor = getattr(backbone.layers.lora, f"{name}_out")
            factor[...] = jnp.sin(jnp.arange(factor.size, dtype=jnp.float32)).reshape(factor.shape)
    trainable = run.trainable(phase)
    _, trained, frozen = nnx.split(reasoner, is_trainable(trainable), ...)
    space = run.thoughts.reasoning_dim
    state = {
        "trainable": trained,
        "frozen": frozen,
        "memory": empty_bank(run.ppo.memory_slots, space) if run.ppo.memory_slots else None,
        "thought_rms": jnp.asarray(2.0),
        "optimizer": jnp.ones(3),
    }
    metadata = {
        "config": asdict(run),
        "backbone": asdict(shape),
        "backbone_path": "trainable.backbone" if trainable == "all" else "frozen.backbone",
        "phase": phase,
        "step": 7,
    }
    with Checkpoints(folder, 1, 1) as checkpoints:
        checkpoints.save(7, state, metadata, metric)
    tokens.save(folder / "tokenizer")
    write_config(folder, asdict(run))
    return reasoner


@contextmanager
def edit_metadata(folder: Path, step: int) -> Iterator[dict[str, Any]]:
    """The metadata of a checkpoint, to be changed; afterwards it is stored as if it had been saved so."""
    file = folder / "checkpoints" / str(step) / "metadata" / "metadata"
    content = json.loads(file.read_text())
    yield content["metadata"]
    del content["fingerprint"]
    file.write_text(json.dumps({**content, "fingerprint": _digest(content)}))
