"""Settings of thoughts and of what they read."""

from dataclasses import dataclass
from typing import Annotated, Literal

from longshot_jax.config.bounds import COUNT, FINITE, NON_NEGATIVE

Feedback = Literal["hidden", "vocabulary", "navigator", "navigator_residual"]
Coupling = Literal["independent", "antithetic", "orthogonal"]


@dataclass(frozen=True)
class NavigatorConfig:
    """The navigator, which maps a hidden state to a thought, a stop decision and a value."""

    feedback: Feedback = "hidden"
    """Action space of a thought. `hidden`: the hidden state (COCONUT). `vocabulary`: the mean of the token embeddings,
    weighted by the probabilities of the next token (soft tokens); take it with `config.markers` 'answer', so that the
    first thought stands where the text phase wrote its first token. `navigator`: a point of the reasoning space, decoded to an
    embedding. `navigator_residual`: as `navigator`, plus the hidden state."""
    normalised: bool = False
    """Apply an RMS norm to thoughts, with an initial scale of the rms of the token embeddings; for `hidden`, a learned
    projection comes first. Off is COCONUT: raw hidden states. A config file that does not set it normalises the
    thoughts of loaded weights, except for `vocabulary`, or keeps what a run or export that it starts from was trained
    with."""
    reasoning_dim: Annotated[int, COUNT] = 256
    """R: dimensions of the reasoning space and of the memory bank."""
    memory_top: Annotated[int, NON_NEGATIVE] = 0
    """Entries of the memory bank that a thought reads; 0: none."""
    stop_bias: Annotated[float, FINITE] = -1.0
    """Initial logit of the stop decision; -1 is a probability of 0.27. Much lower, stopping is never explored. The
    navigator of `initialize_from` keeps its own."""
    step_embeddings: Annotated[int, NON_NEGATIVE] = 0
    """Learned embeddings of a thought's index; later thoughts share the last one. 0: none."""
    graph: Literal["off", "own", "all"] = "off"
    """Read a graph of bank entries and earlier actions of the `own` trajectory or of `all` of the question."""
    graph_neighbours: Annotated[int, NON_NEGATIVE] = 3
    """Bank entries in the graph, if there is a bank."""
    graph_layers: Annotated[int, NON_NEGATIVE] = 1
    """Graph transformer layers after the graph attention."""
    cross_attention: bool = False
    """Read earlier actions of the question's other trajectories."""
    heads: Annotated[int, COUNT] = 4
    """Heads of graph memory and cross-trajectory attention; they divide `reasoning_dim`."""
    max_trajectories: Annotated[int, NON_NEGATIVE] = 0
    """Let the model choose 2 (with `join` 1) to this number of trajectories per question; 0: no choice."""
    noise: Literal["fixed", "learned", "tokens"] = "fixed"
    """Noise of a sampled thought: Gaussian with the same standard deviation for all (`fixed`), or times a factor, 1 at
    the start, that is `learned` as a function of the hidden state; or, for `vocabulary`, the mean embedding of
    `sampled_tokens` `tokens` drawn from the next token's distribution at `ppo.token_temperature`, if `ppo.thought_std` is above 0.
    Without noise (`ppo.thought_std` 0, greedy) all are the same."""
    sampled_tokens: Annotated[int, COUNT] = 1
    """K: tokens of a sampled thought with `noise` `tokens`."""
    roles: Annotated[int, NON_NEGATIVE] = 0
    """Learned embeddings, one a trajectory, each read at a position of its own before the trajectory's thoughts, so that
    the trajectories of a question differ without noise. 0: none."""
    join: bool = False
    """Decode one answer per question, which attends to the thoughts of all its trajectories."""

    @property
    def reads_history(self) -> bool:
        """Whether thoughts read earlier actions other than through the backbone."""
        return self.graph != "off" or self.cross_attention

    @property
    def joined(self) -> int:
        """Trajectories of a question's joined answer; 0 if each trajectory has its own."""
        return self.roles if self.join else 0

    @property
    def fewest_trajectories(self) -> int:
        """Smallest number of trajectories that the model may choose."""
        return 1 if self.join else 2

    @property
    def reads_others(self) -> bool:
        """Whether trajectories read one another, so are not independent samples."""
        return self.graph == "all" or self.cross_attention

    @property
    def bank_entries(self) -> int:
        """Entries of a memory bank that a thought reads in any way, if there is a bank."""
        return max(self.memory_top, self.graph_neighbours if self.graph != "off" else 0)

    @property
    def reads_bank(self) -> bool:
        """Whether thoughts read a memory bank, if there is one."""
        return self.bank_entries > 0

    @property
    def shapes_thoughts(self) -> bool:
        """Whether weights of the navigator have a part in noise-free thoughts that read no memory bank."""
        own = self.in_reasoning_space or self.normalised or self.reads_history
        return own or self.step_embeddings > 0 or self.roles > 0

    @property
    def in_reasoning_space(self) -> bool:
        """Whether actions are points in R^R rather than embeddings in R^D."""
        return self.feedback in ("navigator", "navigator_residual")
