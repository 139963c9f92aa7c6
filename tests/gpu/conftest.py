"""Tests for a GPU. ``HEADPRUNE_TEST_DEVICE=cpu`` runs them without one, on the CPU or on a device that pretends to be apart."""

import os
import warnings
from contextlib import contextmanager

import pretended_device
import pytest
import torch

ASKED = os.environ.get("HEADPRUNE_TEST_DEVICE")
# Beside other tests on the same card, those that fill its memory would disturb them: scripts/gpu-check runs these alone.
ALONE = ASKED == "cuda" or "PYTEST_XDIST_WORKER" not in os.environ
ON_GPU = torch.cuda.is_available() and ASKED != "cpu" and ALONE

if ASKED == "cpu" and pretended_device.AVAILABLE:
    pretended_device.set_up()  # now: torch counts devices when it first runs a backward


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not ON_GPU and ASKED != "cpu":
                item.add_marker(pytest.mark.skip(reason="no GPU, or not alone on it"))


@pytest.fixture(scope="session")
def on_gpu():
    return ON_GPU


@pytest.fixture
def device():
    """The GPU, or the CPU in its place."""
    return torch.device("cuda:0" if ON_GPU else "cpu")


@pytest.fixture
def apart():
    """A device whose tensors can't meet those of the CPU: the GPU, or one that pretends."""
    if ON_GPU:
        yield torch.device("cuda:0")
    elif pretended_device.AVAILABLE:
        torch.__future__.set_swap_module_params_on_conversion(True)
        pretended_device.WAITS.clear()
        with pretended_device.Pretending():
            yield pretended_device.DEVICE
        torch.__future__.set_swap_module_params_on_conversion(False)
    else:
        yield torch.device("cpu")


@contextmanager
def synchronising(mode):
    """Let torch warn of everything that the host waits for, or raise; yields the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # also for the one that says that this mode is a prototype
        try:
            torch.cuda.set_sync_debug_mode(mode)
            caught.clear()
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def waits(apart):
    """A function that returns what the host waits for while ``run`` runs."""
    if apart.type == "cpu":
        pytest.skip("this torch can't pretend to be a device")

    def count(run):
        if apart.type != "cuda":
            pretended_device.WAITS.clear()
            run()
            return list(pretended_device.WAITS)
        torch.cuda.synchronize()
        with synchronising("warn") as caught:
            run()
        return [str(one.message) for one in caught if "synchroniz" in str(one.message)]

    return count


@pytest.fixture(autouse=True)
def _as_found():
    """Products in single precision are just that; what a test took of a GPU is given back."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)
    if ON_GPU:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
