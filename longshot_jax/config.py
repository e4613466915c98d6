"""Every setting of a run, with its meaning and unit: the schema that config files fill in.

A file in `configs/` starts from `default_config()`, an `ml_collections.ConfigDict` of all the settings below, and
changes what it needs; `parse_config` turns the result (with the command line's overrides) into these dataclasses,
or says in one sentence what is wrong.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import ml_collections

from longshot_jax.config_values import as_values, build
from longshot_jax.errors import UserError
from longshot_jax.thoughts.navigator import NavigatorConfig
from longshot_jax.training.rewards import RewardWeights


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
        trained: small updates would be rounded away.
      remat: recompute layers in the backward pass: less memory, one third more arithmetic.
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
    weight_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclass(frozen=True)
class DataConfig:
    """Which problems, and how long they may be.

    Attributes:
      train: a file, a hub name (`name:config:split`), or generated problems: `chains` or `prosqa`.
      test: the same; where it is `chains` or `prosqa`, held-out problems are generated.
      tokenizer: `chains` (one token a character), `bpe` (a byte-level BPE trained on the training problems), a
        folder, a hub name, or `model`: the tokenizer in the model's directory.
      bpe_vocabulary: tokens of `bpe`.
      operations: numbers of operations of generated chains, drawn uniformly.
      distractors: statements in generated chains that the question does not depend on.
      generated_train, generated_test: numbers of generated problems.
      prompt_length: most tokens of a question with its markers; a longer one is an error.
      length_bucket: prompts, and in the curriculum what follows the thoughts, are padded to the next multiple of
        this for each batch, one compilation for each shape; 0 pads all to `prompt_length` and `answer_length`.
      answer_length: tokens of remaining steps and answer in the curriculum, and of a decoded answer.
    """

    train: str = "chains"
    test: str = "chains"
    tokenizer: str = "chains"
    bpe_vocabulary: int = 2048
    operations: tuple[int, ...] = (1, 2, 3, 4)
    distractors: int = 0
    generated_train: int = 1_000_000
    generated_test: int = 1_000
    prompt_length: int = 26
    length_bucket: int = 0
    answer_length: int = 8


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with its own rates for backbone and navigator.

    Attributes:
      learning_rate: of the Llama; navigator_learning_rate: of the navigator.
      schedule: after the warm-up; `cosine` and `linear` end at `final_learning_rate` with the stage's last step.
      warmup_steps: linear, from 0.
      final_learning_rate: as a fraction of the peak.
      weight_decay, navigator_weight_decay: decoupled; norms and biases have none.
      b1, b2: decay of the moments.
      clip_norm: bound on the global norm of the gradient.
    """

    learning_rate: float = 1e-4
    navigator_learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    final_learning_rate: float = 0.1
    weight_decay: float = 0.01
    navigator_weight_decay: float = 0.001
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0


@dataclass(frozen=True)
class CurriculumConfig:
    """Supervised curriculum; the names are COCONUT's (arXiv:2412.06769) where it has them.

    Attributes:
      mode: `coconut`; `cot`: text steps; `no_cot`: the answer directly; `no_thoughts`: the same curriculum with
        nothing in place of the steps; `pause`: with a learned constant in each thought slot.
      stages: which stages run, in order; stage k replaces the first k steps by thoughts, a stage above
        `max_latent_stage` replaces all.
      c_thought: thoughts per step.
      max_latent_stage: most steps that are replaced one by one.
      pad_latent_to_max: a problem with fewer steps than the stage still gets the stage's number of thoughts.
      uniform_prob: probability that a problem is shown at a random other stage.
      epochs_per_stage: passes over the data before the next stage; `max_steps_per_stage` ends it earlier.
      max_steps_per_stage: updates, 0 for no such bound.
      stage_loss: a stage also ends when its running loss falls below this, in nats per token; 0 never.
      last_stage_loss: the same for the last stage.
      reset_optimizer: fresh moments at each stage.
      batch_size: problems per update; micro_batch_size: problems per forward pass, 0 for all at once.
      max_skipped: updates in a row skipped for non-finite gradients before the run ends.
      optimizer: see there; a schedule spans one stage.
    """

    mode: Literal["coconut", "cot", "no_cot", "no_thoughts", "pause"] = "coconut"
    stages: tuple[int, ...] = (0, 1, 2, 3, 4)
    c_thought: int = 1
    max_latent_stage: int = 4
    pad_latent_to_max: bool = False
    uniform_prob: float = 0.0
    epochs_per_stage: int = 1
    max_steps_per_stage: int = 0
    stage_loss: float = 0.0
    last_stage_loss: float = 0.0
    reset_optimizer: bool = False
    batch_size: int = 128
    micro_batch_size: int = 0
    max_skipped: int = 10
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class PPOConfig:
    """Reinforcement learning of thoughts, stops and answers (PPO, arXiv:1707.06347).

    Attributes:
      iterations: rollouts, each followed by one update.
      questions: B, questions per rollout; num_trajectories: N, trajectories of each.
      trainable: `all` weights, or the `navigator` alone with the backbone frozen.
      gradient: through thoughts: `score`, `pathwise` or `none`.
      rescore: `auto` takes the parallel pass wherever it is exact, else the sequential one; `parallel_inexact`
        insists on the parallel one with `navigator_residual`, whose recorded thoughts it treats as constants.
      log_prob_scaling: of a thought's log-prob over its dimensions.
      epochs: passes over a rollout; minibatches: per epoch, they divide the questions.
      micro_batches: forward passes per minibatch, for gradient accumulation.
      clip, value_clip: half-widths of the trusted ranges (of the ratio; of the value, in units of reward).
      baseline: `critic` (GAE), `leave_one_out`, or `group` (mean and standard deviation of the question's own).
      whiten: shift and scale advantages over the whole batch.
      discount, trace: γ and λ of GAE, per position.
      value_coefficient, entropy_coefficient: weights of the critic's loss and of the stop head's entropy.
      kl_coefficient: weight of the KL to the policy at the start of PPO; 0 keeps no reference.
      kl_target: if positive, the coefficient adapts to hold this KL per action, in nats.
      kl_estimator: for tokens and stops.
      noise: σ at the start and the end, relative to the rms of noise-free thoughts; 0 is deterministic.
      stop_temperature, token_temperature: at the start and the end; all three anneal linearly.
      min_steps, max_steps: bounds on the number of thoughts; equal bounds force it.
      target_steps: while forced, each trajectory's number of thoughts is drawn from these.
      target_iterations: iterations with forced numbers of thoughts, at the start.
      together: trajectories are fed their mean thought and stop by majority.
      memory_slots: M, entries of the memory bank; memory_writes: positions written per iteration.
      rewards: see there.
      max_skipped: updates in a row skipped for non-finite gradients before the run ends.
      optimizer: see there; a schedule spans the whole of PPO, in updates.
    """

    iterations: int = 100
    questions: int = 32
    num_trajectories: int = 8
    trainable: Literal["all", "navigator"] = "all"
    gradient: Literal["score", "pathwise", "none"] = "score"
    rescore: Literal["auto", "parallel_inexact"] = "auto"
    log_prob_scaling: Literal["summed", "averaged", "scaled"] = "summed"
    epochs: int = 2
    minibatches: int = 2
    micro_batches: int = 1
    clip: float = 0.2
    value_clip: float = 0.2
    baseline: Literal["critic", "leave_one_out", "group"] = "critic"
    whiten: bool = True
    discount: float = 1.0
    trace: float = 0.95
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.01
    kl_coefficient: float = 0.02
    kl_target: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    noise: tuple[float, float] = (0.2, 0.2)
    stop_temperature: tuple[float, float] = (1.0, 1.0)
    token_temperature: tuple[float, float] = (1.0, 1.0)
    min_steps: int = 0
    max_steps: int = 6
    target_steps: tuple[int, ...] = ()
    target_iterations: int = 0
    together: bool = False
    memory_slots: int = 0
    memory_writes: int = 8
    rewards: RewardWeights = field(default_factory=RewardWeights)
    max_skipped: int = 10
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class EvaluationConfig:
    """Measurements while training and at the end of each stage.

    Attributes:
      every: updates of the curriculum between short evaluations; 0 only at the end of each stage.
      every_iterations: the same for PPO, in iterations; 0 only at its end.
      questions: held-out questions of a short evaluation.
      batch_size: questions decoded at once.
      num_trajectories: N of the sampled accuracy and of the vote.
    """

    every: int = 100
    every_iterations: int = 20
    questions: int = 256
    batch_size: int = 128
    num_trajectories: int = 5


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
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    run = build(RunConfig, values, "config")
    _check(run)
    return run


def _check(run: RunConfig) -> None:
    """Combinations that cannot work, each refused with the ways out."""
    for stage in run.stages:
        if stage not in ("curriculum", "ppo"):
            raise UserError(f"config.stages holds {stage!r}: it may hold 'curriculum' and 'ppo'.")
    ppo, curriculum, data = run.ppo, run.curriculum, run.data
    trains_backbone = "curriculum" in run.stages or ("ppo" in run.stages and ppo.trainable == "all")
    if run.model.weight_dtype != "float32" and trains_backbone:
        raise UserError(
            "config.model.weight_dtype 'bfloat16' would round away the updates of a backbone that is trained: take "
            "'float32', or leave 'curriculum' out of config.stages and set config.ppo.trainable to 'navigator'."
        )
    if data.length_bucket and data.prompt_length % data.length_bucket:
        raise UserError(
            f"config.data.prompt_length {data.prompt_length} is not a multiple of config.data.length_bucket "
            f"{data.length_bucket}."
        )
    if curriculum.micro_batch_size and curriculum.batch_size % curriculum.micro_batch_size:
        raise UserError(
            f"config.curriculum.batch_size {curriculum.batch_size} is not a multiple of "
            f"config.curriculum.micro_batch_size {curriculum.micro_batch_size}."
        )
    if ppo.questions % (ppo.minibatches * ppo.micro_batches):
        raise UserError(
            f"config.ppo.questions {ppo.questions} is not a multiple of minibatches x micro_batches "
            f"({ppo.minibatches} x {ppo.micro_batches})."
        )
    if not 0 <= ppo.min_steps <= ppo.max_steps:
        raise UserError(
            f"config.ppo.min_steps {ppo.min_steps} must lie between 0 and max_steps {ppo.max_steps}."
        )
    if ppo.target_iterations and not ppo.target_steps:
        raise UserError(
            "config.ppo.target_iterations needs config.ppo.target_steps: the numbers to draw from."
        )
    if any(not 0 <= steps <= ppo.max_steps for steps in ppo.target_steps):
        raise UserError(
            f"config.ppo.target_steps {ppo.target_steps} must lie between 0 and max_steps {ppo.max_steps}."
        )
    if ppo.baseline != "critic" and ppo.num_trajectories < 2:
        raise UserError(
            f"config.ppo.baseline {ppo.baseline!r} compares trajectories of one question: set num_trajectories to 2 "
            "or more, or take the critic."
        )
    if ppo.baseline != "critic" and ppo.together:
        raise UserError(
            f"config.ppo.baseline {ppo.baseline!r} needs independent trajectories, and config.ppo.together joins "
            "them: take the critic, or leave them apart."
        )
    if ppo.gradient == "score" and ppo.noise[1] <= 0 and ppo.noise[0] <= 0:
        raise UserError(
            "config.ppo.gradient 'score' needs noise: thoughts without it have no log-prob. Set config.ppo.noise "
            "above 0, or take 'pathwise' or 'none'."
        )
    if run.thoughts.memory_top and not ppo.memory_slots:
        raise UserError(
            "config.thoughts.memory_top reads a memory bank: set config.ppo.memory_slots above 0."
        )
    if ppo.memory_slots and not run.thoughts.memory_top:
        raise UserError(
            "config.ppo.memory_slots fills a bank nobody reads: set config.thoughts.memory_top above 0."
        )
    if run.thoughts.memory_top > ppo.memory_slots:
        raise UserError(
            f"config.thoughts.memory_top {run.thoughts.memory_top} is more than config.ppo.memory_slots {ppo.memory_slots}."
        )
    inexact = run.thoughts.feedback == "navigator_residual" and ppo.gradient == "none"
    if inexact and ppo.trainable == "all" and ppo.rescore == "auto":
        raise UserError(
            "config.thoughts.feedback 'navigator_residual' with gradient 'none' has no exact rescore while the "
            "backbone is trained: take gradient 'score' or 'pathwise' (sequential, exact), ppo.trainable "
            "'navigator', or ppo.rescore 'parallel_inexact'."
        )
