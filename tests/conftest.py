"""Tiny random models of every supported family, a toy tokenizer, and no network."""

import atexit
import os
import shutil
import signal
import socket
import sys
import tempfile
import typing

# The key of row hashes and the places of data: nobody's own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="headprune-state-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ["COLUMNS"] = "160"

import hypothesis
import jaxtyping
import pytest
import torch
import transformers

# Here and not by headprune's modules: what is loaded while those are instrumented is compiled anew, all of transformers.
import transformers.modeling_utils
import transformers.models.auto.modeling_auto

atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

_jaxtyped = jaxtyping.jaxtyped


def _tells_shapes(annotation):
    """Say whether there is an array with its shape anywhere in what a parameter may be; a name that is known later may be one."""
    if isinstance(annotation, (str, typing.ForwardRef)):
        return True
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_tells_shapes, typing.get_args(annotation)))


def _jaxtyped_once(function=None, *, typechecker=None):
    """Check shapes where a signature tells some, and types alone elsewhere: to bind names to sizes takes a while.

    Functions inside functions stay unchecked: they'd be instrumented anew on every call, half of all that is left.
    """
    if function is None:
        return lambda function: _jaxtyped_once(function, typechecker=typechecker)
    if "<locals>" in function.__qualname__:
        return function
    if isinstance(function, type) or any(map(_tells_shapes, function.__annotations__.values())):
        return _jaxtyped(function, typechecker=typechecker)
    return typechecker(function)


jaxtyping.jaxtyped = _jaxtyped_once  # before anything of headprune is imported

# Where tests run in the background, Ctrl-C is ignored, and by what they start as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("search", deadline=None)
# The same examples every time, so that what fails is what was changed; --hypothesis-profile=search draws others.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

from families import FAMILIES, build, sentences, toy_tokenizer  # noqa: E402
from warm_python import WarmPython  # noqa: E402


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


@pytest.fixture(autouse=True, scope="session")
def _fresh_processes_start_at_once(tmp_path_factory):
    warm = WarmPython(tmp_path_factory.mktemp("warm"))
    real, sys.executable = sys.executable, str(warm.executable)
    yield
    sys.executable = real
    warm.stop()


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


@pytest.fixture
def command_line(capsys, monkeypatch):
    """Return a function that runs the command line in this process: (exit code, stdout, stderr)."""
    from headprune.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["headprune", *map(str, words)])
        # It ends its process; here others go on in it.
        handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "bert"
    build("bert").save_pretrained(directory)
    toy_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def here(run_here, bert_directory):
    """A working directory with a model and data."""
    shutil.copytree(bert_directory, run_here / "m")
    rows = "".join(f"{text},{n % 2}\n" for n, text in enumerate(sentences(40)))
    (run_here / "d.csv").write_text(f"text,label\n{rows}")
    return run_here
