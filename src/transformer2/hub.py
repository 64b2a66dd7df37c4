"""Whether the Hub answers, asked once a process: without a network its client tries each request six times."""

from __future__ import annotations

from functools import cache

SECONDS = 5.0


@cache
def hub_answers() -> bool:
    """Whether one request reaches the Hub (or what HF_ENDPOINT names in its place) within `SECONDS`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # no name, no route, no such proxy, HF_HUB_OFFLINE: their errors share no class
        return False
    return True
