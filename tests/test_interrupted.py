"""No work lost: signals leave with 130 and one line, damaged pieces are computed again, old runs' files stop nobody."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lawful import is_lawful

import headprune as hp
from headprune.runtime.journal import Journal

SCORE = ("score", "m", "--data", "d.csv", "--method", "ablation", "--batch-size", "8")


@pytest.fixture(scope="module")
def scores_of_a_whole_run():
    return []


@pytest.fixture
def undisturbed(here, command_line, scores_of_a_whole_run):
    """The scores of a run that wasn't stopped: the same bytes for every test."""
    if not scores_of_a_whole_run:
        assert command_line(*SCORE, "--run-dir", "whole", "-q")[0] == 0
        scores_of_a_whole_run.append(Path("whole/scores.json").read_bytes())
    return scores_of_a_whole_run[0]


# Signals.


class Kill:
    """Sends this process a signal after so many pieces were kept, as a user or a batch system does."""

    def __init__(self, monkeypatch, number, after):
        real, kept = Journal.put, []

        def put(journal, *args):
            real(journal, *args)
            kept.append(args)
            if len(kept) == after:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Journal, "put", put)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_and_says_what_goes_on(
    number, here, command_line, monkeypatch, undisturbed
):
    with monkeypatch.context() as patch:
        Kill(patch, number, after=3)
        code, out, err = command_line(*SCORE, "--run-dir", "stopped", "-q")
    assert (code, out) == (130, "")
    assert err.strip() == "stopped; batches done: 3; the same command goes on from there"
    assert command_line(*SCORE, "--run-dir", "stopped", "-q")[0] == 0
    assert Path("stopped/scores.json").read_bytes() == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "entry", [["-m", "headprune"], ["-c", "from headprune.cli import main; main()"]]
)
def test_a_signal_while_libraries_are_imported_is_answered_alike(entry, number, here):
    process = subprocess.Popen(
        [sys.executable, *entry, *SCORE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(hp.__file__).parent.parent)},
    )
    wait_for(process, "torch")
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert out == ""
    assert err.strip().splitlines()[-1] == "stopped; nothing was left half-written"
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_takes_for_an_error_of_its_own_is_a_signal(
    number, here, command_line, monkeypatch
):
    def put(*_args):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as stopped:
            raise ValueError("Invalid affine transformation matrix") from stopped

    monkeypatch.setattr(Journal, "put", put)
    code, out, err = command_line(*SCORE, "-q")
    assert (code, out) == (130, "")
    assert err.strip().endswith("stopped; nothing was left half-written")
    monkeypatch.undo()
    assert command_line("check", "nothing.json")[0] == 2, "it is no signal of the next command"


class Dies:
    """Something whose destructor is at work when a signal comes."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_in_a_destructor_stops_the_command_too(
    number, here, command_line, monkeypatch
):
    sent = []

    def put(*_args):
        if not sent:
            sent.append(number)
            Dies(number)
        time.sleep(0.2)

    monkeypatch.setattr(Journal, "put", put)
    hook = sys.unraisablehook
    code, out, err = command_line(*SCORE, "-q")
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["check", "nothing"], 2)])
def test_a_signal_at_the_very_end_changes_nothing(number, words, code, here):
    ends = "import atexit, os, sys; from headprune.cli import main; sys.argv[0] = 'headprune'; "
    ends += f"atexit.register(lambda: os.kill(os.getpid(), {int(number)})); main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(hp.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", ends, *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("headprune ") == (code == 0)
    assert ("error: " in done.stderr) == (code == 2)


def wait_for(process, name):
    """Wait until a process has mapped a library; without /proc, a while."""
    maps, end = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        if not maps.exists():
            time.sleep(0.5)
            return
        if f"/{name}/" in maps.read_text():
            return
        time.sleep(0.01)


# Partial results.


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_piece_is_none_and_said(data, tmp_path):
    journal, piece = Journal(tmp_path), torch.randn(3, 5)
    journal.put("piece", piece)
    (path,) = tmp_path.glob("piece*")
    content = bytearray(path.read_bytes())
    told = []
    assert torch.equal(journal.get("piece", notify=told.append), piece)
    assert not told
    kind = data.draw(st.sampled_from(["flip", "cut", "longer"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        content = content[:place]
    else:
        content += data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    assert journal.get("piece", notify=told.append) is None
    assert len(told) == 1
    assert str(path) in told[0]
    assert journal.get("another", notify=told.append) is None
    assert len(told) == 1, "what was never there isn't damaged"


def test_scores_are_the_same_bytes_after_a_piece_was_damaged(
    here, command_line, monkeypatch, undisturbed
):
    with monkeypatch.context() as patch:
        Kill(patch, signal.SIGINT, after=3)
        command_line(*SCORE, "--run-dir", "stopped", "-q")
    pieces = sorted(Path("stopped").rglob("*.safetensors"))
    content = bytearray(pieces[1].read_bytes())
    content[-40] ^= 0x40
    pieces[1].write_bytes(content)
    code, _out, err = command_line(*SCORE, "--run-dir", "stopped")
    assert code == 0
    assert str(pieces[1].name) in err.replace("\n", "")
    assert "computed again" in err
    assert Path("stopped/scores.json").read_bytes() == undisturbed


@pytest.mark.parametrize("kind", ["empty", "binary", "newer", "directory"])
def test_a_file_of_an_earlier_run_that_nobody_named_stops_nobody(kind, here, command_line):
    for _ in range(2):
        code, _out, err = command_line("score", "m", "--method", "magnitude", "-q")
        assert code == 0, err
    _older, newer = sorted(Path("headprune-runs").glob("*/scores.json"))
    text = newer.read_text()
    newer.unlink()
    if kind == "directory":
        newer.mkdir()
    else:
        newer.write_bytes(
            {
                "empty": b"",
                "binary": b"\xff\x00\xfe",
                "newer": json.dumps({**json.loads(text), "temperature": 1}).encode(),
            }[kind]
        )
    prune = ("prune", "m", "--data", "d.csv", "--keep", "0.7", "--method", "magnitude")
    code, _out, err = command_line(*prune, "--reconstruct", "none", "--steps", "1", "--dry-run")
    assert code == 0, err
    for named in (str(newer), "latest"):
        code, _out, err = command_line(*prune, "--scores", named, "--dry-run", "-q")
        assert is_lawful(code, err), "a file that somebody asks for is another matter"
        assert code == 2
        assert str(newer) in err
