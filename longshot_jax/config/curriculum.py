"""Settings of the supervised phases: text, and the curriculum of thoughts."""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

from longshot_jax.config.bounds import AT_LEAST_HALF, BELOW_ONE, COUNT, FRACTION, NON_NEGATIVE, POSITIVE
from longshot_jax.config.optimizer import OptimizerConfig

Mode = Literal["coconut", "cot", "no_cot", "no_thoughts", "pause"]
Trainable = Literal["all", "navigator", "lora"]


def has_thoughts(mode: Mode) -> bool:
    """Whether a model of this mode has thought slots."""
    return mode in ("coconut", "pause")


@dataclass(frozen=True)
class GuidanceConfig:
    """Additional losses on thoughts; all are off by default."""

    target: Annotated[float, NON_NEGATIVE] = 0.0
    """Weight of the cosine distance between a thought and the mean embedding of the step it replaces."""
    forcing: Annotated[tuple[float, float], FRACTION] = (0.0, 0.0)
    """Probability of feeding back that embedding instead: at the first update, and from `forcing_updates` on."""
    forcing_updates: Annotated[int, NON_NEGATIVE] = 0
    """Updates over which `forcing` moves linearly from its first to its second value."""
    distillation: Annotated[float, NON_NEGATIVE] = 0.0
    """Weight of the distance between hidden states before the answer, after thoughts and after written steps (CODI)."""
    explanation: Annotated[float, NON_NEGATIVE] = 0.0
    """Weight of the loss of decoding each step from its thought alone, in nats per token (SIM-CoT)."""
    stop: Annotated[float, NON_NEGATIVE] = 0.0
    """Weight of the loss of the stop head: to go on before a problem's last thought and to stop after it, in nats per
    decision. PPO teaches the head without labels."""
    jacobi: Annotated[int, NON_NEGATIVE] = 0
    """Jacobi iterations that compute all thoughts at once (PCCoT); 0: in sequence, as always in evaluation and PPO."""

    @property
    def reads_steps(self) -> bool:
        """Whether any loss reads the texts of the replaced steps."""
        return self.target > 0 or self.explanation > 0 or any(self.forcing)


@dataclass(frozen=True)
class VariationalConfig:
    """Thoughts sampled in training from a posterior that sees the answer, trained by a variational bound (GRAM)."""

    kl: Annotated[float, NON_NEGATIVE] = 0.0
    """Weight of KL(posterior ‖ prior) of all thoughts beside the loss of the tokens, both in nats; 1 is the evidence
    bound. 0: no noise in the curriculum."""
    std: Annotated[float, POSITIVE] = 0.2
    """Standard deviation of the prior before its learned factor, relative to the rms of noise-free thoughts. PPO starts
    from the same prior if `ppo.thought_std` is the same number."""
    balance: Annotated[float, AT_LEAST_HALF] = 0.5
    """Share of the KL's gradient that moves the prior, the rest moves the posterior; 0.5 is the KL as it is. The mean that
    both share moves by the difference of the two shares."""


@dataclass(frozen=True)
class CurriculumConfig:
    """Supervised curriculum; names are COCONUT's (arXiv:2412.06769) where it has them."""

    mode: Mode = "coconut"
    """Steps are replaced by thoughts (`coconut`), a learned constant (`pause`) or nothing (`no_thoughts`). `cot` keeps
    all steps, `no_cot` removes all."""
    trainable: Trainable = "all"
    """Parameters to train: `all`, only the `navigator`, or navigator and adapters (`lora`)."""
    stages: Annotated[tuple[int, ...], NON_NEGATIVE] = (0, 1, 2, 3, 4)
    """Stages in order. Stage k replaces the first k steps; a stage above `max_latent_stage` replaces all steps."""
    c_thought: Annotated[int, NON_NEGATIVE] = 1
    """Thoughts per replaced step; 0: as many as the step has tokens."""
    thought_slots: Annotated[int, NON_NEGATIVE] = 0
    """Largest number of thoughts of a problem, or of each of its threads, where `c_thought` is 0; steps that do not fit whole
    stay written."""
    max_latent_stage: Annotated[int, NON_NEGATIVE] = 4
    """Largest stage that replaces steps one by one."""
    pad_latent_to_max: bool = False
    """Give every problem the stage's number of thoughts, also with fewer steps."""
    uniform_prob: Annotated[float, FRACTION] = 0.0
    """Probability that a problem is shown at a random stage."""
    epochs_per_stage: Annotated[int, COUNT] = 1
    """Passes over the data before the next stage."""
    max_steps_per_stage: Annotated[int, NON_NEGATIVE] = 0
    """Largest number of updates of a stage, which `epochs_per_stage` or `stage_loss` may end before; 0 is unlimited."""
    stage_loss: Annotated[float, NON_NEGATIVE] = 0.0
    """End a stage once its running loss is below this, in nats per token; 0: never."""
    last_stage_loss: Annotated[float, NON_NEGATIVE] = 0.0
    """`stage_loss` of the last stage."""
    reset_optimizer: bool = False
    """Reset the optimizer's moments at each stage."""
    batch_size: Annotated[int, COUNT] = 128
    """Problems per update."""
    micro_batch_size: Annotated[int, NON_NEGATIVE] = 0
    """Problems per forward pass; 0: the whole batch."""
    dropout: Annotated[float, BELOW_ONE] = 0.0
    """Fraction of a thought's entries that are zeroed when it is fed back; PPO has no dropout."""
    max_skipped: Annotated[int, COUNT] = 10
    """Consecutive updates with a non-finite loss or gradient after which the run ends."""
    question_hidden: Annotated[float, FRACTION] = 0.0
    """Share, at the first update, of the problems without remaining steps that hide the question from the answer."""
    question_hidden_updates: Annotated[int, NON_NEGATIVE] = 0
    """Updates over which `question_hidden` falls linearly to 0; 0: it stays."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    variational: VariationalConfig = field(default_factory=VariationalConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def max_thoughts(self) -> int:
        """T: thought slots of all stages."""
        if not has_thoughts(self.mode):
            return 0
        return self.c_thought * self.max_latent_stage if self.c_thought else self.thought_slots

    @property
    def always_replaced(self) -> int:
        """The number of leading steps, as far as they fit, that every stage replaces by thoughts: they are never written."""
        if self.mode == "cot" or self.uniform_prob or self.guidance.distillation:
            return 0
        first = min(self.stages)
        return sys.maxsize if first > self.max_latent_stage else first


@dataclass(frozen=True)
class TextConfig:
    """The phase `text`: all steps and the answer written, as in stage 0 of the curriculum."""

    trainable: Trainable = "all"
    """Parameters to train: `all`, or adapters (`lora`)."""
    epochs: Annotated[int, COUNT] = 1
    """Passes over the data."""
    max_steps: Annotated[int, NON_NEGATIVE] = 0
    """Largest number of updates; 0 is unlimited."""
    final_loss: Annotated[float, NON_NEGATIVE] = 0.0
    """End the phase once its running loss is below this, in nats per token; 0: never."""
    batch_size: Annotated[int, COUNT] = 128
    """Problems per update."""
    micro_batch_size: Annotated[int, NON_NEGATIVE] = 0
    """Problems per forward pass; 0: the whole batch."""
    max_skipped: Annotated[int, COUNT] = 10
    """Consecutive updates with a non-finite loss or gradient after which the run ends."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def as_curriculum(self) -> CurriculumConfig:
        """The curriculum that this phase is."""
        return CurriculumConfig(
            mode="cot",
            trainable=self.trainable,
            stages=(0,),
            max_latent_stage=0,
            epochs_per_stage=self.epochs,
            max_steps_per_stage=self.max_steps,
            last_stage_loss=self.final_loss,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            max_skipped=self.max_skipped,
            optimizer=self.optimizer,
        )
