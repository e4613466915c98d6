"""LongShot JAX: reasoning in continuous thoughts with Llama, trained by curriculum and PPO."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshot_jax.longshot import LongShot

__all__ = ["LongShot"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `import longshot_jax.errors` need not load jax.
    if name == "LongShot":
        from longshot_jax.longshot import LongShot

        return LongShot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
