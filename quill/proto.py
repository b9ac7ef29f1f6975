"""The generated contract for Python users: messages, enums, servicers and stubs of inference.v1.

    from quill.proto import GenerateRequest, LLMServiceServicer, add_LLMServiceServicer_to_server

The messages load at once; stubs and servicers load grpc when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quill._gen.inference.v1.llm_pb2 import (
    CancelGenerateRequest,
    CancelGenerateResponse,
    ChatMessage,
    Choice,
    Choices,
    Completed,
    ContentPart,
    Delta,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbedInput,
    EmbedRequest,
    EmbedResponse,
    ErrorDetail,
    Finish,
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    Pooling,
    PromptProgress,
    ResponseFormat,
    Resume,
    SequenceDone,
    SessionAck,
    SessionCancel,
    SessionError,
    SessionEvent,
    SessionRequest,
    SessionResponse,
    SessionStart,
    Started,
    StreamGenerateResponse,
    StreamOptions,
    Timings,
    TokenIds,
    TokenizeRequest,
    TokenizeResponse,
    Tool,
    ToolCall,
    Usage,
)
from quill._gen.inference.v1.tensor_pb2 import (
    Compression,
    DataType,
    Device,
    LaneRef,
    Tensor,
    TensorChunk,
    TensorMeta,
)
from quill._gen.inference.v1.tensor_service_pb2 import (
    GetTensorModelRequest,
    GetTensorModelResponse,
    InferHeader,
    InferRequest,
    InferResponse,
    LaneKind,
    NegotiateLaneRequest,
    NegotiateLaneResponse,
    SharedMemoryLane,
    SocketLane,
    StreamInferRequest,
    StreamInferResponse,
)
from quill._gen.inference.v1.token_pb2 import (
    Token,
    TokenBatch,
    TokenColumns,
    TopLogprob,
)

if TYPE_CHECKING:
    from quill._gen.inference.v1.llm_pb2_grpc import (
        LLMServiceServicer,
        LLMServiceStub,
        add_LLMServiceServicer_to_server,
    )
    from quill._gen.inference.v1.tensor_service_pb2_grpc import (
        TensorServiceServicer,
        TensorServiceStub,
        add_TensorServiceServicer_to_server,
    )

_LAZY = {
    "LLMServiceServicer": "llm_pb2_grpc",
    "LLMServiceStub": "llm_pb2_grpc",
    "add_LLMServiceServicer_to_server": "llm_pb2_grpc",
    "TensorServiceServicer": "tensor_service_pb2_grpc",
    "TensorServiceStub": "tensor_service_pb2_grpc",
    "add_TensorServiceServicer_to_server": "tensor_service_pb2_grpc",
}

__all__ = [
    "CancelGenerateRequest",
    "CancelGenerateResponse",
    "ChatMessage",
    "Choice",
    "Choices",
    "Completed",
    "Compression",
    "ContentPart",
    "DataType",
    "Delta",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "Device",
    "EmbedInput",
    "EmbedRequest",
    "EmbedResponse",
    "ErrorDetail",
    "Finish",
    "FinishReason",
    "GenerateRequest",
    "GenerateResponse",
    "GetModelRequest",
    "GetModelResponse",
    "GetTensorModelRequest",
    "GetTensorModelResponse",
    "InferHeader",
    "InferRequest",
    "InferResponse",
    "LLMServiceServicer",
    "LLMServiceStub",
    "LaneKind",
    "LaneRef",
    "ListModelsRequest",
    "ListModelsResponse",
    "Model",
    "NegotiateLaneRequest",
    "NegotiateLaneResponse",
    "Pooling",
    "PromptProgress",
    "ResponseFormat",
    "Resume",
    "SequenceDone",
    "SessionAck",
    "SessionCancel",
    "SessionError",
    "SessionEvent",
    "SessionRequest",
    "SessionResponse",
    "SessionStart",
    "SharedMemoryLane",
    "SocketLane",
    "Started",
    "StreamGenerateResponse",
    "StreamInferRequest",
    "StreamInferResponse",
    "StreamOptions",
    "Tensor",
    "TensorChunk",
    "TensorMeta",
    "TensorServiceServicer",
    "TensorServiceStub",
    "Timings",
    "Token",
    "TokenBatch",
    "TokenColumns",
    "TokenIds",
    "TokenizeRequest",
    "TokenizeResponse",
    "Tool",
    "ToolCall",
    "TopLogprob",
    "Usage",
    "add_LLMServiceServicer_to_server",
    "add_TensorServiceServicer_to_server",
]


def __getattr__(name: str) -> Any:
    """Load a stub or servicer when it is first asked for."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"quill._gen.inference.v1.{module}"), name)
