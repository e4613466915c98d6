"""Settings of the PPO phase and its rewards."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from longshot_jax.config.bounds import COST, COUNT, FRACTION, NON_NEGATIVE, POSITIVE, REWARD
from longshot_jax.config.curriculum import Trainable
from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.config.thoughts import Coupling

Annealing = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the reward terms, in units of reward, added with their sign; 0: off."""

    correct: Annotated[float, REWARD] = 1.0
    """For a correct answer."""
    wrong: Annotated[float, REWARD] = 0.0
    """For a wrong answer."""
    no_thought: Annotated[float, REWARD] = 0.0
    """For an answer without thoughts."""
    on_target: Annotated[float, REWARD] = 0.0
    """For exactly `target_thoughts` thoughts."""
    near_target: Annotated[float, REWARD] = 0.0
    """For one thought more or fewer than `target_thoughts`."""
    target_thoughts: Annotated[int, NON_NEGATIVE] = 0
    """Number of thoughts for `on_target` and `near_target`."""
    excess_thought: Annotated[float, REWARD] = 0.0
    """For each thought above `excess_above`."""
    excess_above: Annotated[int, NON_NEGATIVE] = 0
    """Number of thoughts for `excess_thought`."""
    natural_stop: Annotated[float, REWARD] = 0.0
    """For a stop decided by the stop head within `natural_stop_range`."""
    natural_stop_range: Annotated[tuple[int, int], NON_NEGATIVE] = (0, 0)
    """Fewest and most thoughts for `natural_stop`, inclusive."""
    thought_cost: Annotated[float, COST] = 0.0
    """Cost of each thought, subtracted at the thought."""
    missing_end: Annotated[float, REWARD] = 0.0
    """For an answer without an end token."""
    success_per_thought: Annotated[float, REWARD] = 0.0
    """For each thought of a correct trajectory."""
    success_per_trajectory: Annotated[float, REWARD] = 0.0
    """For each trajectory of the question, if this one is correct."""
    trajectory_cost: Annotated[float, COST] = 0.0
    """Cost of each trajectory of the question, subtracted from every trajectory."""
    vote_correct: Annotated[float, REWARD] = 0.0
    """For every trajectory of a question whose majority answer is correct."""
    diversity: Annotated[float, REWARD] = 0.0
    """For the distance, 0 to 1, of the thoughts to the other trajectories of the question."""


@dataclass(frozen=True)
class PPOConfig:
    """Reinforcement learning of thoughts, stops and answers (PPO, arXiv:1707.06347)."""

    iterations: Annotated[int, COUNT] = 100
    """Rollouts, each followed by one update."""
    questions: Annotated[int, COUNT] = 32
    """B: questions per rollout."""
    num_trajectories: Annotated[int, COUNT] = 8
    """N: trajectories per question."""
    trainable: Trainable = "all"
    """As in `curriculum`; adapters of an earlier phase stay in the backbone."""
    gradient: Literal["score", "pathwise", "mixture", "none"] = "score"
    """Gradient of a thought: `score` (its log-prob), `pathwise` (reparameterized noise), their `mixture`, or `none`."""
    mixture: Annotated[float, FRACTION] = 0.5
    """Weight of `score` in the mixture; `pathwise` has the rest."""
    log_prob_scaling: Literal["summed", "averaged", "scaled"] = "summed"
    """Reduction of a thought's log-prob over its X dimensions, or sampled tokens: the sum, the sum / X, or the sum / sqrt(X).
    The KL of thoughts is reduced likewise, by sampled tokens exactly only with `summed`."""
    epochs: Annotated[int, COUNT] = 2
    """Passes over a rollout."""
    minibatches: Annotated[int, COUNT] = 2
    """Minibatches per epoch; must divide `questions`."""
    micro_batches: Annotated[int, COUNT] = 1
    """Forward passes per minibatch, for gradient accumulation."""
    clip: Annotated[float, POSITIVE] = 0.2
    """Clip the probability ratio to 1 - clip ... 1 + clip."""
    value_clip: Annotated[float, NON_NEGATIVE] = 0.2
    """Clip the change of the value in the critic's loss to this, in units of reward; 0: unlimited."""
    dual_clip: Annotated[float, NON_NEGATIVE] = 0.0
    """Largest loss of an action with negative advantage, in multiples (above 1) of it (arXiv:1912.09729); 0: none."""
    baseline: Literal["critic", "leave_one_out", "group"] = "critic"
    """`critic` (GAE), `leave_one_out` (mean reward of the question's other trajectories) or `group` (mean and standard
    deviation of the question's rewards)."""
    whiten: bool = True
    """Whiten advantages over the batch, to mean 0 and standard deviation 1."""
    loss_mean: Literal["token", "sequence"] = "token"
    """Mean of the policy loss over all actions (`token`), or per trajectory and then over trajectories (`sequence`)."""
    gamma: Annotated[float, FRACTION] = 1.0
    """Discount per position; 1 unless `baseline` is the critic."""
    gae_lambda: Annotated[float, FRACTION] = 0.95
    """Lambda of generalized advantage estimation, per position; for the advantages of `baseline` `critic` alone."""
    value_coefficient: Annotated[float, NON_NEGATIVE] = 0.5
    """Weight of the critic's loss."""
    entropy_coefficient: Annotated[float, NON_NEGATIVE] = 0.01
    """Weight of the entropy of stop decisions."""
    token_entropy_coefficient: Annotated[float, NON_NEGATIVE] = 0.0
    """Weight of the entropy of answer tokens, and of the distributions that `thoughts.noise = "tokens"` draws thoughts from."""
    kl_coefficient: Annotated[float, NON_NEGATIVE] = 0.02
    """Weight of the KL to the reference policy, a copy of the parameters at the start of PPO; 0: no copy."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add the KL to the loss, or subtract it from each action's reward (arXiv:1909.08593)."""
    kl_target: Annotated[float, NON_NEGATIVE] = 0.0
    """If positive, adapt the coefficient to this KL per action, in nats."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL. The gradient of `k2` is exact in the loss, that of `k1` in the reward."""
    early_stop_kl: Annotated[float, NON_NEGATIVE] = 0.0
    """Skip the rest of the update once a minibatch's approximate KL to the sampling policy exceeds this, in nats per
    action (`target_kl` elsewhere); 0: never."""
    thought_std: Annotated[tuple[float, float], NON_NEGATIVE] = (0.2, 0.2)
    """Standard deviation of thoughts at the first and last iteration, relative to the rms of noise-free thoughts."""
    stop_temperature: Annotated[tuple[float, float], POSITIVE] = (1.0, 1.0)
    """Temperature of stop logits at the first and last iteration."""
    token_temperature: Annotated[tuple[float, float], POSITIVE] = (1.0, 1.0)
    """Temperature of token logits at the first and last iteration."""
    thought_std_annealing: Annealing = "linear"
    """Schedule of `thought_std` between its two values."""
    stop_temperature_annealing: Annealing = "linear"
    """Schedule of `stop_temperature` between its two values."""
    token_temperature_annealing: Annealing = "linear"
    """Schedule of `token_temperature` between its two values."""
    min_thoughts: Annotated[int, NON_NEGATIVE] = 0
    """Thoughts before the first stop decision."""
    max_thoughts: Annotated[int, NON_NEGATIVE] = 6
    """T: largest number of thoughts; equal to `min_thoughts`, it forces the number."""
    answer_length: Annotated[int, NON_NEGATIVE] = 0
    """A: largest number of tokens of a sampled answer with its end token; 0: `data.answer_length`."""
    target_thoughts: Annotated[tuple[int, ...], NON_NEGATIVE] = ()
    """Draw each trajectory's number of thoughts from these during `target_iterations`."""
    target_trajectories: Annotated[tuple[int, ...], NON_NEGATIVE] = ()
    """Draw each question's number of trajectories from these during `target_iterations`."""
    target_iterations: Annotated[int, NON_NEGATIVE] = 0
    """First iterations, which force `target_thoughts` and `target_trajectories`."""
    coupling: Coupling = "independent"
    """Joint distribution of the noise of a question's trajectories, each of which is standard normal."""
    shared_reward: bool = False
    """Give every trajectory the mean reward of its question, at its end: the whole gradient if trajectories influence
    one another, a noisier one if not."""
    ensemble: bool = False
    """Feed back the mean thought of all trajectories, and stop them by majority."""
    memory_slots: Annotated[int, NON_NEGATIVE] = 0
    """M: entries of the memory bank."""
    memory_writes: Annotated[int, COUNT] = 8
    """Entries written per iteration."""
    max_skipped: Annotated[int, COUNT] = 10
    """Consecutive updates with a non-finite loss or gradient after which the run ends."""
    reward: tuple[str, ...] = ()
    """Reward functions of your own (`my_rewards:brevity`, docs/own.md), added to the terms of `rewards`."""
    reward_weights: Annotated[tuple[float, ...], REWARD] = ()
    """Weight of each function of `reward`; empty: 1 each."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def keeps_reference(self) -> bool:
        """Whether a copy of the parameters at the start of PPO is kept as the reference policy."""
        return self.kl_coefficient > 0

    @property
    def scores_thoughts(self) -> bool:
        """Whether the log-probs of thoughts enter the loss."""
        return self.gradient in ("score", "mixture")
