"""The documents' commands that read a run are run as they stand, with small runs in the places that they name."""

import os
import shlex
from pathlib import Path

import pytest
from commands import ROOT, TINY, start
from test_documents import places
from test_own import EXAMPLES

from longshot_jax.data.chains import write_chains

pytestmark = pytest.mark.slow

SMALL = (
    "model.hidden_size=16 model.intermediate_size=32 model.num_hidden_layers=1 model.num_attention_heads=2 "
    "data.generated_train=400 data.generated_test=20 data.bpe_vocabulary=300 evaluation.questions=8 "
    "evaluation.every_iterations=0 curriculum.max_steps_per_stage=2 curriculum.batch_size=8 ppo.iterations=2 "
    "ppo.questions=4 ppo.epochs=1 ppo.minibatches=1"
).split()
STORIES = (
    "data.train=stories data.test=stories data.tokenizer=bpe data.prompt_length=400 data.answer_length=120".split()
)
SOFT = (
    "thoughts.feedback=vocabulary curriculum.c_thought=0 curriculum.thought_slots=40 curriculum.guidance.stop=1.0 "
    "ppo.max_thoughts=40"
).split()
THREE = "data.threads=3 thoughts.roles=3 ppo.num_trajectories=3 data.prompt_length=60 data.answer_length=7".split()
CROSSING = (
    "data.operations=4 data.crossings=3 data.prompt_length=50 data.answer_length=6 curriculum.max_latent_stage=5 "
    "curriculum.stages=3,4,5 thoughts.cross_attention=True"
).split()
THREADS = str(ROOT / "configs" / "threads.py")
# Small runs: config, and settings beside the small ones.
RUNS = {
    "chains": (TINY, []),
    "stories": (TINY, STORIES),
    "soft_stories": (TINY, [*STORIES, *SOFT]),
    "threads": (THREADS, []),
    "threads_of_three": (THREADS, THREE),
    "crossing": (THREADS, CROSSING),
    "threads_mixed": (str(ROOT / "configs" / "threads_mixed.py"), []),
    "colouring": (str(ROOT / "configs" / "colouring.py"), []),
    "mine": ("my_task.py", []),
}
# The small run in each place that a command names.
PLACES = {f"runs/{name}": name for name in RUNS if name != "chains"}
PLACES |= dict.fromkeys(["runs/colouring_learned_ppo"], "colouring")
PLACES |= dict.fromkeys(["runs/threads_unfinished", "runs/threads_ppo"], "threads")
PLACES |= {"runs/threads_of_five": "threads_of_three", "runs/legs_thinking": "soft_stories"}
PLACES |= dict.fromkeys(["runs/digits", "runs/svamp"], "soft_stories")  # a curriculum that trains the stop head
PLACES |= dict.fromkeys(
    [
        "runs/digits_text",
        "runs/digits_soft",
        "runs/digits_hidden",
        "runs/digits_ppo",
        "runs/digits_stops",
        "runs/soft_text",
    ],
    "stories",
)
PLACES |= dict.fromkeys(
    [
        "runs/single",
        "runs/tiny_soft",
        "runs/chains_drawn",
        "runs/demo/ppo",
        "runs/demo/coconut",
        "runs/stage3",
        "runs/multi_small",
        "runs/thoughts",
    ],
    "chains",
)
READERS = ("eval", "view", "lens", "generate", "convert")
COMMANDS = list(
    dict.fromkeys(
        command
        for _, command in places()
        if command.startswith("python scripts/")
        and (command.split()[1][8:-3] in READERS or "--help" in command.split())
    )
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the runs, the data and the files of the documents, which is the current one."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "configs").symlink_to(ROOT / "configs")
    for file, text in EXAMPLES.items():
        (folder / file).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "environ", dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(folder / "cache")))
        for name, (config, settings) in RUNS.items():
            given = [f"--config.{setting}" for setting in (*SMALL, *settings)]
            assert start("train.py", "--config", config, f"--workdir=small/{name}", *given) == 0
        for place, name in PLACES.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).symlink_to(folder / "small" / name)
        write_chains(folder / "runs/demo/test_4.json", 4, 20, seed=1)
        # An earlier evaluation of the same questions, to compare with.
        earlier = ("--checkpoint", "small/chains", "--num_trajectories", 0, "--output", "before.json")
        assert start("eval.py", *earlier) == 0
        yield folder


@pytest.mark.parametrize("command", COMMANDS)
def test_it_ends_well_and_writes_what_it_says(command: str, here: Path, capsys: pytest.CaptureFixture[str]):
    words = shlex.split(command)
    output = (
        words[-1] if "convert.py" in words[1] else (words[words.index("--output") + 1] if "--output" in words else "")
    )
    assert not output or not (here / output).exists(), "two commands write the same file"
    code = start(words[1].removeprefix("scripts/"), *words[2:])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert (here / output).exists() if output else shown.out.strip()


def test_the_list_is_not_empty():
    assert {command.split()[1] for command in COMMANDS} >= {f"scripts/{name}.py" for name in (*READERS, "train")}
