"""Every setting of a run, with its meaning and unit: the schema that config files fill in.

A file in `configs/` starts from `default_config()`, an `ml_collections.ConfigDict` of all the settings below, and
changes what it needs; `parse_config` turns the result (with the command line's overrides) into these dataclasses,
or says in one sentence what is wrong.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import ml_collections

from longshot_jax.config_bounds import check_bounds
from longshot_jax.config_checks import check_combinations
from longshot_jax.config_values import as_values, build
from longshot_jax.model.lora import LoraConfig
from longshot_jax.thoughts.navigator import NavigatorConfig
from longshot_jax.training.settings import CurriculumConfig, PPOConfig


@dataclass(frozen=True)
class ModelConfig:
    """Which Llama.

    Attributes:
      source: a Hugging Face directory, a hub name, or `scratch`: random weights of the shape below.
      hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads: shape of a
        Llama from scratch (`num_key_value_heads` 0 means as many as heads); ignored for loaded weights.
      rope_theta: from scratch, base of the rotary frequencies.
      tie_word_embeddings: from scratch, whether the output head is the embedding table.
      compute_dtype: of activations.
      weight_dtype: of the Llama's stored weights. `bfloat16` halves their memory and is for a backbone that is not
        trained: small updates would be rounded away. `int8` halves it again: the layers' matrices in 8 bits, the rest in
        bfloat16.
      remat: recompute layers in the backward pass: less memory, one third more arithmetic.
      remat_keeps: with `remat`, what is kept nevertheless: `nothing`, or the `products` of activations and weights, so
        that only what is cheap is computed again.
      attention: `plain`: this project's; `cudnn`: the fused kernel of NVIDIA GPUs, in bfloat16; `xla`: the same call
        without the kernel, its twin on any device.
      lora: adapters, where a stage's `trainable` is `lora`.
    """

    source: str = "scratch"
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 0
    rope_theta: float = 500_000.0
    tie_word_embeddings: bool = True
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    remat: bool = False
    remat_keeps: Literal["nothing", "products"] = "nothing"
    attention: Literal["plain", "xla", "cudnn"] = "plain"
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class DataConfig:
    """Which problems, and how long they may be.

    Attributes:
      train: a file, a hub name (`name:config:split`), or generated problems: `chains` or `prosqa`.
      validation: the same: what is measured while training and chooses the best checkpoint. Empty: other generated
        problems than those of `train` and `test`, or a tenth of the problems in `train`, at most 500,
        which are then not trained on.
      test: the same: what `scripts/eval.py` measures unless it is told otherwise; training never reads it.
      tokenizer: `chains` (one token a character), `bpe` (a byte-level BPE trained on the training problems), a
        folder, a hub name, or `model`: the tokenizer in the model's directory.
      bpe_vocabulary: tokens of `bpe`.
      operations: numbers of operations of generated chains, drawn uniformly.
      distractors: statements in generated chains that the question does not depend on.
      generated_train, generated_test: numbers of generated problems; the second is that of validation too.
      instruction: a line after every question, such as what an instruct model is asked to answer with.
      prompt_length: most tokens of a question with its markers; a longer one is an error.
      length_bucket: prompts, and in the curriculum what follows the thoughts, are padded to the next multiple of
        this for each batch, one compilation for each shape; 0 pads all to `prompt_length` and `answer_length`.
      answer_length: tokens of remaining steps and answer in the curriculum, and of a decoded answer.
    """

    train: str = "chains"
    validation: str = ""
    test: str = "chains"
    tokenizer: str = "chains"
    bpe_vocabulary: int = 2048
    operations: tuple[int, ...] = (1, 2, 3, 4)
    distractors: int = 0
    instruction: str = ""
    generated_train: int = 1_000_000
    generated_test: int = 1_000
    prompt_length: int = 26
    length_bucket: int = 0
    answer_length: int = 8


@dataclass(frozen=True)
class EvaluationConfig:
    """Measurements while training and at the end of each stage.

    Attributes:
      every: updates of the curriculum between short evaluations; 0 only at the end of each stage.
      every_iterations: the same for PPO, in iterations; 0 only at its start and end.
      questions: validation questions of a short evaluation.
      batch_size: questions decoded at once.
    """

    every: int = 100
    every_iterations: int = 20
    questions: int = 256
    batch_size: int = 128


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk.

    Attributes:
      every: updates (curriculum) or iterations (PPO) between checkpoints.
      keep_last, keep_best: how many of the newest and of the best are kept.
    """

    every: int = 200
    keep_last: int = 2
    keep_best: int = 1


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; their product is the number of devices used.

    Attributes:
      data: copies of the weights, each with its part of the batch.
      fsdp: parts of the weights, each with its part of the batch.
      tensor: parts of heads, feed-forward width and vocabulary.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      seed: of weights, data order and sampling.
      stages: `curriculum` and `ppo`, run one after the other in this order.
      initialize_from: a run folder whose best parameters this run starts from; empty to start from the model.
      markers: what stands around thoughts. `coconut`: `<|start-latent|>` before and `<|end-latent|>` after them.
        `answer`: nothing around them, `<|end-latent|>` between the last thought or step and the answer.
      thoughts: what a thought is.
    """

    seed: int = 0
    stages: tuple[str, ...] = ("curriculum", "ppo")
    initialize_from: str = ""
    markers: Literal["coconut", "answer"] = "coconut"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    thoughts: NavigatorConfig = field(default_factory=NavigatorConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def trainable(self, stage: str) -> str:
        """Which weights a stage trains: `all`, `navigator` or `lora`."""
        return {"curriculum": self.curriculum, "ppo": self.ppo}[stage].trainable

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters of the run's Llama; None where no stage trains any."""
        return self.model.lora if any(self.trainable(stage) == "lora" for stage in self.stages) else None

    @property
    def max_thoughts(self) -> int:
        """T: thought slots of every compiled function of the run."""
        curriculum = self.curriculum.c_thought * self.curriculum.max_latent_stage
        has_thoughts = "curriculum" in self.stages and self.curriculum.mode in ("coconut", "pause")
        bounds = [curriculum] if has_thoughts else []
        if "ppo" in self.stages:
            bounds.append(self.ppo.max_steps)
        return max(bounds, default=0)


def default_config() -> ml_collections.ConfigDict:
    """All settings at their defaults, as a `ConfigDict` that a config file edits and returns."""
    return ml_collections.ConfigDict(as_values(RunConfig()))


def parse_config(config: ml_collections.ConfigDict | dict[str, Any]) -> RunConfig:
    """The run's settings, checked: unknown keys, wrong types and impossible values are UserErrors naming the key."""
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else _without_retired(config)
    run = build(RunConfig, values, "config")
    check_bounds(run)
    check_combinations(run)
    return run


def _without_retired(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint without the one that nothing read, and that there is no more."""
    evaluation = stored.get("evaluation")
    if not isinstance(evaluation, dict):
        return stored
    return stored | {"evaluation": {k: v for k, v in evaluation.items() if k != "num_trajectories"}}
