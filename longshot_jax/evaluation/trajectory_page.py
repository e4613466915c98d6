"""One HTML page of trajectories: every thought of some questions as the lens reads it, and what its answer owes to it.

The page is `trajectory_page.html` with the data as JSON in a block that is never run; its script writes them as text.
It asks no network for anything, and its content policy forbids both that and every other script.

Shapes: Q questions, N trajectories, T thoughts, D hidden size.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from longshot_jax.checkpoints.pretrained import Pretrained
from longshot_jax.checkpoints.run_folder import read_settings
from longshot_jax.checkpoints.sidecar import FILE
from longshot_jax.data.own import Grade, by_problem
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import UNFINISHED, Batches, answer_texts, are_correct
from longshot_jax.evaluation.controls import question_numbers, replaced_trajectories, swap_donors
from longshot_jax.evaluation.decoder import Decoder, full_batches
from longshot_jax.evaluation.interventions import Interventions
from longshot_jax.evaluation.lens import Lens, ThoughtReading
from longshot_jax.files import has_folder

_BATCH = 32  # questions at once
_NO_THOUGHTS = "so there is nothing to look at: give a checkpoint with thoughts"


def check_has_thoughts(folder: Path) -> None:
    """Raises a UserError for a checkpoint without thoughts, as far as its folder says so without reading weights."""
    if has_folder(folder / "checkpoints"):
        mode = read_settings(folder).curriculum.mode if (folder / "config.json").exists() else None
        if mode is None:
            raise UserError(f"{folder} holds converted weights, which were not trained to think, {_NO_THOUGHTS}.")
        _check_mode(folder, mode)
    elif (folder / "config.json").exists() and not (folder / FILE).exists():
        raise UserError(
            f"{folder} holds a Llama without {FILE}, which an export keeps its navigator in, {_NO_THOUGHTS}, or copy "
            "that file from the export."
        )


def _check_mode(folder: Path, mode: str) -> None:
    if mode == "pause":
        raise UserError(f"{folder} is of mode 'pause', whose thoughts are all the same embedding, {_NO_THOUGHTS}.")
    if mode != "coconut":
        raise UserError(f"{folder} is of mode {mode!r}, which has no thoughts, {_NO_THOUGHTS}.")


def trajectory_page(
    folder: Path,
    model: Pretrained,
    problems: Sequence[Problem],
    num_trajectories: int = 4,
    seed: int = 0,
    grade: Grade = by_problem,
) -> str:
    """The page of a model's greedy trajectory and of `num_trajectories` samples of each problem.

    A joined answer has its greedy trajectories, one a role, and no samples. An answer is right where `grade` gives 1.
    Raises a UserError for a model without thoughts.
    """
    rule, written = model.stage_rule or model.rule, model.stage_rule is not None
    _check_mode(folder, model.source["mode"])
    if model.layout is None or not rule.max_thoughts:
        raise UserError(f"the checkpoint in {folder} is of a stage without thoughts, {_NO_THOUGHTS} (--which).")
    own = model.max_thoughts, model.answer_length, model.max_trajectories, model.coupling, model.joined
    decoder = Decoder(model.graphdef, replace(model.layout, steps_written=written), *own)
    batches = Batches(decoder, model.params, problems, rule, model.memory, min(_BATCH, len(problems)), seed, grade)
    navigator = nnx.merge(model.graphdef, *model.params).navigator.config
    many = min(num_trajectories, navigator.roles or num_trajectories)
    kinds = [("role" if model.joined else "greedy", 0)]
    if many and not model.joined:
        kinds.append(("sample", many))
    read = _Reader(model, batches, Lens(model.graphdef, model.layout.tokenizer))
    trajectories: list[list[Any]] = [[] for _ in problems]
    vectors: list[list[np.ndarray]] = [[] for _ in problems]
    for kind, number in kinds:
        decoded = batches.run(model.temperatures, number)
        for row, (found, thoughts) in enumerate(zip(read(decoded), decoded.thoughts, strict=True)):
            for column, each in enumerate(found):
                if decoded.active is None or decoded.active[row, column]:
                    trajectories[row].append({"kind": kind, **each})
                    vectors[row].append(thoughts[column, : len(each["thoughts"])].astype(np.float32))
    _add_similarity(trajectories, vectors)
    places, variance = _plane(np.concatenate([each for row in vectors for each in row]))
    thoughts = [thought for row in trajectories for each in row for thought in each["thoughts"]]
    for thought, place in zip(thoughts, places.tolist(), strict=True):
        thought["place"] = place
    return _fill(
        {
            "checkpoint": folder.name,
            **{name: model.source.get(name) for name in ("step", "phase", "feedback")},
            "seed": seed,
            "joined": bool(model.joined),
            "written": written,
            # Only PPO trains the critic, and only it or a curriculum with `guidance.stop` the stop head.
            "valued": model.source["phase"] == "ppo",
            "stops": rule.stops,
            "bank": model.memory is not None and navigator.reads_bank,
            "variance": variance,
            "questions": [
                {"question": p.question, "steps": p.steps, "answer": p.answer, "trajectories": row}
                for p, row in zip(problems, trajectories, strict=True)
            ],
        }
    )


@dataclass(frozen=True)
class _Reader:
    """What the page shows of decoded trajectories of all problems."""

    model: Pretrained
    batches: Batches
    lens: Lens

    @cached_property
    def numbers(self) -> Int[np.ndarray, " Q"]:
        return question_numbers([problem.question for problem in self.batches.problems])

    def __call__(self, decoded: Any) -> list[list[dict[str, Any]]]:
        """For each problem and each of its `Trajectories`: answer, whether it is right, value, and its thoughts."""
        problems, layout = self.batches.problems, self.batches.decoder.layout
        donors = [swap_donors(column, self.numbers) for column in decoded.num_thoughts.T]
        lens, answers = self._in_batches(decoded)
        return [
            [
                self._trajectory(decoded, (row, column), text, problem, lens[row][column], answers, donors[column])
                for column, text in enumerate(texts)
            ]
            for row, (texts, problem) in enumerate(zip(answer_texts(decoded.tokens, layout), problems, strict=True))
        ]

    def _in_batches(self, decoded: Any) -> tuple[list[Any], dict[str, list[list[list[str]]]]]:
        """Readings of the lens, and answers [Q][N][T] after each thought is replaced, by kind of replacement."""
        model, batches = self.model, self.batches
        interventions, layout = Interventions(batches.decoder), batches.decoder.layout
        replacements = {"own": decoded.thoughts, "zero": np.zeros_like(decoded.thoughts)}
        swapped = replaced_trajectories("swap", decoded.thoughts, decoded.num_thoughts, 0, self.numbers)
        if swapped is not None:
            replacements["swap"] = swapped
        lens: list[Any] = []
        answers: dict[str, list[Any]] = {kind: [] for kind in replacements}
        for rows, real in full_batches(len(batches.problems), batches.batch_size):
            prompts = batches.prompt[rows], batches.mask[rows]
            part = jax.tree.map(lambda x, rows=rows: x[rows], decoded)
            lens += self.lens(model.params, prompts, part, model.memory)[:real]
            for kind, replacement in replacements.items():
                tokens = interventions.answers(model.params, prompts, part, replacement[rows], model.memory)[:real]
                texts = answer_texts(tokens.reshape(real, -1, tokens.shape[-1]), layout)
                answers[kind] += [
                    np.reshape([text.replace(UNFINISHED, " …") for text in row], tokens.shape[1:3]).tolist()
                    for row in texts
                ]
        return lens, answers

    def _trajectory(
        self,
        decoded: Any,
        place: tuple[int, int],
        text: str,
        problem: Problem,
        lens: Sequence[ThoughtReading],
        answers: dict[str, list[list[list[str]]]],
        donors: np.ndarray | None,
    ) -> dict[str, Any]:
        """Answer, value and thoughts of one trajectory; `text` is its answer, `donors` give the swapped thoughts."""
        row, column = place
        return {
            "answer": text.removesuffix(UNFINISHED),
            "finished": not text.endswith(UNFINISHED),
            "right": bool(are_correct([text], [problem], self.batches.grade)[0]),
            "value": decoded.values[place],
            "stop": decoded.stop_probabilities[place][len(lens)],
            "donor": None if donors is None else donors[row],
            "thoughts": [
                {**vars(reading), "reads": [vars(read) for read in reading.reads]}
                | {
                    kind: texts[row][column][step]
                    for kind, texts in answers.items()
                    if kind != "swap" or donors is not None
                }
                for step, reading in enumerate(lens)
            ],
        }


def _add_similarity(trajectories: Sequence[Any], vectors: Sequence[Sequence[Float[np.ndarray, "_ D"]]]) -> None:
    """Adds to each thought its mean cosine with the same thought of the question's other trajectories."""
    for row, mine in zip(trajectories, vectors, strict=True):
        directions = [each / np.maximum(np.linalg.norm(each, axis=-1, keepdims=True), 1e-12) for each in mine]
        for number, trajectory in enumerate(row):
            for step, thought in enumerate(trajectory["thoughts"]):
                others = [d[step] for n, d in enumerate(directions) if n != number and step < len(d)]
                thought["similarity"] = float(np.mean(others @ directions[number][step])) if others else None


def _plane(vectors: Float[np.ndarray, "M D"]) -> tuple[Float[np.ndarray, "M 2"], list[float]]:
    """Principal components 1 and 2 of all thoughts, and their shares of the variance."""
    centred = vectors.astype(np.float64) - (vectors.mean(axis=0) if len(vectors) else 0.0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    kept = min(2, len(scales))
    places[:, :kept] = (left * scales)[:, :kept]
    shares = np.square(scales) / max(np.square(scales).sum(), 1e-30)
    return places, [*shares[:2].tolist(), 0.0, 0.0][:2]


def _fill(content: Any) -> str:
    """The template with the data and the fingerprint of its script."""
    page = files(__package__ or "").joinpath("trajectory_page.html").read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Inside a script element nothing but `<` could end it; the others are for readers that are less strict.
    data = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    head, _, tail = page.replace("{{SCRIPT}}", digest).partition("{{DATA}}")
    return head + data + tail


def _plain(content: Any) -> Any:
    """JSON values: numbers with four significant digits, None for those that are not finite."""
    if isinstance(content, dict):
        return {name: _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float | np.floating):
        return float(f"{content:.4g}") if math.isfinite(content) else None
    return content.item() if isinstance(content, np.generic) else content
