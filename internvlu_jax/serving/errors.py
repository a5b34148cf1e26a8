"""What a client is told that does not get what it asked for: a status and one sentence, in OpenAI's form."""

from __future__ import annotations

import logging
from typing import Any

from internvlu_jax.utils.failures import one_line

log = logging.getLogger("internvlu_jax.serving")

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_LONGEST = 400  # characters of a sentence of the pipeline's; longer ones come from elsewhere, and are for the log


class Refused(Exception):
    """Ends a request with a status and a sentence that is for the client's eyes.

    param: the field that is at fault. code: as OpenAI's clients know them. retry_after: seconds.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Those that go with the status."""
        extra = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        return extra | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refusal(error: BaseException) -> Refused:
    """What a client hears of an error of the pipeline.

    A ValueError in one line is what the pipeline says of its arguments. All else may name files of this machine, so it
    goes to the log alone.
    """
    if isinstance(error, Refused):
        return error
    said = str(error)
    if isinstance(error, ValueError) and "\n" not in said and len(said) <= _LONGEST:
        return Refused(400, one_line(error))
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        log.error("out of memory: %s", one_line(error))
        return Refused(503, "there is not memory enough for this; ask for a smaller picture or a shorter text")
    return unexpected(error)


def unexpected(error: BaseException) -> Refused:
    """What a client hears of a fault of the server's own, which goes to the log."""
    log.error("a request failed", exc_info=error)
    return Refused(500, "the server failed at this request; its log says why")
