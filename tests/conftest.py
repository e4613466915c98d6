"""Shared fixtures. Every shape annotation of the package is checked while the tests run."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The newer of jaxlib 0.10's two code generators for fused operations compiles the programs of the tests twice as long.
# Later releases have one and do not know the flag.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
# Only where there are shapes: a checked call costs as much as a small function.
_PACKAGE = Path(__file__).parents[1] / "longshot_jax"
_WITH_SHAPES = [
    ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
    for path in sorted(_PACKAGE.rglob("*.py"))
    if "jaxtyping" in path.read_text()
]
install_import_hook(_WITH_SHAPES, "shape_checks.check_functions")

import jax  # noqa: E402  (after the platform is chosen)

# On a busy machine any example may take long.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

jax.config.update("jax_default_matmul_precision", "highest")
# The tests compile many small programs and run each a few times: compiling is what they spend their time on. On a GPU
# (`make bench-gpu`) the programs are those of a run.
jax.config.update("jax_disable_most_optimizations", os.environ["JAX_PLATFORMS"] == "cpu")
# For the same reason compiled programs are kept, in this run and for the next one. Each worker has a folder of its own,
# because the cache does not write its files atomically.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "xla" / _WORKER))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_collection_finish():
    """Checkpoints look for unreachable arrays after every save, and need not look through all imported modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the public data sets: LONGSHOT_DATA, or ../shared/data beside the checkout."""
    named = os.environ.get("LONGSHOT_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no data folder: set LONGSHOT_DATA to a folder with gsm8k/, gsm8k_aug/, prosqa/, prontoqa/")
    return folder


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """A process may hold a limited number of memory maps, and each compiled program has hundreds."""
    yield
    jax.clear_caches()
