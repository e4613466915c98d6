"""Checks whether the Hugging Face hub is reachable, before a library starts a minute of retries."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any


def hub_reachable() -> bool:
    """True if the hub (HF_ENDPOINT, by proxy if set) answers in four seconds; False if HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=4.0):
            return True
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return True
    except (OSError, ValueError, HTTPException):  # no route, unknown host, invalid URL, no HTTP server there
        return False


@contextmanager
def cache_alone() -> Iterator[None]:
    """Restricts the hub's libraries to their caches, as if HF_HUB_OFFLINE had been set before their import."""
    import datasets.config  # takes more than a second
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
