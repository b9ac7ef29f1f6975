import ast
import importlib
import importlib.metadata
from pathlib import Path

import pytest

import quill

# The public names. A change here is a change for users: write it into CHANGELOG.md.
PUBLIC = [
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

HOMES = {
    "AsyncQuillClient": "quill.client.async_client",
    "QuillClient": "quill.client.sync_client",
    "ResponseMetadata": "quill.client.transport",
    "Server": "quill.server.server",
}


def test_the_public_names_are_exactly_these():
    assert sorted(quill.__all__) == PUBLIC
    assert len(set(quill.__all__)) == len(quill.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    value = getattr(quill, name)
    assert value.__name__ == name
    assert value.__module__.startswith(HOMES.get(name, "quill."))
    assert getattr(quill, name) is value


def test_a_type_checker_sees_every_public_name_where_it_lives():
    block = next(
        node
        for node in ast.parse(Path(quill.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == PUBLIC
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(quill, name)


def test_dir_lists_the_public_names_before_they_are_loaded():
    assert set(PUBLIC) <= set(dir(quill))
    assert "__version__" in dir(quill)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'quill' has no attribute 'Tenser'"):
        _ = quill.Tenser


def test_the_version_is_that_of_the_distribution():
    assert quill.__version__ == importlib.metadata.version("quill-rpc")
