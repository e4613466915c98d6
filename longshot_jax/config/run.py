"""Settings of a run: phases, data, evaluation and checkpoints. Each other group has its own file."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from longshot_jax.config.bounds import COUNT, FRACTION, NON_NEGATIVE, SEED
from longshot_jax.config.curriculum import CurriculumConfig, TextConfig, Trainable
from longshot_jax.config.model import LoraConfig, MeshConfig, ModelConfig
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.config.thoughts import NavigatorConfig

Phase = Literal["text", "curriculum", "ppo"]
Markers = Literal["coconut", "answer"]
Logger = Literal["tensorboard", "wandb"]
# Settings that name files or folders, some of them also a hub's.
PATH_SETTINGS = (
    "initialize_from",
    "model.source",
    "data.train",
    "data.validation",
    "data.test",
    "data.grader",
    "data.tokenizer",
    "data.chat_template",
)


@dataclass(frozen=True)
class DataConfig:
    """Problems, tokenizer and lengths."""

    train: str = "chains"
    """Training problems: a file, a hub name (`name:config:split`), generated (`chains`, `threads`, `colouring`, `prosqa`,
    `stories`), a task of reasoning-gym (`reasoning_gym:chain_sum`), or code of your own (`my_task:problems`, docs/own.md)."""
    validation: str = ""
    """Problems that select the best checkpoint, as in `train`. Empty: other problems if `train` is generated, else a
    tenth of the questions of `train`, at most 500, which are removed from it with all their copies."""
    test: str = "chains"
    """Default problems of `scripts/eval.py`. Training reads them only to compare them with its own problems."""
    fields: tuple[str, ...] = ()
    """Fields of question and answer, or of question, answer and steps, of all JSON, CSV and Parquet files and hub data
    sets; empty: `question`, `answer`, `steps`, and the published forms."""
    grader: str = ""
    """Code of your own that grades an answer (`my_task:grade`, docs/own.md), in PPO and evaluations; empty: the rule of
    `data/grading.py`, and the task's own for reasoning-gym."""
    parameters: str = ""
    """Parameters of a task of reasoning-gym, as JSON: `{"max_terms": 3}`."""
    redraw: Annotated[float, FRACTION] = 0.0
    """Probability that a training problem gets new numbers when it is read, if its steps are equations with whole
    results whose numbers stand in its question; validation and test problems never do."""
    remove_overlap: bool = False
    """Leave out of training the problems of a file whose question is also in `validation` or `test`; without it a
    warning names their share."""
    tokenizer: str = "chains"
    """`chains`, `threads` or `colouring` (one token per character of these problems), `bpe` (byte-level BPE, trained on the problems), `model` (that of the model
    directory), a folder, or a hub name."""
    bpe_vocabulary: Annotated[int, COUNT] = 2048
    """Vocabulary size of `bpe`."""
    operations: Annotated[tuple[int, ...], COUNT] = (1, 2, 3, 4)
    """Numbers of operations of generated chains (1 to 9) and stories (1 to 4), in turn."""
    distractors: Annotated[int, NON_NEGATIVE] = 0
    """Irrelevant statements in each generated chain or story."""
    largest_number: Annotated[int, COUNT] = 999
    """Largest number, from 9, in a generated story. Small ones leave few different problems, which the splits divide:
    with 9 there are some 170 test problems of two operations apart from their words, 1,400 of three."""
    equations: bool = True
    """Steps of a generated story are equations; without it their results alone."""
    threads: Annotated[tuple[int, ...], COUNT] = (2,)
    """Numbers of independent chains of a generated `threads` problem, in turn."""
    interleaved: bool = False
    """Mix the statements of the chains of a `threads` problem."""
    crossings: Annotated[tuple[int, ...], COUNT] = ()
    """Operations of a `threads` problem, from 2, at which each chain adds the next chain's result of the operation before."""
    nodes: Annotated[tuple[int, ...], COUNT] = (8,)
    """Numbers of nodes (7 to 9) of a generated `colouring` problem's graph, in turn; it has half as many edges again."""
    steps_together: bool = False
    """Steps of a `threads` problem hold the values of all chains, for one trajectory that holds all in each thought;
    without it they follow one another, chain by chain."""
    generated_train: Annotated[int, COUNT] = 1_000_000
    """Generated training problems."""
    generated_test: Annotated[int, COUNT] = 1_000
    """Generated test problems; the same number for validation."""
    chat_template: str = "model"
    """Around questions to an instruct model: its own template (`model`), only the turns of it without a system prompt
    (`minimal`), none of it (`none`), or that of a file (Jinja)."""
    instruction: str = ""
    """A line after every question, such as the form of the answer for an instruct model."""
    prompt_length: Annotated[int, COUNT] = 26
    """S: largest number of tokens of a question with its markers; a longer question is an error."""
    length_bucket: Annotated[int, NON_NEGATIVE] = 0
    """Pad batches to a multiple of this, one compilation per shape; 0: to `prompt_length` and `answer_length`."""
    batch_shapes: Annotated[int, NON_NEGATIVE] = 0
    """Group the curriculum's problems by length into batches of at most this many shapes (prompt and answer), chosen
    from the problems' lengths, with one compilation each; 0: batches in random order, padded by `length_bucket`."""
    answer_length: Annotated[int, COUNT] = 8
    """A: largest number of tokens of written steps and answer in the curriculum, and of a decoded answer."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training and at the end of each phase."""

    every: Annotated[int, NON_NEGATIVE] = 100
    """Curriculum updates between evaluations; 0: only at the end of each stage."""
    every_iterations: Annotated[int, NON_NEGATIVE] = 20
    """PPO iterations between evaluations; 0: only at its start and end."""
    questions: Annotated[int, COUNT] = 256
    """Validation questions per evaluation."""
    batch_size: Annotated[int, COUNT] = 128
    """Questions decoded at once."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints on disk."""

    every: Annotated[int, COUNT] = 200
    """Updates (curriculum) or iterations (PPO) between checkpoints."""
    keep_last: Annotated[int, COUNT] = 2
    """Number of newest checkpoints to keep."""
    keep_best: Annotated[int, NON_NEGATIVE] = 1
    """Number of best checkpoints to keep in addition."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    seed: Annotated[int, SEED] = 0
    """Seed of parameters, data order and sampling."""
    phases: tuple[Phase, ...] = ("curriculum", "ppo")
    """Phases in order: `text` (written steps), `curriculum` (thoughts in their place), `ppo` (rewards)."""
    initialize_from: str = ""
    """Run folder with the initial parameters (its best checkpoint); empty: `model.source`. What of its navigator does
    not fit `config.thoughts` is initialised, and named."""
    logger: Logger = "tensorboard"
    """`wandb`: settings and scalars also go to Weights & Biases (the extra `wandb`); TensorBoard has all either way."""
    markers: Markers = "coconut"
    """Tokens around thoughts. `coconut`: `<|start-latent|>` before and `<|end-latent|>` after them. `answer`: only
    `<|end-latent|>`, before the answer."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    thoughts: NavigatorConfig = field(default_factory=NavigatorConfig)
    text: TextConfig = field(default_factory=TextConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def trainable(self, phase: str) -> Trainable:
        """What a phase trains: `all`, `navigator` or `lora`."""
        return self.ppo.trainable if phase == "ppo" else self.supervised(phase).trainable

    def supervised(self, phase: str) -> CurriculumConfig:
        """Settings of a supervised phase, `text` or `curriculum`."""
        return self.text.as_curriculum if phase == "text" else self.curriculum

    def samples_thoughts(self, phase: str) -> bool:
        """Whether a supervised phase samples its thoughts."""
        return phase == "curriculum" and self.curriculum.variational.kl > 0

    @property
    def lora(self) -> LoraConfig | None:
        """Settings of the adapters; None if no phase trains them."""
        return self.model.lora if any(self.trainable(phase) == "lora" for phase in self.phases) else None

    @property
    def max_thoughts(self) -> int:
        """T: largest number of thoughts of any phase."""
        phases = {"text": 0, "curriculum": self.curriculum.max_thoughts, "ppo": self.ppo.max_thoughts}
        return max((phases[phase] for phase in self.phases), default=0)

    @property
    def longest_sequence(self) -> int:
        """Most positions of a prompt, its thoughts and what is written; before a joined answer each trajectory may write."""
        written = self.data.answer_length * (2 if self.thoughts.join else 1)
        sampled = self.sampled_length if "ppo" in self.phases else 0
        return self.data.prompt_length + bool(self.thoughts.roles) + self.max_thoughts + max(written, sampled)

    @property
    def sampled_length(self) -> int:
        """A of answers sampled by PPO."""
        return self.ppo.answer_length or self.data.answer_length

    @property
    def sampled_answers(self) -> int:
        """Answers that PPO decodes of a question: one of each trajectory, or one that joins them."""
        return 1 if self.thoughts.join else self.ppo.num_trajectories
