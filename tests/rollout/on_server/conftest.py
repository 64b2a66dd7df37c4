"""A real vLLM server with the embedded model, one for all tests; see `nox -s vllm`.

The folder is not called vllm: on the path of the tests it would pass for the package (TRL looks for its version).
"""

import os
from collections.abc import Iterator

import pytest
import torch

from transformer2 import tiny
from transformer2.rollout.server import PYTHON_VARIABLE, Server, VLLMOptions


@pytest.fixture(scope="session", autouse=True)
def has_vllm() -> None:
    if PYTHON_VARIABLE not in os.environ:
        pytest.skip(f"${PYTHON_VARIABLE} names no interpreter with vLLM: nox -s vllm makes one")


@pytest.fixture(scope="session")
def server(has_vllm: None) -> Iterator[Server]:
    running = Server(VLLMOptions(), str(tiny.model_path()), "float32", on_gpu=torch.cuda.is_available())
    yield running
    running.stop()
