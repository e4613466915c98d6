"""The commands of the documents that end within a minute are run as they stand, with small runs where they expect large ones."""

import os
import re
import shlex
from pathlib import Path

import pytest
from commands import ROOT, TINY, start
from test_documents import places

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
THREE = "data.threads=3 thoughts.roles=3 ppo.num_trajectories=3 data.prompt_length=60 data.answer_length=7".split()
# The runs that commands name: config, settings beside the small ones.
RUNS = {
    "chains": (TINY, []),
    "stories": (TINY, STORIES),
    "threads": (str(ROOT / "configs" / "threads.py"), []),
    "threads_of_three": (str(ROOT / "configs" / "threads.py"), THREE),
    "mine": ("my_task.py", []),
}
READERS = ("eval", "view", "lens", "generate", "convert")
NAMED = {
    command: name
    for name, command in places()
    if command.startswith("python scripts/") and (command.split()[1][8:-3] in READERS or "--help" in command.split())
}


def stand_in(run: str) -> str:
    """The small run that stands at a place which a document names."""
    if run.startswith("threads"):
        return "threads_of_three" if run == "threads_of_three" else "threads"
    return run if run in RUNS else "chains"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the runs, the data and the files of the documents, which is the current one."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "configs").symlink_to(ROOT / "configs")
    for file, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs/own.md").read_text(), re.DOTALL):
        (folder / file).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "environ", dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(folder / "cache")))
        for name, (config, settings) in RUNS.items():
            given = [f"--config.{setting}" for setting in (*SMALL, *settings)]
            assert start("train.py", "--config", config, f"--workdir=small/{name}", *given) == 0
        for run in dict.fromkeys(re.findall(r"runs/[\w/]+(?![\w/.])", " ".join(NAMED))):
            (folder / run).parent.mkdir(parents=True, exist_ok=True)
            (folder / run).symlink_to(folder / "small" / stand_in(run.removeprefix("runs/")))
        write_chains(folder / "runs/demo/test_4.json", 4, 20, seed=1)
        # An earlier evaluation of the same questions, to compare with.
        earlier = ("--checkpoint", "small/chains", "--num_trajectories", 0, "--output", "before.json")
        assert start("eval.py", *earlier) == 0
        yield folder


@pytest.mark.parametrize("command", NAMED)
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
    assert {command.split()[1] for command in NAMED} >= {f"scripts/{name}.py" for name in (*READERS, "train")}
