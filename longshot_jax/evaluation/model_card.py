"""The model card of an export: what the model is, how it was trained, its results beside their controls, how to load it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.checkpoints.sidecar import FILE
from longshot_jax.config import RunConfig
from longshot_jax.config.run import PATH_SETTINGS
from longshot_jax.errors import UserError
from longshot_jax.evaluation.results import read_results, results_table
from longshot_jax.files import write_text
from longshot_jax.model.huggingface.weights import CARD


def write_model_card(saved: SavedReasoner, export: Path) -> str:
    """Writes README.md into the export of a run unless there is one; returns a line that says what was done."""
    if saved.is_backbone_alone:
        return f"{export}: a plain Llama, without a model card."
    if os.path.lexists(export / CARD):
        return f"{export}: {CARD} was there and is kept; remove it and export again for a new one."
    results = _results_of(saved)
    write_text(export / CARD, model_card(export.resolve().name, saved, results), advice="free some space")
    return f"{export}: {CARD} holds {len(results)} results of the run folder."


def _results_of(saved: SavedReasoner) -> dict[str, dict[str, Any]]:
    """Results of `eval.py` in the run folder by file name, those of this checkpoint alone."""
    run, found = saved.run, {}
    this = {"step": saved.metadata["step"], "phase": saved.metadata["phase"], "run_seed": run.seed}
    this |= {"mode": run.curriculum.mode, "feedback": run.thoughts.feedback, "trained_on": list(saved.trained_on)}
    for file in sorted(saved.folder.glob("*.json")):
        try:
            results = read_results(file)
            at = results.get("config", {})
            if all(at.get(name, value) == value for name, value in this.items()):
                results_table(results)
                found[file.name] = results
        except (UserError, KeyError, TypeError, ValueError, AttributeError):  # another kind of file, or a damaged one
            continue
    return found


def model_card(name: str, saved: SavedReasoner, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The card as Markdown; `results` by file name. Of paths only the last part is told."""
    run, phase, shape = saved.run, saved.metadata["phase"], saved.backbone
    measured = "\n".join(
        f"{_heading(file, each)}\n\n{_fenced(results_table(each))}\n" for file, each in results.items()
    )
    if not measured:
        measured = (
            "No evaluation of this checkpoint was in the run folder. `python scripts/eval.py --checkpoint RUN --output "
            "RUN/results.json` measures accuracy with its interval and its controls; the next export then shows them.\n"
        )
    settings = json.dumps(
        {"data": _settings("data", run.data), "thoughts": _settings("thoughts", run.thoughts)}, indent=1
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- longshot-jax
- latent-reasoning
---

# {name}

A Llama of {shape.num_hidden_layers} layers and width {shape.hidden_size} that reasons in continuous thoughts, trained and
exported by LongShot JAX.

## Results

{measured}
Controls replace the thoughts (`zero`, `noise`, `mean` of the other questions, `swap` with another question's). A model that
uses its thoughts falls to chance under them; one that keeps its accuracy does not need them.
Under `no_reads` its thoughts read neither a memory bank nor a graph nor other trajectories.

## Training

{_training(run, saved.metadata)}

Checkpoint: step {saved.metadata["step"]} of phase `{phase}`. All settings are in the metadata of `{FILE}`; those of data
and thoughts that differ from the defaults:

{_fenced(settings)}

## Use

```python
from longshot_jax import LongShot

# The path of this folder, as seen from the one that holds it.
model = LongShot.from_pretrained("{name}")
print(model.generate("a question of the training data's form"))
```

`transformers` loads the same folder as a plain `LlamaForCausalLM`, without thoughts: `{FILE}` holds what makes them
(navigator, stop head, memory), and only LongShot JAX reads it.

## Limits

It was trained for the data named above and for nothing else. Nothing about safety, bias or other languages was measured.
"""


def _training(run: RunConfig, metadata: Mapping[str, Any]) -> str:
    start = "random weights" if run.model.source == "scratch" else f"the weights `{Path(run.model.source).name}`"
    if run.initialize_from:
        start = f"the run `{Path(run.initialize_from).name}`"
    finished = metadata.get("finished", {})
    lines = [f"Started from {start}, seed {run.seed}, on `{Path(run.data.train).name}`.", ""]
    for phase in run.phases[: run.phases.index(metadata["phase"]) + 1]:
        figures = finished.get(phase)
        what = f"{run.trainable(phase)} weights"
        if phase == "curriculum":
            what += f", mode `{run.curriculum.mode}`"
        done = "not finished at this checkpoint"
        if figures:
            accuracy = figures.get("accuracy")
            done = f"{figures['updates']:,} updates, {figures['sequences']:,} sequences"
            done += "" if accuracy is None else f", validation accuracy {accuracy:.1%}"
        lines.append(f"- `{phase}` ({what}): {done}")
    return "\n".join(lines)


def _settings(name: str, group: Any) -> dict[str, Any]:
    """Settings that differ from their defaults; of paths the last part."""
    default = vars(type(group)())
    changed = {key: value for key, value in vars(group).items() if value != default[key]}
    return {key: Path(value).name if f"{name}.{key}" in PATH_SETTINGS else value for key, value in changed.items()}


def _heading(file: str, results: Mapping[str, Any]) -> str:
    data = Path(str(results["config"].get("data", "unknown data"))).name
    return f"On `{data}` (`{file}`, seed {results['config'].get('seed')}):"


def _fenced(text: str) -> str:
    return f"```\n{text}\n```"
