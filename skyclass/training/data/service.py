"""Requests to a public web service: retries after passing faults, and errors that name the service and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from ...errors import SkyclassError
from ..progress import Progress

if TYPE_CHECKING:
    from requests import Response

T = TypeVar("T")

LONGEST_WAIT_S = 300.0
BUSY_STATUSES = (429, 502, 503, 504)
MESSAGE_CHARACTERS = 200

PASSING_FAULT = re.compile(
    r"time-?\s?out|timed? ?out|deadlock|per minute|transport-level|try again|temporar|unavailable|overload", re.I
)
"""Error texts after which the same request may succeed later."""

PAGES_KEPT = "the downloaded pages are kept, and the same command continues from them"
UNREACHABLE_REMEDY = (
    "the service cannot be reached: run this on a machine with access to it (on many clusters a login node, not a "
    f"compute node), or name a mirror; {PAGES_KEPT}"
)


class ServiceError(SkyclassError):
    """A public service does not answer, or refuses a request."""


class PassingFault(Exception):
    """The same request may succeed later, after `wait_s` seconds where the service names a time."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        self.wait_s = wait_s
        super().__init__(first_line(reason))


class Unreachable(PassingFault):
    """No connection to the service was established."""


class RequestRefused(Exception):
    """The service refuses the request: a retry is useless."""

    def __init__(self, reason: str) -> None:
        super().__init__(first_line(reason))


@dataclass(frozen=True)
class RetryPolicy:
    """How long one request may take, and how often it is repeated: the wait doubles after each attempt."""

    timeout_s: float
    retries: int
    backoff_s: float

    def waits_s(self) -> list[float]:
        """Return the wait after each attempt but the last."""
        return [self.backoff_s * 2**attempt for attempt in range(self.retries)]


@dataclass(frozen=True)
class Request:
    """A request as messages describe it: `service` and its address, what is `requested`, and the `remedy`."""

    service: str
    requested: str
    remedy: str

    def error(self, problem: str, remedy: str | None = None) -> ServiceError:
        """Return the error that reports a problem with this request."""
        return ServiceError(f"{self.service}, asked for {self.requested}: {problem} - {remedy or self.remedy}")


def fetch(
    request: Request,
    send: Callable[[], Response],
    read: Callable[[Response], T],
    policy: RetryPolicy,
    progress: Progress,
) -> T:
    """Return what `read` makes of the answer to a request, which is sent again after each `PassingFault`.

    `progress` gets {"step": "wait", "service", "seconds", "reason"} before each wait. Raises `ServiceError` when the
    service refuses the request, or after the last attempt.
    """
    for attempt, backoff_s in enumerate([*policy.waits_s(), None], 1):
        try:
            return read(_send(send, policy.timeout_s))
        except RequestRefused as error:
            raise request.error(f"it refused: {error}") from error
        except PassingFault as error:
            if backoff_s is None:
                remedy = UNREACHABLE_REMEDY if isinstance(error, Unreachable) else None
                raise request.error(f"no answer in {attempt} attempts, the last: {error}", remedy) from error
            wait_s = backoff_s if error.wait_s is None else error.wait_s
            progress({"step": "wait", "service": request.service, "seconds": wait_s, "reason": str(error)})
            sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _send(send: Callable[[], Response], timeout_s: float) -> Response:
    """Return the answer that `send` gets; network errors and busy services become `PassingFault`."""
    import requests

    try:
        response = send()
        _ = response.content  # a broken body is a fault of the request
    except requests.RequestException as error:
        cause = str(error).rpartition("Caused by ")[2]
        if isinstance(error, requests.Timeout) or "timed out" in cause:
            raise PassingFault(f"silence for {timeout_s:g} s (time-out)") from error
        unreachable = cause.startswith(("NewConnectionError", "NameResolutionError"))
        raise (Unreachable if unreachable else PassingFault)(f"connection failed, {cause}") from error
    if response.status_code in BUSY_STATUSES:
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        raise PassingFault(f"HTTP {response.status_code} {response.reason}: {first_line(response.text)}", wait_s)
    return response


def reported_fault(reason: str) -> PassingFault | RequestRefused:
    """Return the fault that a service reports in words: some texts say that the same request may succeed later."""
    return (PassingFault if PASSING_FAULT.search(reason) else RequestRefused)(reason)


def check_status(response: Response, text: str) -> None:
    """Raise for any other error status: a server error may pass, a client error does not."""
    if response.status_code >= 400:
        reason = f"HTTP {response.status_code} {response.reason}: {first_line(text)}"
        raise PassingFault(reason) if response.status_code >= 500 else RequestRefused(reason)


def retry_after_s(header: str | None) -> float | None:
    """Return the wait of a Retry-After header in seconds, at most `LONGEST_WAIT_S`; None without a valid header.

    The header holds seconds or a date (RFC 9110).
    """
    if header is None:
        return None
    try:
        if header.strip().isdigit():
            return min(float(header), LONGEST_WAIT_S)
        seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def text_of_html(html: str) -> str:
    """Return the visible text of a web page on one line."""
    body = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def first_line(answer: str) -> str:
    """Return the start of an answer for a message: its first line, or the text of a web page."""
    if answer.lstrip().startswith("<"):
        line = text_of_html(answer)
    else:
        line = next((line for line in answer.splitlines() if line.strip()), "")
    return line.strip()[:MESSAGE_CHARACTERS] or "nothing"
