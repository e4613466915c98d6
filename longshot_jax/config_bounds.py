"""What each number among the settings may be by itself: one table of bounds, checked before any combination."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshot_jax.errors import UserError

if TYPE_CHECKING:
    from longshot_jax.config import RunConfig


@dataclass(frozen=True)
class Bound:
    """The finite numbers from `low` to `high`, each end included unless it is open."""

    low: int | float = -math.inf
    high: int | float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: int | float) -> bool:
        above = number > self.low if self.low_open else number >= self.low
        below = number < self.high if self.high_open else number <= self.high
        return math.isfinite(number) and above and below

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"from {self.low} to {'below ' if self.high_open else ''}{self.high}"
        if math.isfinite(self.low):
            return f"{'above' if self.low_open else 'at least'} {self.low}"
        return "a finite number"


COUNT, NOT_NEGATIVE, POSITIVE, FREE = Bound(1), Bound(0), Bound(0, low_open=True), Bound()
SHARE, DECAY = Bound(0, 1), Bound(0, 1, high_open=True)

_OPTIMIZER = {
    "learning_rate": NOT_NEGATIVE,
    "navigator_learning_rate": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "final_learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "navigator_weight_decay": NOT_NEGATIVE,
    "b1": DECAY,
    "b2": DECAY,
    "clip_norm": POSITIVE,
}
BOUNDS: dict[str, Bound] = {
    "seed": Bound(0, 2**32 - 2),  # seeds of 32 bits, and the next one for PPO
    "model.hidden_size": COUNT,
    "model.intermediate_size": COUNT,
    "model.num_hidden_layers": COUNT,
    "model.num_attention_heads": COUNT,
    "model.num_key_value_heads": NOT_NEGATIVE,
    "model.rope_theta": POSITIVE,
    "model.lora.rank": COUNT,
    "model.lora.alpha": POSITIVE,
    "data.bpe_vocabulary": COUNT,
    "data.operations": COUNT,
    "data.distractors": NOT_NEGATIVE,
    "data.generated_train": COUNT,
    "data.generated_test": COUNT,
    "data.prompt_length": COUNT,
    "data.length_bucket": NOT_NEGATIVE,
    "data.answer_length": COUNT,
    "thoughts.reasoning_dim": COUNT,
    "thoughts.memory_top": NOT_NEGATIVE,
    "thoughts.stop_bias": FREE,
    "thoughts.step_embeddings": NOT_NEGATIVE,
    "thoughts.graph_neighbours": NOT_NEGATIVE,
    "thoughts.graph_layers": NOT_NEGATIVE,
    "thoughts.heads": COUNT,
    "thoughts.max_trajectories": NOT_NEGATIVE,
    "curriculum.stages": NOT_NEGATIVE,
    "curriculum.c_thought": COUNT,
    "curriculum.max_latent_stage": NOT_NEGATIVE,
    "curriculum.uniform_prob": SHARE,
    "curriculum.epochs_per_stage": COUNT,
    "curriculum.max_steps_per_stage": NOT_NEGATIVE,
    "curriculum.stage_loss": NOT_NEGATIVE,
    "curriculum.last_stage_loss": NOT_NEGATIVE,
    "curriculum.batch_size": COUNT,
    "curriculum.micro_batch_size": NOT_NEGATIVE,
    "curriculum.dropout": DECAY,
    "curriculum.max_skipped": COUNT,
    "curriculum.guidance.target": NOT_NEGATIVE,
    "curriculum.guidance.forcing": SHARE,
    "curriculum.guidance.forcing_updates": NOT_NEGATIVE,
    "curriculum.guidance.distillation": NOT_NEGATIVE,
    "curriculum.guidance.explanation": NOT_NEGATIVE,
    "curriculum.guidance.jacobi": NOT_NEGATIVE,
    "ppo.iterations": COUNT,
    "ppo.questions": COUNT,
    "ppo.num_trajectories": COUNT,
    "ppo.epochs": COUNT,
    "ppo.minibatches": COUNT,
    "ppo.micro_batches": COUNT,
    "ppo.mixture": SHARE,
    "ppo.clip": POSITIVE,
    "ppo.value_clip": NOT_NEGATIVE,
    "ppo.dual_clip": NOT_NEGATIVE,
    "ppo.discount": SHARE,
    "ppo.trace": SHARE,
    "ppo.value_coefficient": NOT_NEGATIVE,
    "ppo.entropy_coefficient": NOT_NEGATIVE,
    "ppo.token_entropy_coefficient": NOT_NEGATIVE,
    "ppo.kl_coefficient": NOT_NEGATIVE,
    "ppo.kl_target": NOT_NEGATIVE,
    "ppo.early_stop_kl": NOT_NEGATIVE,
    "ppo.noise": NOT_NEGATIVE,
    "ppo.stop_temperature": POSITIVE,
    "ppo.token_temperature": POSITIVE,
    "ppo.min_steps": NOT_NEGATIVE,
    "ppo.max_steps": NOT_NEGATIVE,
    "ppo.answer_length": NOT_NEGATIVE,
    "ppo.target_steps": NOT_NEGATIVE,
    "ppo.target_trajectories": NOT_NEGATIVE,
    "ppo.target_iterations": NOT_NEGATIVE,
    "ppo.memory_slots": NOT_NEGATIVE,
    "ppo.memory_writes": COUNT,
    "ppo.rewards.correct": FREE,
    "ppo.rewards.wrong": FREE,
    "ppo.rewards.no_thought": FREE,
    "ppo.rewards.on_target": FREE,
    "ppo.rewards.near_target": FREE,
    "ppo.rewards.target_thoughts": NOT_NEGATIVE,
    "ppo.rewards.excess_thought": FREE,
    "ppo.rewards.excess_above": NOT_NEGATIVE,
    "ppo.rewards.natural_stop": FREE,
    "ppo.rewards.natural_stop_range": NOT_NEGATIVE,
    "ppo.rewards.thought_cost": NOT_NEGATIVE,
    "ppo.rewards.missing_end": FREE,
    "ppo.rewards.success_per_thought": FREE,
    "ppo.rewards.success_per_trajectory": FREE,
    "ppo.rewards.trajectory_cost": NOT_NEGATIVE,
    "ppo.rewards.vote_correct": FREE,
    "ppo.rewards.diversity": FREE,
    "ppo.max_skipped": COUNT,
    "evaluation.every": NOT_NEGATIVE,
    "evaluation.every_iterations": NOT_NEGATIVE,
    "evaluation.questions": COUNT,
    "evaluation.batch_size": COUNT,
    "checkpoint.every": COUNT,
    "checkpoint.keep_last": COUNT,
    "checkpoint.keep_best": NOT_NEGATIVE,
    "mesh.data": COUNT,
    "mesh.fsdp": COUNT,
    "mesh.tensor": COUNT,
} | {
    f"{stage}.optimizer.{key}": bound for stage in ("curriculum", "ppo") for key, bound in _OPTIMIZER.items()
}

_NOT_EMPTY = ("stages", "data.operations", "curriculum.stages")


def check_bounds(run: "RunConfig") -> None:
    """Raises a UserError for the first setting that is out of its bounds."""
    for key, value in settings_of(run):
        if key in _NOT_EMPTY and not value:
            raise UserError(f"config.{key} is empty: it must name at least one.")
        bound = BOUNDS.get(key)
        if bound is None:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number not in bound for number in numbers):
            what = "each must be" if isinstance(value, tuple) else "it must be"
            raise UserError(f"config.{key} is {value}: {what} {bound}.")
    if len(set(run.stages)) < len(run.stages):
        raise UserError(f"config.stages {run.stages} names a stage twice: each can run once.")


def settings_of(group: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting below a group by its dotted key."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{place}{field.name}.")
        else:
            yield f"{place}{field.name}", value
