"""Combinations of settings of several trajectories that cannot work: roles, joined answers, numbers, coupled noise."""

from collections.abc import Iterator

from longshot_jax.config.run import RunConfig
from longshot_jax.errors import shown


def role_faults(run: RunConfig) -> Iterator[str]:
    """Trajectories with roles of their own, and the one answer that joins them."""
    thoughts, ppo, curriculum = run.thoughts, run.ppo, run.curriculum
    roles, number = thoughts.roles, ppo.num_trajectories
    if "ppo" in run.phases and roles and (roles < number or (thoughts.join and roles != number)):
        yield (
            f"config.thoughts.roles {roles} has {'no room for' if roles < number else 'more roles than'} "
            f"config.ppo.num_trajectories {number}: set both to the same number."
        )
    if roles and curriculum.question_hidden and "curriculum" in run.phases:
        yield (
            "config.curriculum.question_hidden hides the question from the answer, and each role (config.thoughts.roles) "
            "stands at a place that has read it: set one of them to 0."
        )
    if not thoughts.join:
        return
    if not roles:
        yield "config.thoughts.join joins trajectories by their roles: set config.thoughts.roles to their number."
    most = max(run.data.threads, default=0)
    if run.data.train == "threads" and most > roles:
        yield (
            f"config.data.threads {most} is more than config.thoughts.roles {roles}, and each thread "
            "needs a trajectory: raise roles, or lower threads."
        )
    if run.data.batch_shapes:
        yield (
            f"config.data.batch_shapes {run.data.batch_shapes} groups sequences of one trajectory, and config.thoughts.join has "
            "several: set it to 0; config.data.length_bucket still applies."
        )
    if run.markers != "answer":
        yield (
            f"config.thoughts.join needs a marker that ends each trajectory's text, and config.markers {run.markers!r} "
            "has none there: take 'answer'."
        )
    if curriculum.mode == "cot":
        yield (
            "config.curriculum.mode 'cot' has no marker at which config.thoughts.join joins the texts of trajectories: take mode "
            "'coconut' with config.curriculum.stages (0,), which trains the same text in parallel, or set join to False."
        )
    if ppo.ensemble or ppo.rewards.vote_correct:
        key = "ensemble" if ppo.ensemble else "rewards.vote_correct"
        yield (
            f"config.thoughts.join decodes one answer from all trajectories, and config.ppo.{key} asks each for its own: "
            "switch one of them off."
        )
    if thoughts.max_trajectories and not ppo.shared_reward:
        yield "config.thoughts.max_trajectories with config.thoughts.join needs config.ppo.shared_reward: set it."
    for wanted, key, way_out in (
        (ppo.kl_in == "reward", "kl_in 'reward'", "take 'loss'"),
        (ppo.loss_mean == "sequence", "loss_mean 'sequence'", "take 'token'"),
        (
            ppo.rewards.success_per_thought and not ppo.shared_reward,
            "rewards.success_per_thought",
            "set config.ppo.shared_reward",
        ),
    ):
        if wanted and "ppo" in run.phases:
            yield f"config.ppo.{key} is of single trajectories, and config.thoughts.join gives all one answer: {way_out}."
    guidance = curriculum.guidance
    for wanted, key in (
        (guidance.distillation, "guidance.distillation"),
        (guidance.jacobi, "guidance.jacobi"),
        (curriculum.dropout, "dropout"),
    ):
        if wanted:
            yield f"config.curriculum.{key} is not there for joined answers: set it to 0, or config.thoughts.join to False."


def trajectory_faults(run: RunConfig) -> Iterator[str]:
    """Settings that make the trajectories of a question depend on one another, and those that forbid it."""
    ppo, thoughts, rewards = run.ppo, run.thoughts, run.ppo.rewards
    most = thoughts.max_trajectories
    if ppo.baseline != "critic":
        needs = f"config.ppo.baseline {ppo.baseline!r}"
        if ppo.num_trajectories < 2:
            yield f"{needs} compares trajectories of one question: set num_trajectories above 1, or take the critic."
        reads = "cross_attention" if thoughts.cross_attention else "graph 'all'"
        dependent = [
            (ppo.ensemble, "config.ppo.ensemble feeds them one thought"),
            (thoughts.join, "config.thoughts.join gives them one answer"),
            (thoughts.reads_others, f"config.thoughts.{reads} lets them read one another"),
            (ppo.shared_reward, "config.ppo.shared_reward gives them one reward"),
            (most > 0, "config.thoughts.max_trajectories chooses their number"),
            (rewards.diversity != 0, "config.ppo.rewards.diversity compares them"),
        ]
        for wanted, why in dependent:
            if wanted:
                yield f"{needs} needs independent trajectories, and {why}: take the critic, or switch that off."
    fewest = thoughts.fewest_trajectories
    if ppo.gamma != 1 and ppo.baseline != "critic":
        yield (
            f"config.ppo.gamma {ppo.gamma} discounts the returns of a critic, and config.ppo.baseline {ppo.baseline!r} compares "
            "whole rewards: set gamma to 1, or take the critic."
        )
    if most and (most != ppo.num_trajectories or most <= fewest):
        yield (
            f"config.thoughts.max_trajectories {most} is the largest number that the model may choose: set it and "
            f"config.ppo.num_trajectories (now {ppo.num_trajectories}) to the same number of {fewest + 1} or more, or it to 0."
        )
    if ppo.target_trajectories and not most:
        yield (
            "config.ppo.target_trajectories forces a number that the model does not choose: set "
            "config.thoughts.max_trajectories."
        )
    if any(not fewest <= number <= most for number in ppo.target_trajectories):
        yield (
            f"config.ppo.target_trajectories {shown(ppo.target_trajectories)} must lie between {fewest} and "
            f"config.thoughts.max_trajectories {most}."
        )
    if most and ppo.loss_mean == "sequence":
        yield (
            "config.ppo.loss_mean 'sequence' cannot weigh a question's number of trajectories, an action of no single "
            "trajectory: take 'token', or set config.thoughts.max_trajectories to 0."
        )
    if ppo.kl_in == "reward" and (most or ppo.shared_reward):
        key = "config.thoughts.max_trajectories" if most else "config.ppo.shared_reward"
        yield f"config.ppo.kl_in 'reward' charges each trajectory for itself, which {key} does not allow: take 'loss'."
    if rewards.vote_correct and not ppo.shared_reward:
        yield (
            "config.ppo.rewards.vote_correct rewards the whole question: set config.ppo.shared_reward, which gives it "
            "to every trajectory."
        )
    if rewards.diversity and ppo.gradient != "score":
        yield (
            f"config.ppo.rewards.diversity is earned by thoughts, which are not scored actions under gradient "
            f"{ppo.gradient!r}: take 'score', or config.ppo.coupling, which needs no reward."
        )


def coupling_faults(run: RunConfig) -> Iterator[str]:
    ppo, tokens = run.ppo, run.thoughts.sampled_tokens
    if ppo.coupling == "orthogonal" and run.thoughts.noise == "tokens" and tokens < ppo.num_trajectories:
        yield (
            f"config.ppo.coupling 'orthogonal' couples as many trajectories as a thought has numbers of noise, with "
            f"config.thoughts.noise 'tokens' config.thoughts.sampled_tokens {tokens}: take 'antithetic', or as many tokens as "
            f"config.ppo.num_trajectories {ppo.num_trajectories}."
        )
    plain = run.thoughts.noise == "fixed" and not run.thoughts.max_trajectories and "ppo" in run.phases
    if plain and ppo.coupling == "antithetic" and ppo.ensemble and ppo.num_trajectories % 2 == 0:
        yield (
            "config.ppo.coupling 'antithetic' cancels in the mean thought that config.ppo.ensemble feeds back, so nothing is "
            "explored: take 'independent' or 'orthogonal'."
        )
    if ppo.coupling == "independent" or not ppo.scores_thoughts:
        return
    reasons = [
        (run.thoughts.join, "config.thoughts.join"),
        (ppo.baseline != "critic", f"config.ppo.baseline {ppo.baseline!r}"),
        (run.thoughts.reads_others, "config.thoughts.cross_attention or graph 'all'"),
        (ppo.ensemble, "config.ppo.ensemble"),
        (ppo.shared_reward, "config.ppo.shared_reward"),
        (ppo.rewards.diversity != 0, "config.ppo.rewards.diversity"),
    ]
    for wanted, key in reasons:
        if wanted:
            yield (
                f"config.ppo.coupling {ppo.coupling!r} with gradient {ppo.gradient!r} is biased if a "
                f"trajectory's reward or baseline depends on others, as with {key}: take gradient 'pathwise', or "
                "'independent' noise."
            )
