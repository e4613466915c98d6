"""Can the Hugging Face hub be reached? Asked once, quickly, before a library starts its minute of retries."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def hub_reachable(timeout: float = 4.0) -> bool:
    """True if the hub answers within `timeout` seconds, with whatever status (proxies and HF_ENDPOINT count).

    With HF_HUB_OFFLINE=1 nothing is sent: the hub then counts as out of reach.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return True  # an answer, if not a friendly one
    except (OSError, ValueError):  # no route, no name, no such URL
        return False


@contextmanager
def cache_alone() -> Iterator[None]:
    """Within it the hub's libraries look into their caches alone, as if HF_HUB_OFFLINE had been set from the start."""
    import datasets.config  # takes more than a second, so only here
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
