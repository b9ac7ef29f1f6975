"""Quill: call, serve and stream tensors and LLM tokens over gRPC and Connect from one .proto contract.

Every name of ``__all__`` loads its module when it is first asked for, so that ``import quill`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quill.version import VERSION

if TYPE_CHECKING:
    from quill.client.async_client import AsyncQuillClient
    from quill.client.interceptors import CallInfo, CallOutcome
    from quill.client.llm.async_session import AsyncSession
    from quill.client.llm.async_stream import AsyncGenerationStream
    from quill.client.llm.conversation import ChatMessage, ContentPart, ResponseFormat, Tool
    from quill.client.llm.embeddings import Embeddings
    from quill.client.llm.model import Model
    from quill.client.llm.request import GenerateOptions
    from quill.client.llm.sync_session import Session
    from quill.client.llm.sync_stream import GenerationStream
    from quill.client.llm.tokenization import Tokenization
    from quill.client.sync_client import QuillClient
    from quill.client.tensors.inference import InferOptions
    from quill.client.tensors.result import InferResult, TransferProgress
    from quill.client.tensors.signature import TensorSignature
    from quill.client.tls import ClientTls
    from quill.client.transport import ResponseMetadata
    from quill.dtype import DType
    from quill.errors import (
        Aborted,
        AlreadyExists,
        Cancelled,
        Code,
        DataLoss,
        DeadlineExceeded,
        ErrorDetail,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        InvalidType,
        InvalidUsage,
        LocalError,
        NotFound,
        OutOfRange,
        PermissionDenied,
        QuillError,
        ResourceExhausted,
        RpcError,
        Unauthenticated,
        Unavailable,
        Unimplemented,
    )
    from quill.generation import (
        Choice,
        Delta,
        Finish,
        FinishReason,
        Generation,
        StreamInterrupted,
        Timings,
        ToolCall,
        Usage,
    )
    from quill.limits import Limits, Quota
    from quill.principal import Principal
    from quill.server.auth import Auth
    from quill.server.server import Server
    from quill.server.tls import Tls
    from quill.tensor import Tensor, TensorMeta
    from quill.tensor.spec import TensorSpec
    from quill.token import Token, TokenBatch, TopLogprob

__version__ = VERSION

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncGenerationStream",
    "AsyncQuillClient",
    "AsyncSession",
    "Auth",
    "CallInfo",
    "CallOutcome",
    "Cancelled",
    "ChatMessage",
    "Choice",
    "ClientTls",
    "Code",
    "ContentPart",
    "DType",
    "DataLoss",
    "DeadlineExceeded",
    "Delta",
    "Embeddings",
    "ErrorDetail",
    "FailedPrecondition",
    "Finish",
    "FinishReason",
    "GenerateOptions",
    "Generation",
    "GenerationStream",
    "InferOptions",
    "InferResult",
    "Internal",
    "InvalidArgument",
    "InvalidType",
    "InvalidUsage",
    "Limits",
    "LocalError",
    "Model",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "Principal",
    "QuillClient",
    "QuillError",
    "Quota",
    "ResourceExhausted",
    "ResponseFormat",
    "ResponseMetadata",
    "RpcError",
    "Server",
    "Session",
    "StreamInterrupted",
    "Tensor",
    "TensorMeta",
    "TensorSignature",
    "TensorSpec",
    "Timings",
    "Tls",
    "Token",
    "TokenBatch",
    "Tokenization",
    "Tool",
    "ToolCall",
    "TopLogprob",
    "TransferProgress",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
]

_MODULES = {
    "AsyncGenerationStream": "quill.client.llm.async_stream",
    "AsyncQuillClient": "quill.client.async_client",
    "AsyncSession": "quill.client.llm.async_session",
    "Auth": "quill.server.auth",
    "CallInfo": "quill.client.interceptors",
    "CallOutcome": "quill.client.interceptors",
    "ChatMessage": "quill.client.llm.conversation",
    "Choice": "quill.generation",
    "ClientTls": "quill.client.tls",
    "ContentPart": "quill.client.llm.conversation",
    "DType": "quill.dtype",
    "Delta": "quill.generation",
    "Embeddings": "quill.client.llm.embeddings",
    "Finish": "quill.generation",
    "FinishReason": "quill.generation",
    "GenerateOptions": "quill.client.llm.request",
    "Generation": "quill.generation",
    "GenerationStream": "quill.client.llm.sync_stream",
    "InferOptions": "quill.client.tensors.inference",
    "InferResult": "quill.client.tensors.result",
    "Limits": "quill.limits",
    "Model": "quill.client.llm.model",
    "Principal": "quill.principal",
    "QuillClient": "quill.client.sync_client",
    "Quota": "quill.limits",
    "ResponseFormat": "quill.client.llm.conversation",
    "ResponseMetadata": "quill.client.transport",
    "Server": "quill.server.server",
    "Session": "quill.client.llm.sync_session",
    "StreamInterrupted": "quill.generation",
    "Tensor": "quill.tensor",
    "TensorMeta": "quill.tensor",
    "TensorSignature": "quill.client.tensors.signature",
    "TensorSpec": "quill.tensor.spec",
    "Timings": "quill.generation",
    "Tls": "quill.server.tls",
    "Token": "quill.token",
    "TokenBatch": "quill.token",
    "Tokenization": "quill.client.llm.tokenization",
    "Tool": "quill.client.llm.conversation",
    "ToolCall": "quill.generation",
    "TopLogprob": "quill.token",
    "TransferProgress": "quill.client.tensors.result",
    "Usage": "quill.generation",
}
"""Where each name comes from; what is not here is in quill.errors."""

if not TYPE_CHECKING:  # a type checker that saw this would take every misspelt name for Any

    def __getattr__(name: str) -> Any:
        """Load a public name when it is first asked for, and keep it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES.get(name, "quill.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The public names, loaded or not, and what a module has besides."""
    return sorted({*globals(), *__all__})
