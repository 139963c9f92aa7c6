"""Surroundings that aren't right: named in three parts, exit 2, and nothing is lost."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import datasets
import pytest
from families import build
from hypothesis import given
from hypothesis import strategies as st
from lawful import is_lawful
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import headprune as hp
from headprune.errors import CheckpointError, ConfigError, DataError, HeadpruneError, ModelError
from headprune.gate import Finding, Verdict
from headprune.models.find import find
from headprune.models.load import load_model
from headprune.report.ci import to_github, to_junit
from headprune.runs import unused_run
from headprune.runtime.launcher import launched_rank, launched_size
from headprune.tasks.rows import read_table

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
def test_a_reader_that_went_away_is_told_nothing(words, here, command_line, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        code, _out, err = command_line(*words)
    assert code == 2, err
    assert "error" not in err


@pytest.mark.parametrize("command", ["eval", "score"])
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


@pytest.mark.parametrize("command", ["eval", "score"])
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
    label = "1" if suffix == "csv" else 1
    assert list(read_table(str(path)).rows) == [{"text": "w1", "label": label}]


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
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


def test_runs_that_may_not_be_listed_are_named_before_the_work(here, monkeypatch):
    (here / "headprune-runs" / "001-unique").mkdir(parents=True)

    # Path.iterdir lists by the one or the other, by Python's version.
    for name in ("listdir", "scandir"):
        real = getattr(os, name)

        def refuse(path, real=real):
            if Path(path).name == "headprune-runs":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, name, refuse)
    with (
        pytest.raises(CheckpointError, match="headprune-runs.*Permission denied"),
        unused_run(None),
    ):
        pytest.fail("the work began")


def test_a_pooler_may_be_missing_where_nothing_reads_it(here):
    from safetensors.torch import load_file, save_file

    path = here / "m" / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match="pooler"):
        load_model(find("m"), auto_class="AutoModelForSequenceClassification")
    said = []
    load_model(find("m"), auto_class="AutoModel", notify=said.append)
    assert any("no pooler.dense.bias" in text for text in said)


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


def fixed_length_of_none(settings):
    settings["pre_tokenizer"] = {"type": "FixedLength", "length": 0}


def no_unknown(settings):
    settings["model"]["unk_token"] = "<nowhere>"


@pytest.mark.parametrize("change", [fixed_length_of_none, no_unknown])
def test_a_tokenizer_that_fails_on_a_text_is_named_and_isnt_the_gate_s_no(
    change, here, command_line
):
    path = here / "m" / "tokenizer.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))
    (here / "odd.csv").write_text("text,label\n" + "never-seen words,0\nother words,1\n" * 4)
    code, _out, err = command_line("eval", "m", "--data", "odd.csv", "--no-latency")
    assert is_lawful(code, err), err
    assert "tokenizer" in err


@pytest.mark.parametrize(
    "words",
    [
        ("score",),
        ("prune", "--keep", "0.5"),
        ("prune", "--keep", "0.5", "--heal", "auto", "--heal-data"),
        ("sweep",),
        ("eval",),
        ("prune", "--keep", "0.5", "--eval-data"),
        ("heal", "--teacher", "model"),
    ],
    ids=" ".join,
)
def test_a_file_that_is_not_there_is_refused_before_the_model_is_loaded(
    words, run_here, tokenizer, command_line
):
    """These weights would be refused, too: they come second."""
    build("bert", num_labels=2).save_pretrained("model")
    tokenizer.save_pretrained("model")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "intermediate_size": 44}))
    Path("rows.csv").write_text("text,label\nw1 w2,0\nw3,1\n")
    command, *options = words
    data = ("--data", "rows.csv") if options and options[-1].endswith("-data") else ("--data",)
    named = (*options, "rws.csv", *data) if len(data) == 2 else (*options, *data, "rws.csv")
    code, _out, err = command_line(command, "model", *named, "--task", "classification")
    assert code == 2, err
    assert "there is no file rws.csv" in err
    assert "did you mean 'rows.csv'" in err
    code, _out, err = command_line(command, "model", "--data", "rows.csv", *options[:2])
    assert code == 2
    assert "intermediate" in err
