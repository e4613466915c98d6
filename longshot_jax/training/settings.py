"""The settings of training: optimizer, curriculum and PPO, each with its meaning and unit."""

from dataclasses import dataclass, field
from typing import Literal

from longshot_jax.thoughts.coupling import Coupling
from longshot_jax.training.annealing import Annealing
from longshot_jax.training.rewards import RewardWeights

Trainable = Literal["all", "navigator", "lora"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with its own rates for backbone and navigator.

    Attributes:
      learning_rate: of the Llama, or of its adapters; navigator_learning_rate: of the navigator.
      schedule: after the warm-up; `cosine` and `linear` end at `final_learning_rate` with the stage's last step.
      warmup_steps: linear; the first update has one of so many parts of the rate.
      final_learning_rate: as a fraction of the peak.
      weight_decay, navigator_weight_decay: decoupled; norms and biases have none.
      b1, b2: decay of the moments.
      moments: how they are stored: both in float32 (8 bytes a weight); the first in `bfloat16` (6); or `factored`: the
        second as one number for each row and column of a matrix (Adafactor, arXiv:1804.04235), the first in bfloat16
        (2), with Adafactor's decay in place of b2.
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
    moments: Literal["float32", "bfloat16", "factored"] = "float32"
    clip_norm: float = 1.0


@dataclass(frozen=True)
class GuidanceConfig:
    """What guides a curriculum's thoughts beside the loss on the tokens after them (`training.guidance`); default: nothing.

    Attributes:
      target: weight of the cosine distance of each thought to the mean embedding of the step that it replaces.
      forcing: probability of feeding back that embedding in place of a thought, at the first update of the
        curriculum and from `forcing_updates` on; linear between.
      distillation: weight of the distance of the hidden state before the answer to that after the written steps.
      explanation: weight of the loss of reading each step from its thought alone, in nats per token.
      jacobi: iterations in which all thoughts of the curriculum are made at once; 0 makes them one after the other.
        Evaluation and PPO think in sequence.
    """

    target: float = 0.0
    forcing: tuple[float, float] = (0.0, 0.0)
    forcing_updates: int = 0
    distillation: float = 0.0
    explanation: float = 0.0
    jacobi: int = 0

    @property
    def reads_steps(self) -> bool:
        """Whether the texts of replaced steps are needed."""
        return self.target > 0 or self.explanation > 0 or any(self.forcing)


@dataclass(frozen=True)
class CurriculumConfig:
    """Supervised curriculum; the names are COCONUT's (arXiv:2412.06769) where it has them.

    Attributes:
      mode: `coconut`; `cot`: text steps; `no_cot`: the answer directly; `no_thoughts`: the same curriculum with
        nothing in place of the steps; `pause`: with a learned constant in each thought slot.
      trainable: `all` weights, or, with the Llama frozen, the `navigator` alone or the navigator and low-rank
        adapters of the Llama (`lora`, see `model.lora`).
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
      dropout: share of a fed-back thought's entries that are zeroed; in the curriculum alone, because PPO scores what
        it sampled.
      max_skipped: updates in a row skipped for non-finite gradients before the run ends.
      guidance: of thoughts, see there.
      optimizer: see there; a schedule spans one stage.
    """

    mode: Literal["coconut", "cot", "no_cot", "no_thoughts", "pause"] = "coconut"
    trainable: Trainable = "all"
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
    dropout: float = 0.0
    max_skipped: int = 10
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class PPOConfig:
    """Reinforcement learning of thoughts, stops and answers (PPO, arXiv:1707.06347).

    Attributes:
      iterations: rollouts, each followed by one update.
      questions: B, questions per rollout; num_trajectories: N, trajectories of each.
      trainable: as in the curriculum. Adapters that an earlier stage trained stay part of the Llama.
      gradient: through thoughts: `score`, `pathwise`, their `mixture`, or `none`.
      mixture: λ of `mixture`: λ · `score` + (1 - λ) · `pathwise` for every thought.
      rescore: `auto` takes the parallel pass wherever it is exact, else the sequential one; `parallel_inexact`
        insists on the parallel one with `navigator_residual`, whose recorded thoughts it treats as constants.
      log_prob_scaling: of a thought's log-prob over its dimensions.
      epochs: passes over a rollout; minibatches: per epoch, they divide the questions.
      micro_batches: forward passes per minibatch, for gradient accumulation.
      clip, value_clip: half-widths of the trusted ranges (of the ratio; of the value, in units of reward, 0 for none).
      dual_clip: bound on the loss of an action with negative advantage, in multiples of that advantage (above 1;
        arXiv:1912.09729); 0 for none.
      baseline: `critic` (GAE), `leave_one_out`, or `group` (mean and standard deviation of the question's own).
      whiten: shift and scale advantages over the whole batch.
      loss_mean: of the policy's terms. `token`: over all actions of the minibatch. `sequence`: over the actions of
        each trajectory, then over trajectories.
      discount, trace: γ and λ of GAE, per position.
      value_coefficient: weight of the critic's loss.
      entropy_coefficient, token_entropy_coefficient: weights of the entropy of stop decisions and of answer tokens.
      kl_coefficient: weight of the KL to the reference, which is the policy at the start of PPO: a copy of what is
        trained, be it all weights or few; what is frozen is shared. 0 keeps no reference.
      kl_in: `loss`, differentiated; or `reward`, charged where each action was taken (arXiv:1909.08593).
      kl_target: if positive, the coefficient adapts to hold this KL per action, in nats.
      kl_estimator: for tokens and stops, and in the reward for thoughts too. In the reward `k1` has the exact
        gradient, in the loss `k2`.
      early_stop_kl: if positive, an update ends early, before the minibatch in which the policy has moved further
        than this from the one that sampled: approximate KL per action, in nats (others call it target_kl).
      noise: σ at the start and the end, relative to the rms of noise-free thoughts; 0 is deterministic.
      stop_temperature, token_temperature: at the start and the end; they divide logits.
      noise_annealing, stop_annealing, token_annealing: the way between, over the iterations.
      min_steps, max_steps: bounds on the number of thoughts; equal bounds force it.
      answer_length: A, most tokens of a sampled answer with its end; 0 takes `data.answer_length`, which must also
        hold the text steps of a curriculum.
      target_steps: while forced, each trajectory's number of thoughts is drawn from these.
      target_trajectories: while forced, each question's number of trajectories, where `thoughts.max_trajectories`
        makes it a choice.
      target_iterations: iterations with forced numbers, at the start.
      coupling: of the noise of a question's trajectories (`thoughts.coupling`).
      shared_reward: every trajectory earns the mean over its question's trajectories, at its end. The whole gradient
        where trajectories read one another, think together, or are fused; noisier where they do not.
      together: trajectories are fed their mean thought and stop by majority.
      memory_slots: M, entries of the memory bank; memory_writes: positions written per iteration.
      rewards: see there.
      max_skipped: updates in a row skipped for non-finite gradients before the run ends.
      optimizer: see there; a schedule spans the whole of PPO, in updates.
    """

    iterations: int = 100
    questions: int = 32
    num_trajectories: int = 8
    trainable: Trainable = "all"
    gradient: Literal["score", "pathwise", "mixture", "none"] = "score"
    mixture: float = 0.5
    rescore: Literal["auto", "parallel_inexact"] = "auto"
    log_prob_scaling: Literal["summed", "averaged", "scaled"] = "summed"
    epochs: int = 2
    minibatches: int = 2
    micro_batches: int = 1
    clip: float = 0.2
    value_clip: float = 0.2
    dual_clip: float = 0.0
    baseline: Literal["critic", "leave_one_out", "group"] = "critic"
    whiten: bool = True
    loss_mean: Literal["token", "sequence"] = "token"
    discount: float = 1.0
    trace: float = 0.95
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.01
    token_entropy_coefficient: float = 0.0
    kl_coefficient: float = 0.02
    kl_in: Literal["loss", "reward"] = "loss"
    kl_target: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    early_stop_kl: float = 0.0
    noise: tuple[float, float] = (0.2, 0.2)
    stop_temperature: tuple[float, float] = (1.0, 1.0)
    token_temperature: tuple[float, float] = (1.0, 1.0)
    noise_annealing: Annealing = "linear"
    stop_annealing: Annealing = "linear"
    token_annealing: Annealing = "linear"
    min_steps: int = 0
    max_steps: int = 6
    answer_length: int = 0
    target_steps: tuple[int, ...] = ()
    target_trajectories: tuple[int, ...] = ()
    target_iterations: int = 0
    coupling: Coupling = "independent"
    shared_reward: bool = False
    together: bool = False
    memory_slots: int = 0
    memory_writes: int = 8
    rewards: RewardWeights = field(default_factory=RewardWeights)
    max_skipped: int = 10
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def keeps_reference(self) -> bool:
        """Whether the policy at the start of PPO is kept, to measure the KL to it."""
        return self.kl_coefficient > 0
