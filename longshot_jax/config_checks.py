"""Combinations of settings that cannot work, each refused before anything is spent, with the ways out."""

from typing import TYPE_CHECKING

from longshot_jax.errors import UserError

if TYPE_CHECKING:
    from longshot_jax.config import RunConfig


def check_combinations(run: "RunConfig") -> None:
    """Raises a UserError for the first combination of settings that cannot work."""
    for stage in run.stages:
        if stage not in ("curriculum", "ppo"):
            raise UserError(f"config.stages holds {stage!r}: it may hold 'curriculum' and 'ppo'.")
    ppo, curriculum, data = run.ppo, run.curriculum, run.data
    for stage in run.stages:
        if run.model.weight_dtype != "float32" and run.trainable(stage) == "all":
            raise UserError(
                f"config.model.weight_dtype {run.model.weight_dtype!r} would round away the updates of a backbone that "
                f"is trained: take 'float32', or set config.{stage}.trainable to 'lora' or 'navigator', or leave "
                f"{stage!r} out of config.stages."
            )
    targets = run.model.lora.targets
    if run.lora is not None and (not targets or len(set(targets)) < len(targets)):
        raise UserError(
            f"config.model.lora.targets is {targets}: name one or more matrices, each once, or set trainable to 'navigator'."
        )
    kind = run.thoughts
    moves = kind.in_reasoning_space or kind.normalised or kind.reads_past or kind.step_embeddings
    idle = curriculum.mode != "coconut" or not moves
    if "curriculum" in run.stages and curriculum.trainable == "navigator" and idle:
        raise UserError(
            "config.curriculum.trainable 'navigator' has nothing to train: the curriculum's loss reaches the navigator "
            "through thoughts alone. Take mode 'coconut' with a feedback of the navigator or config.thoughts.normalised, "
            "or train 'lora' or 'all'."
        )
    in_text = curriculum.mode in ("cot", "no_cot") and not ppo.max_steps
    if "ppo" in run.stages and curriculum.mode != "coconut" and not in_text:
        raise UserError(
            f"config.curriculum.mode {curriculum.mode!r} trains a model without thoughts of its own, and 'ppo' in "
            "config.stages trains thoughts: leave 'ppo' out, take mode 'coconut', or set config.ppo.max_steps to 0 "
            "with 'cot' or 'no_cot', for PPO on text."
        )
    guidance = curriculum.guidance
    guided = guidance.reads_steps or guidance.distillation or guidance.jacobi
    if "curriculum" in run.stages and guided and curriculum.mode != "coconut":
        raise UserError(
            f"config.curriculum.guidance guides thoughts, and config.curriculum.mode {curriculum.mode!r} has none of its "
            "own: take mode 'coconut', or leave guidance at its defaults."
        )
    if guidance.jacobi and (any(guidance.forcing) or run.thoughts.reads_past):
        raise UserError(
            "config.curriculum.guidance.jacobi makes all thoughts at once, so none can be forced or read earlier "
            "actions: set it to 0, or guidance.forcing to (0, 0), thoughts.graph to 'off' and cross_attention to False."
        )
    if data.length_bucket and data.prompt_length % data.length_bucket:
        raise UserError(
            f"config.data.prompt_length {data.prompt_length} is not a multiple of config.data.length_bucket "
            f"{data.length_bucket}."
        )
    if curriculum.dropout and curriculum.mode != "coconut":
        raise UserError(
            f"config.curriculum.dropout is of thoughts, and mode {curriculum.mode!r} has none of its own: set it to 0."
        )
    if curriculum.dropout and curriculum.guidance.jacobi:
        raise UserError(
            "config.curriculum.dropout is of thoughts made one after the other, and config.curriculum.guidance.jacobi makes "
            "all at once: set one of them to 0."
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
    if ppo.min_steps > ppo.max_steps:
        raise UserError(f"config.ppo.min_steps {ppo.min_steps} is more than max_steps {ppo.max_steps}.")
    if ppo.target_iterations and not (ppo.target_steps or ppo.target_trajectories):
        raise UserError(
            "config.ppo.target_iterations needs config.ppo.target_steps or target_trajectories: the numbers to draw from."
        )
    if any(steps > ppo.max_steps for steps in ppo.target_steps):
        raise UserError(
            f"config.ppo.target_steps {ppo.target_steps} must not be above max_steps {ppo.max_steps}."
        )
    _check_ppo(run)
    if ppo.gradient == "mixture" and not all(ppo.noise):
        raise UserError(
            "config.ppo.gradient 'mixture' needs noise to the end: without it the share of 'score' is lost. Set both "
            "numbers of config.ppo.noise above 0, or take 'pathwise'."
        )
    _check_trajectories(run)
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
    if ppo.gradient == "score" and not any(ppo.noise):
        raise UserError(
            "config.ppo.gradient 'score' needs noise: thoughts without it have no log-prob. Set config.ppo.noise "
            "above 0, or take 'pathwise' or 'none'."
        )
    thoughts = run.thoughts
    if ppo.baseline != "critic" and thoughts.reads_others:
        key = "cross_attention" if thoughts.cross_attention else "graph 'all'"
        raise UserError(
            f"config.ppo.baseline {ppo.baseline!r} needs independent trajectories, and config.thoughts.{key} lets them "
            "read one another: take the critic, or set config.thoughts.graph to 'own' and cross_attention to False."
        )
    if thoughts.reads_past and thoughts.reasoning_dim % thoughts.heads:
        raise UserError(
            f"config.thoughts.reasoning_dim {thoughts.reasoning_dim} is not a multiple of config.thoughts.heads "
            f"{thoughts.heads}."
        )
    if run.thoughts.memory_top and not ppo.memory_slots:
        raise UserError(
            "config.thoughts.memory_top reads a memory bank: set config.ppo.memory_slots above 0."
        )
    if ppo.memory_slots and not thoughts.reads_bank:
        raise UserError(
            "config.ppo.memory_slots fills a bank nobody reads: set config.thoughts.memory_top above 0, or give "
            "config.thoughts.graph."
        )
    if run.thoughts.memory_top > ppo.memory_slots:
        raise UserError(
            f"config.thoughts.memory_top {run.thoughts.memory_top} is more than config.ppo.memory_slots {ppo.memory_slots}."
        )
    inexact = run.thoughts.feedback == "navigator_residual" and ppo.gradient == "none"
    if inexact and ppo.rescore == "auto":
        raise UserError(
            "config.thoughts.feedback 'navigator_residual' with gradient 'none' has no exact rescore, because the "
            "navigator that decodes thoughts is trained: take config.ppo.gradient 'score', 'pathwise' or 'mixture' "
            "(sequential, exact), or config.ppo.rescore 'parallel_inexact'."
        )


def _check_trajectories(run: "RunConfig") -> None:
    """What makes the trajectories of a question depend on one another, and what is no longer exact then."""
    ppo, thoughts, rewards = run.ppo, run.thoughts, run.ppo.rewards
    most = thoughts.max_trajectories
    shared = [
        (ppo.shared_reward, "config.ppo.shared_reward makes their rewards one"),
        (most > 0, "config.thoughts.max_trajectories chooses their number"),
        (rewards.diversity != 0, "config.ppo.rewards.diversity compares them"),
    ]
    for wanted, why in shared:
        if wanted and ppo.baseline != "critic":
            raise UserError(
                f"config.ppo.baseline {ppo.baseline!r} needs independent trajectories, and {why}: take the critic."
            )
    if most and (most != ppo.num_trajectories or most < 3):
        raise UserError(
            f"config.thoughts.max_trajectories {most} is the most that a question chooses from 2 on: set it and "
            f"config.ppo.num_trajectories (now {ppo.num_trajectories}) to one number of 3 or more, or to 0 for no choice."
        )
    if ppo.target_trajectories and not most:
        raise UserError(
            "config.ppo.target_trajectories forces a number that is no choice: set config.thoughts.max_trajectories."
        )
    if any(not 2 <= number <= most for number in ppo.target_trajectories):
        raise UserError(
            f"config.ppo.target_trajectories {ppo.target_trajectories} must lie between 2 and "
            f"config.thoughts.max_trajectories {most}."
        )
    if most and ppo.loss_mean == "sequence":
        raise UserError(
            "config.ppo.loss_mean 'sequence' has no place for a question's number of trajectories, which belongs to none "
            "of them: take 'token', or set config.thoughts.max_trajectories to 0."
        )
    if ppo.kl_in == "reward" and (most or ppo.shared_reward):
        key = "config.thoughts.max_trajectories" if most else "config.ppo.shared_reward"
        raise UserError(
            f"config.ppo.kl_in 'reward' charges each trajectory for itself, which {key} does not allow: take 'loss'."
        )
    if rewards.vote_correct and not ppo.shared_reward:
        raise UserError(
            "config.ppo.rewards.vote_correct is earned by the question as a whole: set config.ppo.shared_reward, so that "
            "every trajectory is credited with all of it."
        )
    if rewards.diversity and ppo.gradient != "score":
        raise UserError(
            f"config.ppo.rewards.diversity is earned by thoughts, and under gradient {ppo.gradient!r} thoughts are no "
            "scored actions: take 'score', or config.ppo.coupling, which needs no reward."
        )
    if ppo.coupling != "independent" and ppo.gradient in ("score", "mixture"):
        reasons = [
            (ppo.baseline != "critic", f"config.ppo.baseline {ppo.baseline!r}"),
            (thoughts.reads_others, "config.thoughts.cross_attention or graph 'all'"),
            (ppo.together, "config.ppo.together"),
            (ppo.shared_reward, "config.ppo.shared_reward"),
            (rewards.diversity != 0, "config.ppo.rewards.diversity"),
        ]
        for wanted, key in reasons:
            if wanted:
                raise UserError(
                    f"config.ppo.coupling {ppo.coupling!r} with gradient {ppo.gradient!r} is biased where other trajectories enter "
                    f"one's reward or baseline, as with {key}: take gradient 'pathwise', or 'independent' noise."
                )


def _check_ppo(run: "RunConfig") -> None:
    """The settings of the policy's loss and of its annealing."""
    ppo = run.ppo
    if ppo.dual_clip and ppo.dual_clip <= 1:
        raise UserError(
            f"config.ppo.dual_clip {ppo.dual_clip} would cut off losses inside the trusted range: take a number "
            "above 1, usually 3, or 0 for none."
        )
    for name, kind in (
        ("noise", ppo.noise_annealing),
        ("stop_temperature", ppo.stop_annealing),
        ("token_temperature", ppo.token_annealing),
    ):
        bounds = getattr(ppo, name)
        if kind == "constant" and bounds[0] != bounds[1]:
            raise UserError(
                f"config.ppo.{name} {bounds} differs at its ends but its annealing is 'constant': give the same number "
                "twice, or take 'linear' or 'cosine'."
            )
    if ppo.kl_target and not ppo.kl_coefficient:
        raise UserError(
            "config.ppo.kl_target adapts a coefficient by factors, and 0 stays 0: start config.ppo.kl_coefficient "
            "above 0, or set kl_target to 0."
        )
    if ppo.kl_estimator == "k1" and ppo.kl_in == "loss" and ppo.kl_coefficient:
        raise UserError(
            "config.ppo.kl_estimator 'k1' has no gradient in the loss, on average: take 'k2' or 'k3', or kl_in 'reward'."
        )
    if ppo.kl_in == "reward" and not ppo.kl_coefficient:
        raise UserError(
            "config.ppo.kl_in 'reward' charges nothing while config.ppo.kl_coefficient is 0: set it above 0."
        )
