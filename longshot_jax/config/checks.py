"""Combinations of settings that cannot work; each is an error before anything is computed."""

from collections.abc import Iterator
from typing import Any, get_args

from longshot_jax.config.bounds import MAX_INT
from longshot_jax.config.curriculum import has_thoughts
from longshot_jax.config.run import Phase, RunConfig
from longshot_jax.config.trajectory_checks import coupling_faults, role_faults, trajectory_faults
from longshot_jax.errors import UserError, shown


def check_combinations(run: RunConfig) -> None:
    """Raises a UserError for the first combination of settings that cannot work."""
    for faults in (
        _phases,
        _sizes,
        _data,
        _text,
        _curriculum,
        _variational,
        _ppo,
        _schedules,
        _kl,
        _thoughts,
        _token_noise,
        role_faults,
        trajectory_faults,
        coupling_faults,
    ):
        for message in faults(run):
            raise UserError(message)


def _phases(run: RunConfig) -> Iterator[str]:
    if not run.phases:
        yield "config.phases is empty: it must name 'text', 'curriculum', 'ppo' or several of them."
    if len(set(run.phases)) < len(run.phases):
        yield f"config.phases {shown(run.phases)} names a phase twice: each can run once."
    elif list(run.phases) != (ordered := [phase for phase in get_args(Phase) if phase in run.phases]):
        yield (
            f"config.phases {shown(run.phases)} begins with what needs the others: write steps before thoughts, and both "
            f"before rewards, as in {','.join(ordered)}."
        )
    for phase in run.phases:
        if run.model.weight_dtype != "float32" and run.trainable(phase) == "all":
            yield (
                f"config.model.weight_dtype {run.model.weight_dtype!r} would round away the updates of a trained "
                f"backbone: take 'float32', set config.{phase}.trainable to 'lora' or 'navigator', or leave {phase!r} "
                "out of config.phases."
            )
    targets = run.model.lora.targets
    if run.lora is not None and (not targets or len(set(targets)) < len(targets)):
        yield (
            f"config.model.lora.targets is {shown(targets)}: name one or more matrices, each once, or train "
            "'navigator' in config.curriculum.trainable and config.ppo.trainable."
        )


def _sizes(run: RunConfig) -> Iterator[str]:
    """Sizes made of several settings, each of which the device still counts."""
    data, curriculum, ppo = run.data, run.curriculum, run.ppo
    latent = curriculum.c_thought * curriculum.max_latent_stage
    updates = ppo.iterations * ppo.epochs * ppo.minibatches
    length = data.prompt_length + run.max_thoughts + max(data.answer_length, run.sampled_length)
    sizes = {
        "config.curriculum.c_thought x config.curriculum.max_latent_stage": latent,
        "config.ppo.questions x config.ppo.num_trajectories": ppo.questions * ppo.num_trajectories,
        "config.ppo.questions x config.ppo.num_trajectories x config.ppo.max_thoughts x config.thoughts.sampled_tokens": (
            ppo.questions * ppo.num_trajectories * ppo.max_thoughts * run.thoughts.sampled_tokens
        ),
        "config.ppo.iterations x config.ppo.epochs x config.ppo.minibatches": updates,
        "config.data.prompt_length, thoughts (config.curriculum.c_thought x max_latent_stage, thought_slots or "
        "config.ppo.max_thoughts) and config.data.answer_length or config.ppo.answer_length together": length,
    }
    for names, size in sizes.items():
        if size > MAX_INT:
            yield f"{names} is {size}, more than the {MAX_INT} that a device counts: lower one of them."


def _data(run: RunConfig) -> Iterator[str]:
    data = run.data
    if not data.operations:
        yield "config.data.operations is empty: it must name at least one number of operations."
    if not data.threads:
        yield "config.data.threads is empty: it must name at least one number of threads."
    if data.fields and not 2 <= len(set(data.fields)) == len(data.fields) <= 3:
        yield (
            f"config.data.fields is {shown(data.fields)}: name the fields of question and answer, or question, answer and "
            "steps, each once."
        )
    if data.length_bucket and data.prompt_length % data.length_bucket:
        yield (
            f"config.data.prompt_length {data.prompt_length} is not a multiple of config.data.length_bucket "
            f"{data.length_bucket}."
        )


def _text(run: RunConfig) -> Iterator[str]:
    if "text" in run.phases and run.text.trainable == "navigator":
        yield "config.text.trainable 'navigator' has nothing to train, because text has no thoughts: take 'all' or 'lora'."
    yield from _micro_batches("text", run.text)


def _micro_batches(phase: str, config: Any) -> Iterator[str]:
    if config.micro_batch_size and config.batch_size % config.micro_batch_size:
        yield (
            f"config.{phase}.batch_size {config.batch_size} is not a multiple of config.{phase}.micro_batch_size "
            f"{config.micro_batch_size}."
        )


def _curriculum(run: RunConfig) -> Iterator[str]:
    config, thoughts, guidance = run.curriculum, run.thoughts, run.curriculum.guidance
    runs = "curriculum" in run.phases
    if not config.stages:
        yield "config.curriculum.stages is empty: it must name at least one stage."
    reaches_navigator = config.mode == "coconut" and (
        thoughts.shapes_thoughts or config.variational.kl or guidance.stop
    )
    if (config.c_thought == 0) != (config.thought_slots > 0):
        yield (
            f"config.curriculum.c_thought is {config.c_thought} and thought_slots {config.thought_slots}: with c_thought 0 set "
            "thought_slots to the most thoughts that a problem may have; with any other c_thought set thought_slots to 0."
        )
    if config.c_thought == 0 and config.pad_latent_to_max:
        yield "config.curriculum.pad_latent_to_max pads to c_thought for each step, and c_thought is 0: set it to False."
    if runs and config.trainable == "navigator" and not reaches_navigator:
        yield (
            "config.curriculum.trainable 'navigator' has nothing to train: the curriculum's loss reaches the navigator "
            "only through thoughts. Take mode 'coconut' with a navigator feedback or config.thoughts.normalised, or "
            "train 'lora' or 'all'."
        )
    guided = guidance.reads_steps or guidance.distillation or guidance.jacobi or guidance.stop
    if runs and guided and config.mode != "coconut":
        yield (
            f"config.curriculum.guidance guides thoughts, and config.curriculum.mode {config.mode!r} has none: take "
            "mode 'coconut', or leave guidance at its defaults."
        )
    if guidance.jacobi and (any(guidance.forcing) or thoughts.reads_history):
        yield (
            "config.curriculum.guidance.jacobi computes all thoughts at once, so none can be forced or read earlier "
            "actions: set it to 0, or guidance.forcing to (0, 0), thoughts.graph to 'off' and cross_attention to False."
        )
    if config.dropout and config.mode != "coconut":
        yield f"config.curriculum.dropout applies to thoughts, and mode {config.mode!r} has none: set it to 0."
    if runs and config.question_hidden and not has_thoughts(config.mode):
        yield (
            f"config.curriculum.question_hidden leaves thoughts alone to answer from, and mode {config.mode!r} has none: "
            "set it to 0."
        )
    if config.dropout and guidance.jacobi:
        yield (
            "config.curriculum.dropout applies to thoughts in sequence, and config.curriculum.guidance.jacobi computes "
            "all at once: set one of them to 0."
        )
    yield from _micro_batches("curriculum", config)


def _variational(run: RunConfig) -> Iterator[str]:
    """A curriculum that samples its thoughts."""
    config, thoughts = run.curriculum, run.thoughts
    if not config.variational.kl or "curriculum" not in run.phases:
        return
    if thoughts.noise != "learned":
        yield "config.curriculum.variational.kl needs a prior and a posterior: set config.thoughts.noise to 'learned', or kl to 0."
    if config.mode != "coconut":
        yield f"config.curriculum.variational.kl samples thoughts, and mode {config.mode!r} has none: take 'coconut', or set kl to 0."
    for wanted, key, off in (
        (thoughts.join, "config.thoughts.join", "False"),
        (config.guidance.jacobi, "config.curriculum.guidance.jacobi", "0"),
        (any(config.guidance.forcing), "config.curriculum.guidance.forcing", "(0, 0)"),
    ):
        if wanted:
            yield (
                f"config.curriculum.variational.kl samples the thoughts of one trajectory in sequence, which {key} does not "
                f"allow: set {key} to {off}, or kl to 0."
            )


def _ppo(run: RunConfig) -> Iterator[str]:
    ppo, mode = run.ppo, run.curriculum.mode
    terms = {name: weight for name, weight in vars(ppo.rewards).items() if "target_thoughts" not in name}
    if (
        "ppo" in run.phases
        and not ppo.reward
        and not any(terms[name] for name in terms if not name.endswith(("_range", "_above")))
    ):
        yield "config.ppo.rewards are all 0, and 'ppo' in config.phases learns from rewards alone: set config.ppo.rewards.correct."
    names = [named.rpartition(":")[2] for named in ppo.reward]
    if ppo.reward_weights and len(ppo.reward_weights) != len(names):
        yield f"config.ppo.reward_weights has {len(ppo.reward_weights)} weights for the {len(names)} functions of config.ppo.reward."
    for name in names:
        if name in (*terms, "total", "distribution") or names.count(name) > 1:
            yield f"config.ppo.reward: TensorBoard has another reward {name!r}: give the function another name."
    in_text = mode in ("cot", "no_cot") and not ppo.max_thoughts
    if "ppo" in run.phases and mode != "coconut" and not in_text:
        yield (
            f"config.curriculum.mode {mode!r} trains a model without thoughts, and 'ppo' in config.phases trains "
            "thoughts: leave 'ppo' out, take mode 'coconut', or for PPO on text set config.ppo.max_thoughts to 0 with "
            "'cot' or 'no_cot'."
        )
    if ppo.questions % (ppo.minibatches * ppo.micro_batches):
        yield (
            f"config.ppo.questions {ppo.questions} is not a multiple of config.ppo.minibatches x config.ppo.micro_batches "
            f"({ppo.minibatches} x {ppo.micro_batches})."
        )
    if ppo.min_thoughts > ppo.max_thoughts:
        yield f"config.ppo.min_thoughts {ppo.min_thoughts} is more than config.ppo.max_thoughts {ppo.max_thoughts}."
    if ppo.target_iterations and not (ppo.target_thoughts or ppo.target_trajectories):
        yield (
            "config.ppo.target_iterations needs the numbers to draw from: set config.ppo.target_thoughts or "
            "target_trajectories."
        )
    if any(thoughts > ppo.max_thoughts for thoughts in ppo.target_thoughts):
        yield (
            f"config.ppo.target_thoughts {shown(ppo.target_thoughts)} must not be above config.ppo.max_thoughts "
            f"{ppo.max_thoughts}."
        )
    if ppo.dual_clip and ppo.dual_clip <= 1:
        yield (
            f"config.ppo.dual_clip {ppo.dual_clip} would cut off losses inside the trusted range: take a number above "
            "1, usually 3, or 0 for none."
        )
    fewest, most = ppo.rewards.natural_stop_range
    if fewest > most:
        yield f"config.ppo.rewards.natural_stop_range is ({fewest}, {most}): give the smaller number first."
    if ppo.gradient == "mixture" and not all(ppo.thought_std):
        yield (
            "config.ppo.gradient 'mixture' needs noise to the end, because 'score' does: set both numbers of "
            "config.ppo.thought_std above 0, or take 'pathwise'."
        )
    if ppo.gradient == "score" and not any(ppo.thought_std):
        yield (
            "config.ppo.gradient 'score' needs noise, because thoughts without it have no log-prob: set "
            "config.ppo.thought_std above 0, or take 'pathwise' or 'none'."
        )
    if "ppo" in run.phases and ppo.trainable == "navigator":
        yield from _navigator_alone(run)
    if run.thoughts.feedback == "navigator_residual" and ppo.gradient == "none":
        yield (
            "config.thoughts.feedback 'navigator_residual' with gradient 'none' has no exact rescore, because the "
            "navigator that decodes thoughts is trained: take config.ppo.gradient 'score', 'pathwise' or 'mixture'."
        )


def _navigator_alone(run: RunConfig) -> Iterator[str]:
    """PPO of the navigator alone, where no action depends on its weights."""
    ppo, thoughts = run.ppo, run.thoughts
    moved = thoughts.shapes_thoughts or thoughts.memory_top or thoughts.noise == "learned"
    decides = ppo.min_thoughts < ppo.max_thoughts or thoughts.max_trajectories
    if ppo.max_thoughts and ppo.gradient != "none" and not moved:
        yield (
            "config.ppo.trainable 'navigator' has no weight that moves a thought of config.thoughts.feedback "
            f"{thoughts.feedback!r}, which the backbone alone makes: train 'lora' or 'all', or take config.ppo.gradient 'none' "
            "to train only the stop decision."
        )
    elif not decides and not thoughts.roles and (ppo.gradient == "none" or not ppo.max_thoughts):
        yield (
            f"config.ppo.trainable 'navigator' has nothing to decide where config.ppo.min_thoughts and max_thoughts are both "
            f"{ppo.max_thoughts}: set min_thoughts below max_thoughts, or train 'lora' or 'all'."
        )


def _schedules(run: RunConfig) -> Iterator[str]:
    for name in ("thought_std", "stop_temperature", "token_temperature"):
        ends = getattr(run.ppo, name)
        if getattr(run.ppo, f"{name}_annealing") == "constant" and ends[0] != ends[1]:
            yield (
                f"config.ppo.{name} {ends} differs at its ends but {name}_annealing is 'constant': give the same "
                "number twice, or take 'linear' or 'cosine'."
            )


def _kl(run: RunConfig) -> Iterator[str]:
    ppo = run.ppo
    if ppo.kl_target and not ppo.kl_coefficient:
        yield (
            "config.ppo.kl_target adapts a coefficient by factors, and 0 stays 0: start config.ppo.kl_coefficient "
            "above 0, or set kl_target to 0."
        )
    if ppo.kl_estimator == "k1" and ppo.kl_in == "loss" and ppo.kl_coefficient:
        yield (
            "config.ppo.kl_estimator 'k1' has no gradient in the loss, on average: take 'k2', 'k3' or kl_in 'reward'."
        )
    if ppo.kl_in == "reward" and ppo.gradient == "mixture":
        yield (
            "config.ppo.kl_in 'reward' makes the reward depend on the thoughts themselves, which gradient 'mixture' cannot "
            "weigh exactly: take 'loss', or gradient 'score' or 'pathwise'."
        )
    if ppo.kl_in == "reward" and not ppo.kl_coefficient:
        yield "config.ppo.kl_in 'reward' charges nothing while config.ppo.kl_coefficient is 0: set it above 0."


def _thoughts(run: RunConfig) -> Iterator[str]:
    thoughts, ppo = run.thoughts, run.ppo
    if thoughts.reads_history and thoughts.reasoning_dim % thoughts.heads:
        yield (
            f"config.thoughts.reasoning_dim {thoughts.reasoning_dim} is not a multiple of config.thoughts.heads "
            f"{thoughts.heads}."
        )
    if thoughts.memory_top and not ppo.memory_slots:
        yield "config.thoughts.memory_top reads a memory bank: set config.ppo.memory_slots above 0."
    if ppo.memory_slots and not thoughts.reads_bank:
        yield (
            "config.ppo.memory_slots fills a bank that no thought reads: set config.thoughts.memory_top above 0, or "
            "set config.thoughts.graph."
        )
    if thoughts.memory_top > ppo.memory_slots:
        yield (
            f"config.thoughts.memory_top {thoughts.memory_top} is more than config.ppo.memory_slots {ppo.memory_slots}."
        )


def _token_noise(run: RunConfig) -> Iterator[str]:
    """Thoughts that are drawn as tokens."""
    thoughts, ppo = run.thoughts, run.ppo
    if thoughts.noise != "tokens":
        if thoughts.sampled_tokens > 1:
            yield (
                f"config.thoughts.sampled_tokens {thoughts.sampled_tokens} is for config.thoughts.noise 'tokens', not "
                f"{thoughts.noise!r}: set noise to 'tokens', or sampled_tokens to 1."
            )
        return
    if thoughts.feedback != "vocabulary":
        yield (
            "config.thoughts.noise 'tokens' draws the tokens of which a thought is the mean, and thoughts of "
            f"config.thoughts.feedback {thoughts.feedback!r} are made of none: take feedback 'vocabulary', or noise 'fixed'."
        )
    for wanted, key, off in (
        (thoughts.memory_top, "memory_top", "0"),
        (thoughts.graph != "off", "graph", "'off'"),
        (thoughts.cross_attention, "cross_attention", "False"),
    ):
        if wanted:
            yield (
                f"config.thoughts.noise 'tokens' makes thoughts of tokens alone, and config.thoughts.{key} adds what they "
                f"read: set {key} to {off}, or noise to 'fixed'."
            )
    if "ppo" in run.phases and ppo.gradient in ("pathwise", "mixture"):
        yield (
            f"config.ppo.gradient {ppo.gradient!r} flows through the noise of thoughts, and none flows through the drawn "
            "tokens of config.thoughts.noise 'tokens': take gradient 'score', or noise 'fixed'."
        )
    if ppo.thought_std[0] != ppo.thought_std[1]:
        yield (
            f"config.ppo.thought_std {ppo.thought_std} only switches the tokens of config.thoughts.noise 'tokens' on: give "
            "the same number twice, and anneal config.ppo.token_temperature."
        )
