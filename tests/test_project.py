"""The promises of the project's frame: its needs, portable files of one subject, imports, configs with a purpose."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHON_FILES = sorted(
    path for folder in ("longshot_jax", "scripts", "configs", "tests") for path in (ROOT / folder).rglob("*.py")
)
BINARY = (".npz", ".safetensors", ".gz")  # random bytes look like anything
FOREIGN = {"torch", "tensorflow", "keras"}

# Folders that exist on one machine and not on the next. /usr/bin/env, /dev and /proc are everywhere.
MACHINE_PATH = re.compile(
    r"(?<![\w.*)}>])/(?:home|root|Users|work|tmp|opt|mnt|media|srv|data|scratch|content|var/tmp)/\w|\b[A-Z]:\\\w"
)
REGISTRY_HOST = re.compile(r"\b(?:pypi|pythonhosted|npmjs|anaconda|debian|pytorch)\.(?:org|com)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def project_files() -> list[Path]:
    """What git tracks or would track: no build product, no environment, no run."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: which files belong to the project is not known")
    files = [ROOT / name for name in listed.split("\0") if name and not name.endswith(BINARY)]
    return [path for path in files if path.is_file()]


def offences(pattern: re.Pattern[str], text: str) -> list[str]:
    """Lines (1-based, shortened) in which the pattern occurs."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if match := pattern.search(line):
            found.append(f"{number}: {line[max(0, match.start() - 20) : match.end() + 20].strip()}")
    return found


def needs(lines: list[str]) -> set[str]:
    return {str(Requirement(line)) for line in lines}


def test_requirements_are_those_of_pyproject(pyproject: dict):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert len(stated) == len(set(stated))
    assert needs(stated) == needs(pyproject["dependencies"])


def test_requirements_name_the_cuda_extra(pyproject: dict):
    (extra,) = pyproject["optional-dependencies"]["cuda"]
    comments = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("#")]
    assert any(f'pip install "{extra}"' in line for line in comments)


def imported(folder: Path) -> set[str]:
    """Top-level names of foreign modules that a folder's files import, anywhere in them."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"longshot_jax"}


def test_everything_imported_is_declared_and_nothing_else(pyproject: dict):
    """By the name of the distribution; a need that is not imported says so here, with its reason."""
    distributions = {
        "orbax": "orbax-checkpoint",
        "ml_collections": "ml-collections",
        "huggingface_hub": "huggingface-hub",
    }
    used = {distributions.get(name, name) for name in imported(ROOT / "longshot_jax") | imported(ROOT / "scripts")}
    not_imported = {
        "jaxlib",  # to exclude a version
        "pillow",  # pictures in TensorBoard; tensorboardX needs it and does not bring it
        "tensorboard",  # what users look at runs with
    }
    declared = {Requirement(line).name for line in pyproject["dependencies"]}
    extras = {"torch", "wandb"}  # the benchmark's baseline, and a logger
    assert used - extras == declared - not_imported
    assert not_imported <= declared
    optional = pyproject["optional-dependencies"].values()
    assert extras <= {Requirement(line).name for lines in optional for line in lines}


def test_no_need_is_pytorch_or_tensorflow(pyproject: dict):
    names = {Requirement(line).name.lower() for line in pyproject["dependencies"]}
    assert not {name for name in names if name.startswith(("torch", "tensorflow", "tf-"))}


def test_no_file_holds_a_path_of_one_machine(project_files: list[Path]):
    found = {
        str(path.relative_to(ROOT)): lines
        for path in project_files
        if (lines := offences(MACHINE_PATH, path.read_text(errors="ignore")))
    }
    assert not found


def test_no_file_names_a_registry_host(project_files: list[Path]):
    found = {
        str(path.relative_to(ROOT)): lines
        for path in project_files
        if (lines := offences(REGISTRY_HOST, path.read_text(errors="ignore")))
    }
    assert not found


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATH, 'data = "/' + 'home/ann/gsm8k"'),
        (MACHINE_PATH, "--workdir=/" + "tmp/x"),
        (MACHINE_PATH, "C:" + "\\Users"),
        (REGISTRY_HOST, "https://files.python" + "hosted.org/x.whl"),
        (REGISTRY_HOST, "--index-url https://download.py" + "torch.org/whl/cpu"),
    ],
)
def test_the_search_sees_what_it_looks_for(pattern: re.Pattern[str], line: str):
    (found,) = offences(pattern, f"one\n{line}\n")
    assert found.startswith("2: ")


@pytest.mark.parametrize("line", ["runs/home/x", "../shared/data/gsm8k", "#!/usr/bin/env bash", "/path/to/llama"])
def test_the_search_lets_portable_paths_pass(line: str):
    assert not offences(MACHINE_PATH, line)


@pytest.mark.parametrize("folder", ["longshot_jax", "scripts", "configs"])
def test_no_module_names_pytorch_or_tensorflow(folder: str):
    """In the source, so that imports inside functions are seen too; one such is the benchmark's baseline."""
    found, baseline = [], ROOT / "longshot_jax" / "benchmarks" / "torch_coconut.py"
    for path in (path for path in PYTHON_FILES if path.is_relative_to(ROOT / folder)):
        tree = ast.parse(path.read_text())
        for node in tree.body if path == baseline else ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in FOREIGN]
    assert not found


def test_every_module_imports_where_pytorch_and_tensorflow_are_missing():
    """In a fresh interpreter that hides them: some of our needs do import a PyTorch that they find by chance."""
    program = f"""
import importlib, importlib.machinery, pkgutil, sys

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {FOREIGN} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Hiding
import longshot_jax
names = [module.name for module in pkgutil.walk_packages(longshot_jax.__path__, "longshot_jax.")]
for name in names:
    importlib.import_module(name)
print(len(names), len({FOREIGN} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    imported, foreign = map(int, answer.stdout.split()[-2:])
    modules = [path for path in PYTHON_FILES if path.is_relative_to(ROOT / "longshot_jax")]
    assert imported == len(modules) - 1, "every module was imported; the package itself is not counted"
    assert foreign == 0


def test_every_config_says_what_it_is_for():
    configs = sorted((ROOT / "configs").rglob("*.py"))
    assert configs, "configs/ is empty"
    silent = [path.name for path in configs if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_no_line_of_a_library_reaches_the_user():
    """What transformers, JAX and orbax would advise: a tokenizer is made and a checkpoint written without a word."""
    program = """
import sys
sys.modules["torch"] = None  # as where it is not installed, of which transformers would tell
import tempfile
from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.data.tokenizer import Tokenizer
Tokenizer.for_chains().encode("a=1")
with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, 1, 0) as checkpoints:
    for step in range(3):
        checkpoints.save(step, {"x": 1.0}, {})
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
