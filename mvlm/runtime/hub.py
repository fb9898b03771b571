"""Asks once whether the Hugging Face hub answers: without a network its clients try for most of a minute and fill the
screen, though this machine's cache may have all that is needed."""

from __future__ import annotations

import functools
import threading

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from mvlm.errors import first_line
from mvlm.runtime.log import log

PATIENCE = 10.0
"""Seconds that the hub gets to answer, including the look-up of its name."""


def ask() -> None:
    """Have the hub's clients read only this machine's cache if the hub does not answer; call before a download."""
    if not constants.HF_HUB_OFFLINE and (missing := absence(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True
        log.warning(f"{missing}: only this machine's cache is used.")


def why_offline() -> str:
    """Why nothing is fetched; "" if the hub may be asked."""
    return _found_absent() or ("HF_HUB_OFFLINE forbids fetching them" if constants.HF_HUB_OFFLINE else "")


def reason(error: Exception) -> str:
    """The first line of an error of the hub's clients and, if that was found, that the hub does not answer."""
    said = first_line(error)
    return f"{said}; {missing}" if (missing := _found_absent()) else said


def _found_absent() -> str:
    """What `ask` found wrong; "" if it has not asked."""
    return absence(constants.ENDPOINT) if absence.cache_info().currsize else ""


@functools.cache
def absence(endpoint: str) -> str:
    """What is wrong with a hub, in half a sentence; "" if it answers."""
    found = [f"{endpoint} does not answer within {PATIENCE:.0f} s"]

    def knock() -> None:
        try:
            answer = get_session().head(endpoint, timeout=PATIENCE)
        except Exception as error:  # the client raises many kinds; all mean that the hub cannot be used
            found[0] = f"{endpoint} does not answer ({first_line(error)})"
        else:
            found[0] = f"{endpoint} answers with {answer.status_code}" if answer.status_code >= 500 else ""

    asking = threading.Thread(target=knock, daemon=True)  # the look-up of a name has no time limit
    asking.start()
    asking.join(PATIENCE)
    return found[0]
