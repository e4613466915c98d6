"""Loads a trained model from a run folder, from converted weights, or from a Hugging Face Llama directory."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from longshot_jax.checkpoints.checkpoint import Which
from longshot_jax.checkpoints.initialize import copied_rows, embedding_rows
from longshot_jax.checkpoints.run_folder import check_model_folder
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.checkpoints.sidecar import BESIDE, FILE, Sidecar, exported_run, read_sidecar
from longshot_jax.config import RunConfig
from longshot_jax.config.model import ModelConfig
from longshot_jax.config.thoughts import Coupling
from longshot_jax.data.layout import Layout
from longshot_jax.data.sources import build_layout
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.files import has_folder, local_path
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.huggingface.stored_tensors import stored_marks
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import platform_of
from longshot_jax.model.storage import as_used, float_dtype, merge_states
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params, make_reasoner
from longshot_jax.thoughts.rollout import Temperatures, make_temperatures
from longshot_jax.thoughts.stopping import ThoughtRule, rule_after, rule_of_stage

_PLAIN_ANSWER_LENGTH = 64  # for a Llama that this package did not train
_PROMPT_BUCKET = 32

LOST_SIDECAR = (
    f"this model was exported from a run, but {FILE} is not beside its weights, so it has no thoughts: copy it from "
    "the export"
)


@dataclass(frozen=True)
class Pretrained:
    """A model, and the settings that it was trained to generate with.

    Attributes:
      graphdef, params: `nnx.merge(graphdef, *params)` is the `Reasoner`.
      layout: layout of prompts and answers; None without a tokenizer.
      max_thoughts, answer_length: T, and A in tokens.
      source: for reports: step, phase and stage of the checkpoint, seed, mode and feedback of its run.
      stage_rule: number of thoughts at the stage of a supervised phase that the checkpoint was in, after which the
        remaining steps are written; None after PPO and for a plain Llama, which answer at once by `rule`.
      lost_sidecar: whether it is an export of a run without the run's other parts.
      sigma: standard deviation of sampled thoughts, relative to the rms of thoughts.
      temperatures, coupling: temperatures and noise coupling of sampled trajectories.
      max_trajectories: largest number of trajectories that the count head chooses; 0 without a count head.
      joined: trajectories of a joined answer; 0 if each trajectory has its own.
      question_hidden: whether some answers were trained to see the thoughts alone.
    """

    graphdef: nnx.GraphDef
    params: Params
    backbone: LlamaConfig
    layout: Layout | None
    rule: ThoughtRule
    max_thoughts: int
    answer_length: int
    source: dict[str, Any]
    sigma: float = 0.0
    temperatures: Temperatures = field(default_factory=make_temperatures)
    memory: MemoryBank | None = None
    max_trajectories: int = 0
    joined: int = 0
    question_hidden: bool = False
    coupling: Coupling = "independent"
    stage_rule: ThoughtRule | None = None
    lost_sidecar: bool = False


def load_pretrained(path: str | Path, which: Which | None = None, dtype: Any = None) -> Pretrained:
    """Loads a model; a UserError if the folder holds none or cannot be read.

    Args:
      path: a run folder, a folder of converted weights, or a Hugging Face Llama directory, which may be an export.
      which: checkpoint of a run; None is the best, or the newest if none has a metric.
      dtype: dtype of computation and of the stored backbone: float32 or bfloat16, by name, short name (`fp32`, `bf16`) or
        as a dtype. None: that of the run's computation, exported or not; for a model without a run, bfloat16 on an
        accelerator and float32 on a CPU. Ignored for a run folder.
    """
    dtype = None if dtype is None else float_dtype(dtype)
    path = local_path(path, "the model")
    check_model_folder(path)
    if has_folder(path / "checkpoints"):
        saved = SavedReasoner.find(path, which)
        chosen = (dtype or _default_dtype()) if saved.is_backbone_alone else saved.run.model.compute_dtype
        tokenizer, params = Tokenizer.find(path / "tokenizer"), _in_dtype(saved.params(), chosen)
        if saved.is_backbone_alone:
            return _plain(saved.backbone, params["backbone"], tokenizer, chosen)
        if tokenizer is None:
            raise UserError(f"{path / 'tokenizer'} holds no tokenizer: restore it from where the run was made.")
        return _trained(saved.sidecar(params), saved.run, saved.backbone, params, tokenizer)
    if which is not None:
        raise UserError(f"{path} is no run folder, so it has no checkpoints to choose from: leave --which out.")
    config, tokenizer = read_config(path), Tokenizer.find(path)  # the model first: what it is says more
    sidecar = read_sidecar(path, config.hidden_size)
    if sidecar is not None:
        if tokenizer is None:
            raise UserError(f"{path} holds a run but no tokenizer: restore it from where the run was exported.")
        tokenizer.check_fits(config.vocab_size)  # an export has the rows of the latent tokens
    rows = embedding_rows(config.vocab_size, tokenizer)
    chosen = dtype or (_default_dtype() if sidecar is None else sidecar.run.model.compute_dtype)
    starts = copied_rows(path, tokenizer)
    params = load_weights(path, config, jnp.dtype(chosen), embedding_rows=rows, copied_rows=starts)
    backbone = replace(config, vocab_size=rows)
    if sidecar is None or tokenizer is None:
        beside, lost = stored_marks(path).get(BESIDE), False
        if beside is not None:
            lost = beside == FILE
        elif tokenizer is not None:  # an earlier export is told by the names of its latent tokens
            lost = tokenizer.came_with_latents and tokenizer.latent < config.vocab_size
        return replace(_plain(backbone, params, tokenizer, chosen), lost_sidecar=lost)
    params = merge_states(backbone=params, navigator=sidecar.navigator)
    return _trained(sidecar, exported_run(sidecar.run, chosen), backbone, params, tokenizer)


def _default_dtype() -> str:
    return "float32" if platform_of(None) == "cpu" else "bfloat16"


def _in_dtype(params: nnx.State, dtype: str) -> nnx.State:
    """Parameters for inference on the first local device, the backbone in `dtype`: every use would cast it."""
    parts = {name: as_used(part, dtype) if name == "backbone" else part for name, part in params.items()}
    return jax.device_put(merge_states(**parts), jax.local_devices()[0])


def _trained(
    sidecar: Sidecar, run: RunConfig, backbone: LlamaConfig, params: nnx.State, tokenizer: Tokenizer
) -> Pretrained:
    """A reasoner that a run trained; `run` has the dtypes with which it is loaded."""
    tokenizer.check_fits(backbone.vocab_size)
    run = replace(run, model=replace(run.model, attention="auto"))  # the device may be of another kind
    phase, ppo, rule = sidecar.phase, run.ppo, rule_after(run, sidecar.phase)
    model = Pretrained(
        graphdef=nnx.split(nnx.eval_shape(lambda: make_reasoner(run, backbone)))[0],
        params=(params,),
        backbone=backbone,
        layout=replace(build_layout(run, tokenizer), limit="the prompt length with which the model was trained"),
        rule=rule,
        max_thoughts=max(run.max_thoughts, rule.max_thoughts) if rule.max_thoughts else 0,
        answer_length=run.data.answer_length,
        source={
            "step": sidecar.step,
            "phase": phase,
            "stage": sidecar.stage,
            "run_seed": run.seed,
            "mode": run.curriculum.mode,
            "feedback": run.thoughts.feedback,
            **({"sampled_tokens": run.thoughts.sampled_tokens} if run.thoughts.noise == "tokens" else {}),
            "trained_on": list(sidecar.trained_on),
        },
        memory=sidecar.memory,
        stage_rule=None if sidecar.stage is None else rule_of_stage(run.supervised(phase), sidecar.stage),
        joined=run.thoughts.joined,
        question_hidden=run.curriculum.question_hidden > 0 and not run.thoughts.roles,  # a role has read the question
    )
    if run.samples_thoughts(phase):
        std = run.curriculum.variational.std
        return replace(model, sigma=std, temperatures=make_temperatures(std * sidecar.thought_rms))
    if phase != "ppo":
        return model
    # Final values of the schedules, with which the trained policy sampled last.
    sigma, stop, token = (schedule[1] for schedule in (ppo.thought_std, ppo.stop_temperature, ppo.token_temperature))
    return replace(
        model,
        answer_length=run.sampled_length,
        sigma=sigma,
        temperatures=make_temperatures(sigma * sidecar.thought_rms, stop, token),
        max_trajectories=run.thoughts.max_trajectories,
        coupling=ppo.coupling,
    )


def _plain(backbone: LlamaConfig, params: Any, tokenizer: Tokenizer | None, dtype: Any) -> Pretrained:
    """A Llama without a trained navigator: thoughts are raw hidden states (COCONUT), by default none."""
    run = RunConfig(model=ModelConfig(compute_dtype=dtype))
    graphdef = nnx.split(nnx.eval_shape(lambda: make_reasoner(run, backbone)))[0]
    # The random backbone is not computed: the compiler drops values that are not returned.
    navigator = jax.jit(lambda: nnx.split(make_reasoner(run, backbone))[1]["navigator"])()
    context = backbone.max_position_embeddings
    longest = max(context - _PLAIN_ANSWER_LENGTH, context // 2)
    return Pretrained(
        graphdef=graphdef,
        params=(merge_states(backbone=params, navigator=navigator),),
        backbone=backbone,
        layout=None
        if tokenizer is None
        else Layout(
            tokenizer, "coconut", "cot", longest, _PROMPT_BUCKET, limit="the model's context without its answer"
        ),
        rule=ThoughtRule("fixed", 0),
        max_thoughts=0,
        answer_length=_PLAIN_ANSWER_LENGTH,
        source={"mode": "plain"},
    )
