"""Exceptions that nobody foresaw: logged whole, told to the caller as a reference into the log."""

from __future__ import annotations

import logging
import secrets

from quill.errors import Code, Internal, RpcError

_log = logging.getLogger("quill.llm")


def status_of(error: BaseException) -> RpcError:
    """The status that an exception ends a call with.

    An RpcError is its own status. Anything else is INTERNAL: its text may hold what callers must not see, so it
    goes into the log under a reference, and the caller gets the reference.
    """
    if isinstance(error, RpcError) and error.code is not Code.OK:
        return error
    reference = secrets.token_hex(6)
    _log.error("internal error; reference %s", reference, exc_info=error)
    return Internal(f"internal error; reference {reference}")
