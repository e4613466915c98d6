"""Sampled thoughts in a curriculum, trained by a variational bound (GRAM: arXiv:2605.19376).

Where a question has several right answers, a thought without noise can only be the mean of what leads to them. Here the
navigator's Gaussian is a prior p(thought | question, earlier thoughts), and training samples from a posterior that has
also seen what follows the thoughts. For one sample of the thoughts,

    -log p(tokens | thoughts) + kl · Σ_t KL(posterior_t ‖ prior_t)

in nats; with `kl` 1 its mean is at least -log p(tokens), the negative evidence bound. One trajectory a problem is enough.

Both Gaussians have the same mean but for a shift that the posterior's head gives (as in NVAE: arXiv:2007.03898), so without
shift and noise the thoughts are COCONUT's. `balance` gives the prior more of the KL's gradient than the posterior, which
draws the prior to what the answers need before it draws the posterior to a prior that knows little yet (KL balancing,
DreamerV2: arXiv:2010.02193).

Shapes: B problems, T thought slots, A tokens after the thoughts, X size of an action, D hidden size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from longshot_jax.config.curriculum import VariationalConfig
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.thoughts.answer import continue_thoughts
from longshot_jax.thoughts.densities import gaussian_kl
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.think import EncodedPrompt, Thoughts, think_given

STDS = ("prior_std", "posterior_std")  # metrics of a batch that has thoughts


def first_unit(reasoner: Reasoner, config: NavigatorConfig) -> Float[Array, ""]:
    """The rms of noise-free thoughts before any is known: of embeddings where thoughts lie among these, else 1.

    1 is the rms of a state after the last norm, and about that of its projection to the reasoning space.
    """
    if config.in_reasoning_space or not (config.normalised or config.feedback == "vocabulary"):
        return jnp.ones((), jnp.float32)
    return jnp.sqrt(jnp.mean(jnp.square(reasoner.backbone.embedding[...].astype(jnp.float32))))


def thought_noise(seeds: UInt32[Array, " B"], steps: int, size: int) -> Float[Array, "B one T X"]:
    """Standard normal noise, of each problem from its own seed, so that it does not depend on micro-batches."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), (1, steps, size)))(seeds)


def summary_of_answer(
    reasoner: Reasoner, prompt: EncodedPrompt, tokens: Int[Array, "B A"], token_mask: Bool[Array, "B A"]
) -> Float[Array, "B one D"]:
    """Last hidden state of the question followed at once by what should follow the thoughts."""
    batch, size = prompt.hidden.shape
    nothing = jnp.zeros((batch, 1, 0, size), prompt.hidden.dtype)
    unthought = think_given(reasoner, prompt, nothing, jnp.zeros((batch, 1), jnp.int32))
    hidden, _ = continue_thoughts(reasoner, prompt, unthought, tokens[:, None], token_mask[:, None])
    last = jnp.maximum(jnp.sum(token_mask, axis=1) - 1, 0)[:, None, None, None]
    return jnp.take_along_axis(hidden, last, axis=2)[:, :, 0]


def variational_sums(
    reasoner: Reasoner,
    thoughts: Thoughts,
    summary: Float[Array, "B one D"],
    thought_std: Float[Array, ""],
    config: VariationalConfig,
) -> dict[str, Array]:
    """Sums over the thoughts that were sampled from the posterior.

    Returns `kl` [T], KL(posterior ‖ prior) in nats; `objective` [], twice its sum, with the gradient of the sum, shared by
    `balance`; `prior_std`, `posterior_std` [], in units of the action; `squares` [], mean squares of the prior's means;
    `thoughts` [T], their number.
    """
    navigator, taken = reasoner.navigator, thoughts.thought_mask
    hidden = thoughts.hidden[:, :, :-1]
    prior = thoughts.means, navigator.noise_std(hidden, thought_std)
    posterior = navigator.posterior(hidden, summary[:, :, None], thoughts.means, thought_std)
    kl = gaussian_kl(*posterior, *prior, "summed")
    fixed_posterior, fixed_prior = jax.lax.stop_gradient((posterior, prior))
    of_prior = gaussian_kl(*fixed_posterior, *prior, "summed")
    of_posterior = gaussian_kl(*posterior, *fixed_prior, "summed")
    objective = 2 * (config.balance * of_prior + (1 - config.balance) * of_posterior)
    return {
        "kl": jax.lax.stop_gradient(jnp.sum(kl, axis=(0, 1), where=taken)),
        "objective": jnp.sum(objective, where=taken),
        "prior_std": jnp.sum(prior[1], where=taken),
        "posterior_std": jnp.sum(posterior[1], where=taken),
        "squares": jnp.sum(jnp.mean(jnp.square(thoughts.means), axis=-1), where=taken),
        "thoughts": jnp.sum(taken, axis=(0, 1), dtype=jnp.float32),
    }


def unit_after(sums: dict[str, Array], before: Float[Array, ""]) -> Float[Array, ""]:
    """The rms of the prior's means in a batch, the unit of `std` in the next; as before if it has no thoughts."""
    number = jnp.sum(sums["thoughts"])
    rms = jnp.sqrt(sums["squares"] / jnp.maximum(number, 1.0))
    return jnp.where((number > 0) & jnp.isfinite(rms), rms, before)


def variational_metrics(sums: dict[str, Array], problems: int, unit: Float[Array, ""]) -> dict[str, Array]:
    """KL in nats per problem and per thought; standard deviations relative to the rms of thoughts, as `std` is."""
    of_slot = jnp.maximum(sums["thoughts"], 1.0)
    # Counts taken thoughts only; `of_slot` has 1 for a slot without any.
    number = jnp.maximum(jnp.sum(sums["thoughts"]), 1.0)
    metrics = {"kl": jnp.sum(sums["kl"]) / problems}
    metrics |= {name: sums[name] / (number * unit) for name in STDS}
    return metrics | {f"kl_of_thought_{step + 1}": sums["kl"][step] / of_slot[step] for step in range(len(of_slot))}
