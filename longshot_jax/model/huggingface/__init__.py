"""Hugging Face directories of Llamas: `config.json`, and safetensors with the layout of their tensors."""

from longshot_jax.model.huggingface.config import read_config
from longshot_jax.model.huggingface.weights import load_weights, save_weights

__all__ = ["load_weights", "read_config", "save_weights"]
