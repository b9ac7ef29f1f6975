"""Whoever bounds tokens is told how many a run used, however it ends."""

import asyncio

import pytest

from quill.principal import token_meter
from quill.server.server import Server
from quill.limits import Quota
from quill.llm import LLMServicer
from quill.proto import GenerateRequest, LLMServiceStub, add_LLMServiceServicer_to_server
