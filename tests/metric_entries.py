"""The tags of docs/metrics.md, compared with those of a run."""

import re
from pathlib import Path

from test_tensorboard import read

_METRICS = Path(__file__).parents[1] / "docs" / "metrics.md"
_PLACES = {
    "N": r"\d+",
    "KIND": "(stops|thoughts|tokens|trajectory_counts)",
    "GUIDANCE": "(target|explanation|distillation|text|stop)",
}


def tags_of(folder: Path) -> set[str]:
    """All tags in a folder of events, as the document names them."""
    events = read(folder)
    kinds = events.Tags()
    found = {tag for kind in ("scalars", "histograms", "images", "tensors") for tag in kinds[kind]}
    found |= {tag for tag in events.summary_metadata if tag.startswith("_hparams_")}
    return {tag.removesuffix("/text_summary") for tag in found}


def entries_and_tags(tags: set[str]) -> tuple[set[str], set[str]]:
    """Entries of the document without a tag, and tags without exactly one entry."""
    rows = [line.split("|")[1] for line in _METRICS.read_text().splitlines() if line.startswith("| `")]
    entries = [entry for row in rows for entry in re.findall(r"`([^`]+)`", row)]
    assert len(entries) == len(set(entries)), "an entry stands twice"
    meant = {tag: [entry for entry in entries if re.fullmatch(_pattern(entry), tag)] for tag in tags}
    named = {entry for found in meant.values() for entry in found}
    return set(entries) - named, {tag for tag, found in meant.items() if len(found) != 1}


def _pattern(entry: str) -> str:
    return re.sub(r"(?<=[_/])(N|KIND|GUIDANCE)(?=[_/]|$)", lambda place: _PLACES[place[0]], entry)
