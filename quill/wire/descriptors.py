"""Method descriptors by name: which messages a method takes and returns."""

from __future__ import annotations

import importlib

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool

_OWN_PACKAGE = "inference.v1."

_found: dict[tuple[str, str], MethodDescriptor] = {}
"""Methods of generated modules, which stay for good. One that is not there may be imported later."""


def refuses_unknown_fields(service: str) -> bool:
    """Whether JSON for a service must know its fields: in Quill's own contract what is misspelt must not pass.

    Services of others may have fields that this process does not know yet.
    """
    return service.startswith(_OWN_PACKAGE)


def find_method(service: str, method: str, pool: DescriptorPool | None = None) -> MethodDescriptor | None:
    """The descriptor of a method, with ``input_type`` and ``output_type``; None where the pool has no such method.

    Args:
        service: Fully qualified: ``inference.v1.LLMService``.
        method: ``Generate``.
        pool: Where to look. By default the pool that holds every generated module imported so far; for services of
            inference.v1 Quill's own are imported first.
    """
    if pool is None:
        if (known := _found.get((service, method))) is not None:
            return known
        if service.startswith(_OWN_PACKAGE):
            importlib.import_module("quill.proto")
        pool = descriptor_pool.Default()
    if not (service + method).isascii():  # protobuf's own look-ups fail on names that have no UTF-8
        return None
    try:
        found = pool.FindServiceByName(service).methods_by_name.get(method)
    except KeyError:
        return None
    if found is not None and pool is descriptor_pool.Default():
        _found[service, method] = found
    return found


def has_no_side_effects(service: str, method: str) -> bool:
    """Whether a unary method declares ``idempotency_level = NO_SIDE_EFFECTS``, as calls by HTTP GET require."""
    descriptor = find_method(service, method)
    return descriptor is not None and promises_no_side_effects(descriptor)


def promises_no_side_effects(descriptor: MethodDescriptor) -> bool:
    """As ``has_no_side_effects``, of a method whose descriptor is known."""
    if descriptor.client_streaming or descriptor.server_streaming:
        return False
    return bool(descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS)
