"""Methods by name: what a bare look-up finds, and what it does not import."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool

from quill.proto import GenerateRequest, StreamGenerateResponse
from quill.wire.descriptors import find_method


def test_a_method_of_the_contract_is_found_with_its_messages():
    method = find_method("inference.v1.LLMService", "StreamGenerate")
    assert method.input_type is GenerateRequest.DESCRIPTOR
    assert method.output_type is StreamGenerateResponse.DESCRIPTOR
    assert method.server_streaming


def test_the_contract_is_imported_when_it_is_asked_for():
    program = """
import sys
from quill.wire.descriptors import find_method
assert find_method("grpc.health.v1.Health", "Check") is None
assert "quill.proto" not in sys.modules
assert find_method("inference.v1.TensorService", "Infer").input_type.full_name == "inference.v1.InferRequest"
import grpc_health.v1.health_pb2
assert find_method("grpc.health.v1.Health", "Check").input_type.full_name == "grpc.health.v1.HealthCheckRequest"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("inference.v1.LLMService", "Nothing"),
        ("inference.v1.Nothing", "Generate"),
        ("inference.v1.GenerateRequest", "Generate"),
        ("", ""),
        ("inference.v1.LLMService", "\ud800"),
        ("inference.v1.\ud800", "Generate"),
    ],
)
def test_what_does_not_exist_is_none(service, method):
    assert find_method(service, method) is None


def test_a_pool_of_its_own_is_searched_alone():
    assert find_method("inference.v1.LLMService", "Generate", descriptor_pool.DescriptorPool()) is None
