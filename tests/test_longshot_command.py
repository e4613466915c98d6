"""The command `longshot`: the scripts as verbs, from a checkout and from a wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


def longshot(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from longshot_jax.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)


def test_it_lists_the_scripts_as_verbs_and_names_the_nearest():
    listed = longshot()
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines() if line.startswith("  ")] == SCRIPTS
    wrong = longshot("trian")
    assert wrong.returncode == 2 and "no verb 'trian': did you mean 'train'?" in wrong.stderr


def test_a_verb_takes_the_options_of_its_script():
    shown = longshot("eval", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: longshot eval") and "--compare" in shown.stdout
    refused = longshot("eval", "--checkpoint", "/no/such", "--output", "x.json")
    assert refused.returncode == 2 and "/no/such" in refused.stderr


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_the_scripts(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--disable-pip-version-check",
        "-q",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "longshot_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)) for path in files} <= names
    assert {f"longshot_jax/scripts/{name}.py" for name in SCRIPTS} <= names
    assert not any(name.startswith(("tests/", "configs/")) for name in names)
