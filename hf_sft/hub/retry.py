"""Errors of the Hub: passing ones are retried; others become a message that says what to do and holds no token."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from hf_sft.config.process import environment
from hf_sft.errors import HubError, first_line

T = TypeVar("T")

WAITS = (1, 2, 4, 8)
"""Seconds before the second try, and so on; longer where the Hub asks for it."""
PATIENCE = 60
"""Seconds after which nothing is tried anew."""
SILENCE = 60
"""Seconds without a byte after which a connection is given up; huggingface_hub waits for ever."""
PASSING = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may do."""
XET = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "5", "HF_XET_CLIENT_RETRY_MAX_DURATION": "60s"}
"""The transfer of large files retries for ever otherwise."""


def with_retries(call: Callable[[], T], though_lost: bool = True) -> T:
    """Try again what may pass. `though_lost` says whether that is harmless where it was done and only the answer was lost."""
    started = time.monotonic()
    for pause in (*WAITS, None):
        try:
            with environment(XET), _timeout(SILENCE):
                return call()
        except (OSError, RuntimeError, httpx2.HTTPError) as error:
            wait = _passes(error, though_lost)
            if pause is None or wait is None or time.monotonic() - started + max(pause, wait) > PATIENCE:
                raise
            time.sleep(max(pause, wait))
    raise AssertionError


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """A limit for connections of huggingface_hub, which the whole program shares."""
    session = get_session()
    before, session.timeout = session.timeout, httpx2.Timeout(seconds)
    try:
        yield
    finally:
        session.timeout = before


def _passes(error: BaseException, though_lost: bool) -> float | None:
    """Whether the same may do another time: the seconds that the Hub asks to wait before, or None."""
    for each in _causes(error):
        if isinstance(each, OfflineModeIsEnabled):
            return None
        if isinstance(each, HfHubHTTPError):
            wait = each.response.headers.get("Retry-After", "0")
            passing = each.response.status_code in PASSING
            return (float(wait) if wait.isdecimal() else 0.0) if passing else None
        if isinstance(each, httpx2.TransportError | ConnectionError):
            return 0.0 if though_lost or isinstance(each, httpx2.ConnectError) else None
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def explained(repo_id: str, before: str = "") -> Iterator[None]:
    """What goes wrong on the network becomes one `HubError`, without tokens."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, httpx2.HTTPError) as error:
        raise HubError(before + _explain(error, repo_id)) from None


def _explain(error: BaseException, repo_id: str) -> str:
    where = constants.ENDPOINT
    for each in _causes(error):
        if isinstance(each, OfflineModeIsEnabled):
            return "the Hub is switched off (HF_HUB_OFFLINE).  Unset it to publish."
        if isinstance(each, HfHubHTTPError):
            status, reason = each.response.status_code, each.server_message or (str(each).strip().splitlines() or [""])[-1]
            return f"{where} says {status} ({reason}): {_advice(status, repo_id)}"
        if isinstance(each, httpx2.HTTPError | ConnectionError):
            return f"{where} can't be reached, or stopped answering ({type(each).__name__}: {each}).  Try again later."
    return first_line(error)


def _advice(status: int, repo_id: str) -> str:
    known = {
        401: "it does not know this token.  Log in: hf auth login; or set HF_TOKEN.",
        403: f"this token may not write to `{repo_id}`.  Use one that may, or a repository of your own.",
        404: f"there is no `{repo_id}`, or no such revision of it, that this token may see.",
        409: f"`{repo_id}` is in the way, or somebody is writing to it at the same time.  Look there, and publish again.",
        412: f"`{repo_id}` has changed meanwhile.  Look there, and publish again.",
        429: "too many requests; it was waited for as long as a minute.  Try again later.",
    }
    if status in known:
        return known[status]
    return "it is in trouble; it was tried for as long as a minute.  Try again later." if status >= 500 else "it refuses."
