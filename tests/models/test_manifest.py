"""A directory is ours by its manifest and by nothing else in it; what a load would read is in the manifest or is noticed."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from families import build, sentences
from hypothesis import given, settings
from hypothesis import strategies as st

import headprune as hp
from headprune.errors import CheckpointError
from headprune.models.manifest import (
    check_manifest,
    output_directory,
    refuse_source,
    refuse_strangers,
    refuse_unusable_output,
    write_manifest,
)

FILES = (
    "config.json",
    "model.safetensors",
    "README.md",
    "scores.json",
    "sweep.png",
    "1_Pooling/config.json",
)


def make(directory):
    for name in FILES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    write_manifest(directory)
    return directory


@pytest.fixture
def ours(tmp_path):
    return make(tmp_path / "ours")


def snapshot(folder):
    return sorted(
        (
            str(path.relative_to(folder)),
            path.lstat().st_mode,
            path.lstat().st_size,
            path.lstat().st_ino,
        )
        for path in folder.rglob("*")
    )


@pytest.mark.parametrize("work", [write_manifest, refuse_strangers, check_manifest])
@pytest.mark.parametrize("folder", ["", "1_Pooling"])
def test_a_folder_that_cannot_be_read_is_never_taken_for_an_empty_one(
    ours, monkeypatch, work, folder
):
    scandir = os.scandir

    def refused(path):
        if Path(path) == ours / folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        work(ours)


def test_a_manifest_names_every_file(ours):
    found = json.loads((ours / "manifest.json").read_text())
    assert sorted(found["files"]) == sorted(FILES)
    check_manifest(ours)
    refuse_strangers(ours)


ADDED = {
    "a file": lambda path: path.write_text("x"),
    "a folder": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("config.json"),
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
}
PLACES = st.sampled_from(["", "1_Pooling/", "new/"])
NAMES = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=12).filter(
    lambda name: (
        "/" not in name and name not in (".", "..", "manifest.json", "new", "1_Pooling", *FILES)
    )
)


@given(place=PLACES, name=NAMES, kind=st.sampled_from(sorted(ADDED)))
@settings(max_examples=60, deadline=None)
def test_whatever_is_added_is_named_and_nothing_is_replaced(tmp_path_factory, place, name, kind):
    ours = make(tmp_path_factory.mktemp("added") / "ours")
    added = ours / f"{place}{name}"
    if added.exists():  # config.json in 1_Pooling
        return
    added.parent.mkdir(exist_ok=True)
    ADDED[kind](added)
    before = snapshot(ours)
    with pytest.raises(CheckpointError) as caught, output_directory(ours, overwrite=True):
        raise AssertionError("entered")
    assert (place.rstrip("/") if place == "new/" else name) in caught.value.what
    assert "did not write" in caught.value.what
    assert snapshot(ours) == before
    assert [path.name for path in ours.parent.iterdir()] == ["ours"]


def test_a_few_strangers_are_named_and_the_others_counted(ours):
    for letter in "abcdefg":
        (ours / f"{letter}.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"a\.tex, b\.tex, c\.tex and 4 more"):
        refuse_strangers(ours)


@pytest.mark.parametrize("name", FILES)
def test_what_is_absent_is_no_longer_ours_unless_it_is_a_record(ours, name):
    (ours / name).unlink()
    if name in ("README.md", "scores.json"):
        refuse_strangers(ours)
        check_manifest(ours)
        return
    with pytest.raises(CheckpointError, match=f"{name} missing"):
        refuse_strangers(ours)
    (ours / name).symlink_to(ours / "README.md")
    with pytest.raises(CheckpointError, match=f"{name} missing"):
        refuse_strangers(ours)


def test_a_readme_may_be_edited_freely(ours):
    (ours / "README.md").write_text("my own words")
    check_manifest(ours)
    with output_directory(ours, overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert [path.name for path in ours.iterdir()] == ["new"]


FOREIGN = {
    "a web app": {"name": "My app", "start_url": "/", "display": "standalone"},
    "two keys": {"version": 2, "models": ["a"]},
    "files in a list": {"format": "webapp", "files": ["a", "b"]},
    "files with plain values": {"version": 1, "files": {"a": "sha"}},
    "more keys": {"format": 1, "files": {"a": {"sha256": "x", "size": 1}}, "author": "x"},
    "a list": [1, 2],
    "nothing": {},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_programs_manifest_loads_and_makes_nothing_ours(kind, tmp_path):
    folder = tmp_path / "app"
    build("bert").save_pretrained(folder)
    (folder / "manifest.json").write_text(json.dumps(FOREIGN[kind]))
    hp.load(folder, device="cpu")
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match="did not write"):
        refuse_unusable_output(folder, overwrite=True)
    with pytest.raises(CheckpointError, match="did not write"):
        hp.save(build("bert"), folder, overwrite=True)
    assert snapshot(folder) == before


def test_a_manifest_that_was_cut_short_anywhere_is_noticed(ours):
    path = ours / "manifest.json"
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            check_manifest(ours)
        with pytest.raises(CheckpointError):
            refuse_strangers(ours)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../outside.json", "a/../../outside.json", "a\\b", "a\0b"]
)
def test_a_manifest_names_files_of_its_own_directory(ours, name):
    path = ours / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = document["files"]["config.json"]
    path.write_text(json.dumps(document))
    (ours.parent / "outside.json").write_text("config.json")
    with pytest.raises(CheckpointError, match="no file of this directory|not Unicode"):
        check_manifest(ours)
    with pytest.raises(CheckpointError):
        refuse_strangers(ours)


def test_a_link_out_of_the_directory_is_noticed_and_the_hubs_are_not(ours, tmp_path):
    home = tmp_path / "models--hub" / "snapshots" / "abc"
    shutil.copytree(ours, home)
    blobs = tmp_path / "models--hub" / "blobs"
    blobs.mkdir()
    for directory, elsewhere in ((ours, tmp_path / "elsewhere"), (home, blobs / "blob")):
        shutil.move(directory / "config.json", elsewhere)
        (directory / "config.json").symlink_to(elsewhere)
    check_manifest(home)
    with pytest.raises(CheckpointError, match="leads out"):
        check_manifest(ours)


READ = (
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "tokenizer.json"),
    *(
        "tokenizer_config.json",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
        "chat_template.jinja",
    ),
    *("modeling_other.py", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    *(
        "pytorch_model.bin",
        "generation_config.json",
        "modules.json",
        "spiece.model",
        "preprocessor_config.json",
    ),
    *("1_Pooling/modeling.py", "2_Dense/model.safetensors", "additional_chat_templates/x.jinja"),
)
NOT_READ = (
    "notes.txt",
    "train.csv",
    "eval_results.json",
    "paper.pdf",
    "smaller/model.safetensors",
    ".git/config",
)


@pytest.mark.parametrize("name", [*READ, *NOT_READ])
def test_what_a_load_would_read_is_noticed_where_it_was_added(ours, name):
    (ours / name).parent.mkdir(exist_ok=True)
    (ours / name).write_text("x")
    if name in NOT_READ:
        check_manifest(ours)
        return
    with pytest.raises(CheckpointError, match="added after") as caught:
        check_manifest(ours)
    assert name in caught.value.what


@pytest.mark.parametrize("out", ["m", "./m", "../{here}/m", "link", "link/", "up/m", "up", ".."])
@pytest.mark.parametrize("source", ["m", "link", "up/m"])
def test_the_source_is_known_however_it_is_written(run_here, source, out):
    (run_here / "m").mkdir()
    (run_here / "link").symlink_to("m")
    (run_here / "up").symlink_to(run_here)
    with pytest.raises(CheckpointError, match="would be replaced"):
        refuse_source(run_here / out.format(here=run_here.name), run_here / source)
    for fine in ("n", "m/smaller", "up/other", "mm"):
        refuse_source(run_here / fine, run_here / source)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_model_is_not_saved_over_the_directory_that_it_was_loaded_from(run_here, pruned, bert):
    directory = run_here / "m"
    hp.save(hp.prune(bert, ["L1.H1"]) if pruned else bert, directory)
    before = {path: path.read_bytes() for path in directory.iterdir()}
    model = hp.prune(hp.load(directory, device="cpu"), ["L0.H0"])
    with pytest.raises(CheckpointError, match="would be replaced"):
        hp.save(model, "m", overwrite=True)
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    assert hp.save(model, "n")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Return a folder with a model, its pruned self and data."""
    folder = tmp_path_factory.mktemp("models")
    model = build("bert")
    model.save_pretrained(folder / "m")
    tokenizer.save_pretrained(folder / "m")
    hp.save(
        hp.prune(hp.load(folder / "m", device="cpu"), ["L0.H0"]), folder / "p", tokenizer=tokenizer
    )
    rows = "".join(f"{text},{index % 2}\n" for index, text in enumerate(sentences(40)))
    (folder / "d.csv").write_text("text,label\n" + rows)
    return folder


@pytest.fixture
def place(models, run_here):
    shutil.copytree(models, run_here, dirs_exist_ok=True)
    return run_here


MAGNITUDE = (
    "--data",
    "d.csv",
    "--keep",
    "0.7",
    "--method",
    "magnitude",
    "--reconstruct",
    "none",
    "--steps",
    "1",
    "-q",
)
WRITERS = {
    "prune": ("prune", "m", *MAGNITUDE, "--out", "x"),
    "convert": ("convert", "m", "--out", "x"),
    "heal": ("heal", "p", "--teacher", "m", "--data", "d.csv", "--out", "x", "-q"),
    "sweep": (
        "sweep",
        "m",
        "--data",
        "d.csv",
        "--methods",
        "magnitude",
        "--no-latency",
        "--out",
        "x",
        "-q",
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_command_replaces_what_is_not_ours(place, command_line, writer):
    shutil.copytree("p", "x")
    (place / "x" / "thesis.tex").write_text("years")
    before = snapshot(place / "x")
    code, _out, err = command_line(*WRITERS[writer], "--overwrite")
    assert code == 2
    assert "thesis.tex" in err
    assert snapshot(place / "x") == before


@pytest.mark.parametrize("out", ["p", "link", "../{here}/p"])
@pytest.mark.parametrize(
    "words",
    [
        ("prune", "p", *MAGNITUDE),
        ("prune", "link", *MAGNITUDE),
        ("heal", "link", "--teacher", "m", "--data", "d.csv", "-q"),
        ("heal", "m", "--teacher", "p", "--data", "d.csv", "-q"),
        ("convert", "p"),
    ],
    ids=" ".join,
)
def test_no_command_replaces_what_it_reads(place, command_line, words, out):
    (place / "link").symlink_to("p")
    before = snapshot(place / "p")
    code, _out, err = command_line(*words, "--out", out.format(here=place.name), "--overwrite")
    assert code == 2
    assert "would be replaced" in err
    assert snapshot(place / "p") == before


def test_outputs_that_are_links_are_written_through_and_pipes_stay(place, command_line):
    (place / "disk").mkdir()
    (place / "x").symlink_to("disk/x")
    (place / "b.json").symlink_to("disk/b.json")
    os.mkfifo(place / "pipe")
    code, _out, err = command_line(*WRITERS["prune"])
    assert code == 0, err
    hp.load(place / "disk" / "x", device="cpu")
    check = ("check", "x/results.json", "--update-baseline", "-q", "--baseline")
    code, _out, err = command_line(*check, "b.json")
    assert code == 0, err
    assert (place / "disk" / "b.json").is_file()
    assert (place / "b.json").is_symlink()
    for words in (
        (*check, "pipe"),
        ("check", "m", "--data", "d.csv", "--update-baseline", "-q", "--baseline", "pipe"),
        ("prune", "m", *MAGNITUDE, "--out", "pipe", "--overwrite"),
        ("score", "m", "--data", "d.csv", "-q", "--run-dir", "pipe"),
    ):
        code, _out, err = command_line(*words)
        assert code == 2
        assert "pipe" in err
        assert "error:" in err
        assert (place / "pipe").is_fifo()
