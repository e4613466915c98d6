"""What lies at a place where the weights of a Hugging Face Llama were expected, and how they are had from it."""

from pathlib import Path

_LARGE_FILE_POINTER = b"version https://git-lfs"


def other_form(place: Path) -> str | None:
    """One clause about weights in another form, with the way to the form that is read; None if there is nothing known."""
    if place.suffix.lower() == ".gguf" or _first(place, "*.gguf"):
        return "GGUF is not read: give the folder from which it was converted"
    if _first(place, "adapter_config.json"):
        return "adapters of PEFT are not read: merge them into their model (merge_and_unload) and save that with save_pretrained"
    if _first(place, "consolidated*.pth") or _first(place, "params.json"):
        return "Meta's own form is not read: give the same model in Hugging Face's form"
    if bin_file := _first(place, "pytorch_model*.bin"):
        return (
            f"{bin_file.name} is not read: write safetensors with transformers, "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    if shard := _first(place, "model-*-of-*.safetensors"):
        return (
            f"{shard.name} needs the index of the shards, model.safetensors.index.json: copy it from the model's source"
        )
    return None


def is_large_file_pointer(file: Path) -> bool:
    """Whether git has left a pointer of its large file storage where the file belongs."""
    with file.open("rb") as opened:
        return opened.read(len(_LARGE_FILE_POINTER)) == _LARGE_FILE_POINTER


def _first(folder: Path, pattern: str) -> Path | None:
    try:
        return min(folder.glob(pattern), default=None)
    except OSError:  # one that may not be read is named by whoever reads it
        return None
