"""Surroundings that aren't right: named in three parts, exit 2, and nothing is lost; signals: 130, and one line."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import datasets
import pytest
import torch
from families import build, sentences, toy_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import headprune as hp
from headprune.checkpoint import load_model
from headprune.distributed import launched_rank, launched_size
from headprune.errors import CheckpointError, ConfigError, DataError, HeadpruneError, ModelError
from headprune.gate import Finding, Verdict
from headprune.journal import Journal
from headprune.models import find
from headprune.report.ci import to_github, to_junit
from headprune.runs import latest_scores
from headprune.tasks.data import read_table


def is_lawful(code, err):
    """Whether a command left with 2 and said why in three parts."""
    return (
        code == 2
        and sum(line.startswith("error: ") for line in err.splitlines()) == 1
        and "\n  in:   " in err
        and "\n  try:  " in err
        and "unexpected" not in err
        and "Traceback" not in err
    )


@pytest.fixture(scope="module")
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


SCORE = ("score", "m", "--data", "d.csv", "--method", "ablation", "--batch-size", "8")


@pytest.fixture(scope="module")
def scores_of_a_whole_run():
    return []


@pytest.fixture
def undisturbed(here, command_line, scores_of_a_whole_run):
    """The scores of a run that wasn't stopped: the same bytes for every test."""
    if not scores_of_a_whole_run:
        assert command_line(*SCORE, "--run", "whole", "-q")[0] == 0
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
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        Kill(patch, number, after=3)
        code, out, err = command_line(*SCORE, "--run", "stopped", "-q")
    assert (code, out) == (130, "")
    assert err.strip() == "stopped; batches done: 3; the same command goes on from there"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert command_line(*SCORE, "--run", "stopped", "-q")[0] == 0
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
    assert torch.equal(journal.get("piece", say=told.append), piece)
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
    assert journal.get("piece", say=told.append) is None
    assert len(told) == 1
    assert str(path) in told[0]
    assert journal.get("another", say=told.append) is None
    assert len(told) == 1, "what was never there isn't damaged"


def test_scores_are_the_same_bytes_after_a_piece_was_damaged(
    here, command_line, monkeypatch, undisturbed
):
    with monkeypatch.context() as patch:
        Kill(patch, signal.SIGINT, after=3)
        command_line(*SCORE, "--run", "stopped", "-q")
    pieces = sorted(Path("stopped").rglob("*.safetensors"))
    content = bytearray(pieces[1].read_bytes())
    content[-40] ^= 0x40
    pieces[1].write_bytes(content)
    code, _out, err = command_line(*SCORE, "--run", "stopped")
    assert code == 0
    assert str(pieces[1].name) in err.replace("\n", "")
    assert "computed again" in err
    assert Path("stopped/scores.json").read_bytes() == undisturbed


@pytest.mark.parametrize("kind", ["empty", "binary", "newer", "directory"])
def test_a_file_of_an_earlier_run_that_nobody_named_stops_nobody(kind, here, command_line):
    for _ in range(2):
        code, _out, err = command_line("score", "m", "--method", "magnitude", "-q")
        assert code == 0, err
    older, newer = sorted(Path("headprune-runs").glob("*/scores.json"))
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
    told = []
    assert latest_scores(None, say=told.append)[1] == older
    assert len(told) == 1
    assert str(newer) in told[0]
    code, _out, err = command_line(
        "prune", "m", "--data", "d.csv", "--keep", "0.7", "--method", "magnitude", "--mend", "none",
        "--steps", "1", "--dry-run",
    )  # fmt: skip
    assert code == 0, err
    assert "passed over" in err
    code, _out, err = command_line(
        "prune", "m", "--data", "d.csv", "--keep", "0.7", "--scores", str(newer), "--dry-run", "-q"
    )
    assert is_lawful(code, err), "a file that somebody names is another matter"


# Stdout, the working directory, the environment.


@pytest.fixture
def stdout_is(monkeypatch):
    opened = []

    def put(path):
        opened.append(Path(path).open("w"))
        monkeypatch.setattr(sys, "stdout", opened[-1])

    yield put
    for stream in opened:
        stream.close()


NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@NEEDS_FULL
@pytest.mark.parametrize(
    "words", [("inspect", "m"), ("inspect", "m", "--json"), ("--help",), ("--version",)]
)
def test_a_full_stdout_is_named(words, here, command_line, stdout_is):
    stdout_is("/dev/full")
    code, _out, err = command_line(*words)
    assert is_lawful(code, err), err
    assert "No space left" in err


@pytest.mark.parametrize("words", [("inspect", "m"), ("inspect", "m", "--json")])
def test_a_reader_that_went_away_is_named(words, here, command_line, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        code, _out, err = command_line(*words)
    assert is_lawful(code, err), err


@pytest.mark.parametrize("command", ["inspect", "score"])
def test_a_closed_stdout_is_named_before_the_work(command, here, command_line, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    code, _out, err = command_line(command, "m", "--data", "d.csv")
    assert is_lawful(code, err), err
    assert not Path("headprune-runs").exists()


@NEEDS_FULL
def test_a_full_stderr_loses_no_result(here, command_line, monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        code, out, _err = command_line("score", "m", "--method", "magnitude", "--json")
        assert code == 0
        assert json.loads(out)["method"] == "magnitude"
        assert command_line("inspect", "nowhere")[0] == 2


@pytest.mark.parametrize("command", ["inspect", "score"])
def test_a_working_directory_that_is_gone_is_named(command, here, command_line):
    gone = here / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    code, _out, err = command_line(command, here / "m", "--data", here / "d.csv")
    assert is_lawful(code, err), err
    assert "working directory" in err


@pytest.mark.parametrize("value", ["abc", "", "-1", "0", "1.5", "9" * 30, "١"])
def test_a_launchers_variable_that_is_no_number_is_named(value, here, command_line, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        launched_size()
    code, _out, err = command_line("inspect", "m")
    assert is_lawful(code, err), err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", value if value != "0" else "2")
    with pytest.raises(ConfigError, match="RANK"):
        launched_rank()


# Libraries' errors, at their boundaries.


@pytest.mark.parametrize("limit", [0, 4096, 100_000, 300_000])
def test_a_write_that_fails_inside_a_library_is_named_and_leaves_nothing(limit, tmp_path):
    """Weights by safetensors, 140 kB; a vocabulary by tokenizers, 700 kB; the others by Python."""
    vocabulary = {f"word-{number}": number for number in range(30_000)}
    large = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "?")))
    model = build("bert")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError, match="too large"):
            hp.save(model, tmp_path / "out", tokenizer=large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "txt", "parquet"])
def test_data_that_is_not_utf8_is_named(suffix, tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"d.{suffix}"
    if suffix == "parquet":
        raw = pyarrow.array([b"caf\xe9 one", b"two"], pyarrow.binary())
        table = pyarrow.table({"text": raw.view(pyarrow.string())})
        pyarrow.parquet.write_table(table, path)
    else:
        row = {"csv": b"caf\xe9,1\n", "tsv": b"caf\xe9\t1\n", "txt": b"caf\xe9\n"}.get(
            suffix, b'{"text": "caf\xe9", "label": 1}\n'
        )
        head = {"csv": b"text,label\n", "tsv": b"text\tlabel\n"}.get(suffix, b"")
        path.write_bytes(head + row * 8)
    with pytest.raises(DataError) as caught:
        read_table(str(path))
    assert str(path) in caught.value.where


@pytest.mark.parametrize("name", ["x" * 300 + ".csv", "a/" * 2500 + "b.csv"])
def test_a_path_that_the_system_refuses_is_named(name):
    with pytest.raises(DataError):
        read_table(name)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_cache_that_can_not_be_written_stops_nobody(suffix, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("in the way")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a-file" / "cache")
    path = tmp_path / f"d.{suffix}"
    path.write_text("text,label\nw1,1\n" if suffix == "csv" else '{"text": "w1", "label": 1}\n')
    assert list(read_table(str(path)).rows) == [{"text": "w1", "label": 1}]


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"attn_implementation": "flash_attention_2"},
        {"num_attention_heads": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_transformers_raises_while_loading_is_named(change, here, command_line):
    config = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**config, **change}))
    code, _out, err = command_line("eval", "m", "--data", "d.csv")
    assert is_lawful(code, err), err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_that_may_not_be_read_is_named(name, here, monkeypatch):
    real = Path.open

    def refuse(path, *args, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        find("m")


def test_a_pooler_may_be_missing_where_nothing_reads_it(here):
    from safetensors.torch import load_file, save_file

    path = here / "m" / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match="pooler"):
        load_model(find("m"), auto_class="AutoModelForSequenceClassification")
    load_model(find("m"), auto_class="AutoModel")


# What is printed.


@pytest.mark.parametrize("name", ["mk[", "[red]x", ":smile:"])
def test_names_are_shown_as_they_are(name, here, command_line):
    """On stdout and on stderr, closing tags too: their slash makes two parts of a path."""
    path = here / name / "b].csv"
    path.parent.mkdir()
    shutil.copy(here / "d.csv", path)
    given = f"{name}/b].csv"
    code, out, err = command_line("eval", "m", "--data", given)
    assert code == 0, err
    assert given in out
    assert given in err


def verdict_of(message, *, passed):
    finding = Finding(name="max_drop", passed=passed, message=message)
    return Verdict.model_construct(
        passed=passed, within_noise=False, drop=0.0, noise=0.0, findings=(finding,)
    )


@given(message=st.text(st.characters(exclude_categories=())), passed=st.booleans())
def test_junit_is_xml_whatever_a_message_holds(message, passed):
    """Control characters, halves of surrogates, ends of CDATA: parsed again it says what it can say of it."""
    document = to_junit(verdict_of(message, passed=passed)).encode("utf-8")
    suite = ElementTree.fromstring(document)
    (case,) = suite.iter("testcase")
    shown = case.findtext("system-out") if passed else case.find("failure").get("message")
    if message.isprintable() and message.strip() == message:
        assert shown == message
    assert "\x00" not in (shown or "")


def test_a_step_summary_that_can_not_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary.md"))
    with pytest.raises(HeadpruneError, match="summary"):
        to_github(verdict_of("fine", passed=True))
