"""Tiny random models of every supported family, a toy tokenizer, and no network."""

import os
import socket

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ["COLUMNS"] = "160"

import pytest
import torch
import transformers
from families import FAMILIES, build, toy_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Let nothing leave this machine (asyncio and multiprocessing need local sockets)."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(f"the tests must not use the network (tried {address})")
        return connect(self, address)

    socket.socket.connect = refuse
    transformers.utils.logging.set_verbosity_error()
    yield
    socket.socket.connect = connect


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def bert():
    return build("bert")


@pytest.fixture
def llama():
    return build("llama")


@pytest.fixture(scope="session")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
