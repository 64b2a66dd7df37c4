"""What goes wrong with a request, in OpenAI's error shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from transformer2.errors import LengthError, UnknownExpertError, UserError, one_line, shown

__all__ = ["Fault", "as_fault", "handle_faults"]

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Fault(Exception):
    """A request that is refused, or that failed.

    Args:
        status: HTTP status.
        message: One line that names the thing and the remedy.
        code: OpenAI's word for it.
        param: The field of the request.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """The response that says so."""
        return JSONResponse(self.body, self.status, self.headers)


def as_fault(error: BaseException, prompt: str | None = None) -> Fault:
    """Any error of a request that could not be started or answered; `prompt` is the field that holds its prompt."""
    match error:
        case Fault():
            return error
        case UnknownExpertError():
            return Fault(404, str(error), "model_not_found", "model")
        case LengthError():
            return Fault(400, str(error), "context_length_exceeded", prompt)
        case UserError():
            return Fault(400, str(error))
        case HTTPException():
            return Fault(error.status_code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return _of_field(max(error.errors(), key=_tells))
    return Fault(500, f"the server failed: {one_line(Exception(error))}", "internal_error")


def handle_faults(app: FastAPI, count: Callable[[Fault], None]) -> None:
    """Let every error of an app have OpenAI's shape, and be counted."""

    async def respond(request: Request, error: Exception) -> JSONResponse:
        fault = as_fault(error, "messages" if "/chat/" in request.url.path else "prompt")
        count(fault)
        return fault.response()

    for kind in (Fault, UserError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, respond)


def _tells(found: Mapping[str, Any]) -> tuple[bool, bool, list[int]]:
    """How much an error tells: for a field of several types there is one of each, and most say that it is no other."""
    kind, loc = found["type"], found["loc"]
    return kind == "value_error", not kind.endswith("_type"), [part for part in loc if isinstance(part, int)]


def _of_field(found: Mapping[str, Any]) -> Fault:
    if found["type"] == "json_invalid":
        return Fault(400, f"the body is not JSON ({found['ctx']['error']})")
    path = [str(part) for part in found["loc"][1:]]
    field = ".".join(part for part in path if (part.isidentifier() and part not in ("str", "int")) or part.isdigit())
    if not field and found["type"] != "value_error":
        return Fault(400, "the body must be a JSON object, sent as application/json")
    message = str(found["msg"]).removeprefix("Value error, ")
    return Fault(400, shown(f"{field}: {message}" if field else message, 400), param=field or None)
