"""Every setting of a run, declared once: its type, bound, default and meaning."""

from longshot_jax.config.parse import default_config, extend, parse_config
from longshot_jax.config.run import RunConfig

__all__ = ["RunConfig", "default_config", "extend", "parse_config"]
