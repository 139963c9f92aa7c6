"""What killed runs leave is put back or removed, what living ones write is left alone, and what comes meanwhile stays."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headprune.errors import CheckpointError
from headprune.models.manifest import refuse_unusable_output, write_manifest
from headprune.runtime.files import (
    refuse_unusable_target,
    staged_directory,
    staged_file,
    write_text,
)
from headprune.runtime.targets import append_text, exclusive, refuse_unwritable


def with_manifest(directory):
    """Let only a directory that has a manifest be replaced."""
    if not (directory / "manifest.json").is_file():
        raise CheckpointError("somebody else's", where=str(directory), hint="choose another")


KILLED = r"""
import json, os, pathlib, sys, tempfile
from headprune.runtime.files import staged_directory

def state(path):
    return path.joinpath("a").read_text() if path.joinpath("a").is_file() else None

def run(target, text, stop=False):
    with staged_directory(target, may_replace=str) as staging:
        (staging / "a").write_text(text)
        (staging / "manifest.json").write_text("{}")
        if stop:
            raise KeyboardInterrupt

def kill_at(number, target):
    left = [number]
    def dying(function):
        def call(*args, **kwargs):
            if not left[0]:
                os._exit(9)
            left[0] -= 1
            return function(*args, **kwargs)
        return call
    for name in ("open", "rename", "replace", "mkdir", "rmdir", "chmod", "fsync", "unlink", "link"):
        setattr(os, name, dying(getattr(os, name)))
    run(target, "new")
    os._exit(0)

found = []
for before in ("absent", "old"):
    for number in range(500):
        folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
        target = folder / "out"
        if before == "old":
            run(target, "old")
        child = os.fork()
        if not child:
            kill_at(number, target)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        killed = state(target)
        try:
            run(target, "third", stop=True)
        except KeyboardInterrupt:
            pass
        after = state(target)
        run(target, "third")
        beside = sorted(state(path) or "half" for path in folder.iterdir() if path != target)
        hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        found.append([before, code, killed, after, state(target), beside, hidden])
        if not code:
            break
json.dump(found, sys.stdout)
"""


def run_script(script, *words):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, check=True
    )
    return done.stdout


def test_killed_between_any_two_operations_nothing_is_lost(tmp_path):
    found = json.loads(run_script(KILLED, tmp_path))
    between = 0
    for before, _code, killed, after, last, beside, hidden in found:
        at_first = "old" if before == "old" else None
        assert last == "third"
        assert hidden == [], "leftovers"
        assert after in (at_first, "new"), (
            "the next run, stopped itself, has put back what was there"
        )
        if before == "old" and killed is None:
            between += 1
            assert after == "old"
            assert beside == ["new"], "whole by then, and kept"
        else:
            assert killed in (at_first, "new")
            assert beside == []
    assert between, "no kill between the two renames"
    assert len(found) > 30
    assert [entry[1] for entry in found].count(0) == 2


def put(directory, name="a", text="old"):
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    (directory / name).write_text(text)


def replace_failing_both_ways(target, monkeypatch):
    real = Path.rename
    calls = []

    def rename(self, to):
        calls.append(to)
        if len(calls) > 1:
            raise OSError(5, "Input/output error", str(self))
        return real(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with (
            pytest.raises(CheckpointError) as caught,
            staged_directory(target, may_replace=with_manifest) as staging,
        ):
            (staging / "a").write_text("new")
    return caught.value


def test_where_both_renames_fail_the_user_is_told_and_nothing_is_ever_deleted(
    tmp_path, monkeypatch
):
    target = tmp_path / "x"
    put(target)
    error = replace_failing_both_ways(target, monkeypatch)
    (old,) = tmp_path.glob("*-old")
    assert str(old) in error.hint
    assert (old / "a").read_text() == "old"
    write_text(tmp_path / "y", "another output")
    with pytest.raises(
        CheckpointError, match="not empty"
    ):  # it is back, so it isn't replaced unasked
        refuse_unusable_target(target, may_replace=None)
    assert (target / "a").read_text() == "old"
    assert (tmp_path / "x.unplaced" / "a").read_text() == "new"


def test_what_is_back_is_told_and_a_refused_target_is_left_clean(tmp_path, monkeypatch):
    target, told = tmp_path / "x", []
    put(target)
    write_manifest(target)
    replace_failing_both_ways(target, monkeypatch)
    refuse_unusable_output(target, overwrite=True, notify=told.append)
    assert told == [
        f"{target} is back: a run that was killed while it replaced it had moved it aside"
    ]
    refuse_unusable_output(target, overwrite=True, notify=told.append)
    assert len(told) == 1
    (tmp_path / ".x.headprune-tmp-99999999-abcdefgh").write_text("half")
    with pytest.raises(CheckpointError, match="not empty"):
        refuse_unusable_output(target, overwrite=False)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.unplaced"}


def test_what_was_put_back_survives_the_run_that_found_it(tmp_path, monkeypatch):
    target = tmp_path / "x"
    put(target)
    replace_failing_both_ways(target, monkeypatch)
    with staged_directory(target, may_replace=with_manifest) as staging:
        (staging / "a").write_text("third")
    assert (target / "a").read_text() == "third"
    assert (tmp_path / "x.replaced" / "a").read_text() == "old"


def test_what_was_moved_aside_stays_where_somebody_else_has_taken_the_place(tmp_path, monkeypatch):
    target = tmp_path / "x"
    put(target)
    replace_failing_both_ways(target, monkeypatch)
    put(target, text="by another program")
    with staged_directory(target, may_replace=with_manifest) as staging:
        (staging / "a").write_text("third")
    assert (tmp_path / "x.replaced" / "a").read_text() == "old"


def test_a_directory_that_only_has_the_number_of_another_is_another(tmp_path):
    """A system gives the number of what was removed to what is made next: by it alone the only copy would be removed."""
    target = tmp_path / "x"
    put(target)
    other = f"{target.stat().st_ino}-{target.stat().st_mtime_ns - 1}"
    moved = tmp_path / f".x.headprune-tmp-99999999-abcdefgh-{other}-old"
    put(moved, text="the only copy")
    refuse_unusable_target(target, may_replace=with_manifest)
    assert (tmp_path / "x.replaced" / "a").read_text() == "the only copy"


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=30
).filter(lambda name: name not in (".", ".."))


@given(name=NAMES)
@example(name="[a-z]*?")
@example(name=".headprune-tmp-1-a")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_leftovers_are_found_whatever_the_name_and_nothing_else_is(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    target = folder / name
    number = os.getpid()
    dead = folder / f".{name}.headprune-tmp-{number}-dead"
    dead.mkdir()
    (dead / "half").write_text("x")
    dead_file = folder / f".{name}.headprune-tmp-1-file"
    dead_file.write_text("x")
    (folder / "kept").mkdir()
    (folder / "kept" / "precious").write_text("x")
    link = folder / f".{name}.headprune-tmp-1-link"
    link.symlink_to("kept")
    pipe = folder / f".{name}.headprune-tmp-1-pipe"
    os.mkfifo(pipe)
    others = [
        f".{name}.headprune-tmp-1-a.headprune-tmp-1-b",
        f".{name}.headprune-tmp-notes",
        f"{name}x",
    ]
    for other in others:
        (folder / other).mkdir()
    with staged_directory(target) as staging:
        (staging / "a").write_text("new")
    assert not dead.exists()
    assert not dead_file.exists()
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert (folder / "kept" / "precious").is_file()
    assert all((folder / other).is_dir() for other in others)


def test_what_a_living_writer_writes_is_left_alone(tmp_path):
    target = tmp_path / "out"
    with (
        pytest.raises(CheckpointError, match="meanwhile") as caught,
        staged_directory(target) as first,
    ):
        (first / "a").write_text("first")
        with staged_directory(target) as second:
            (second / "a").write_text("second")
        assert (first / "a").is_file()
    assert (target / "a").read_text() == "second"
    assert (tmp_path / "out.unplaced" / "a").read_text() == "first"
    assert str(tmp_path / "out.unplaced") in caught.value.hint
    with staged_file(tmp_path / "f") as first:
        first.write_text("first")
        write_text(tmp_path / "f", "second")
        assert first.is_file()
    assert (tmp_path / "f").read_text() == "first"


COMERS = {
    "a directory with a file": lambda path: put(path, "thesis.tex", "years"),
    "an empty directory": lambda path: path.mkdir(),
    "a file": lambda path: path.write_text("years"),
    "a link": lambda path: path.symlink_to("elsewhere"),
    "a pipe": os.mkfifo,
}


def snapshot(folder):
    return sorted(
        (str(path.relative_to(folder)), path.lstat().st_ino, path.lstat().st_mode)
        for path in folder.rglob("*")
        if "unplaced" not in str(path)
    )


@pytest.mark.parametrize("comer", COMERS)
def test_what_comes_meanwhile_is_never_replaced(comer, tmp_path):
    target = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CheckpointError) as caught, staged_directory(target) as staging:
        (staging / "a").write_text("work")
        COMERS[comer](target)
        (tmp_path / "others").mkdir()
        before = [entry for entry in snapshot(tmp_path) if "headprune-tmp" not in entry[0]]
    assert snapshot(tmp_path) == before
    assert caught.value.exit_code == 2
    assert (tmp_path / "out.unplaced" / "a").read_text() == "work"
    assert str(tmp_path / "out.unplaced") in caught.value.hint


def test_what_comes_into_an_empty_output_meanwhile_is_never_replaced(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(CheckpointError), staged_directory(target) as staging:
        (staging / "a").write_text("work")
        (target / "thesis.tex").write_text("years")
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "out.unplaced" / "a").read_text() == "work"


def test_what_may_be_replaced_is_asked_again_right_before(tmp_path):
    target = tmp_path / "out"
    put(target)

    def check(directory):
        if (directory / "thesis.tex").exists():
            raise CheckpointError("strangers", where="out", hint="none")

    with (
        pytest.raises(CheckpointError, match="strangers") as caught,
        staged_directory(target, may_replace=check) as staging,
    ):
        (staging / "a").write_text("work")
        (target / "thesis.tex").write_text("years")
    assert (target / "thesis.tex").is_file()
    assert str(tmp_path / "out.unplaced") in caught.value.hint


def test_a_file_that_comes_meanwhile_is_never_replaced(tmp_path):
    target = tmp_path / "model.gguf"
    for number in (1, 2):
        target.unlink(missing_ok=True)
        with (
            pytest.raises(CheckpointError) as caught,
            staged_file(target, may_replace=None) as temporary,
        ):
            temporary.write_text(f"work {number}")
            target.write_text("somebody's")
        assert target.read_text() == "somebody's"
        assert ".unplaced" in caught.value.hint
    kept = sorted(path.read_text() for path in tmp_path.glob("model.gguf.unplaced*"))
    assert kept == ["work 1", "work 2"]
    target.unlink()
    write_text(target, "x", overwrite=False)
    assert target.read_text() == "x"


def test_links_are_written_through(tmp_path):
    real = tmp_path / "disk"
    put(real / "model")
    (real / "b.json").write_text("old")
    for name in ("model", "b.json", "new.json", "new"):
        (tmp_path / name).symlink_to(real / name)
    (tmp_path / "folder").symlink_to(real)
    with staged_directory(tmp_path / "model", may_replace=with_manifest) as staging:
        (staging / "a").write_text("new")
    with staged_directory(tmp_path / "new") as staging:
        (staging / "a").write_text("new")
    for name in ("b.json", "new.json", "folder/c.json"):
        write_text(tmp_path / name, "new")
    append_text(tmp_path / "b.json", "er")
    assert all((tmp_path / name).is_symlink() for name in ("model", "b.json", "new.json", "new"))
    assert {str(path.relative_to(real)): path.read_text() for path in real.rglob("*") if path.is_file()} == {
        "model/a": "new", "new/a": "new", "b.json": "newer", "new.json": "new", "c.json": "new",
    }  # fmt: skip


@pytest.fixture
def unusable(tmp_path):
    """Return what can't be written, file or directory: a pipe, a socket, links that lead nowhere."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "dangling").symlink_to("nowhere/at/all")
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "to pipe").symlink_to("pipe")
        yield [tmp_path / name for name in ("pipe", "socket", "dangling", "loop", "to pipe")]


def test_what_is_no_file_or_directory_is_refused_before_the_work_and_stays(unusable, tmp_path):
    before = snapshot(tmp_path)
    for path in unusable:
        for is_file in (True, False):
            with pytest.raises(CheckpointError):
                refuse_unwritable(path, where="--out", is_file=is_file)
        with pytest.raises(CheckpointError), staged_directory(path, may_replace=with_manifest):
            raise AssertionError("entered")
        with pytest.raises(CheckpointError), staged_file(path):
            raise AssertionError("entered")
        with pytest.raises(CheckpointError):
            append_text(path, "x")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("letter", "né漢")
def test_a_name_that_is_not_refused_before_the_work_can_be_written_and_replaced(tmp_path, letter):
    refused = []
    for length in range(1, 256):
        target = tmp_path / (letter * length)
        try:
            refuse_unwritable(target, where="--out", is_file=False)
        except CheckpointError as error:
            assert "too long" in str(error)
            refused.append(length * len(letter.encode()))
            with pytest.raises(CheckpointError), staged_directory(target):
                pytest.fail("it was entered")
            continue
        assert not refused
        for _again in range(2):
            with staged_directory(target, may_replace=with_manifest) as staging:
                (staging / "manifest.json").write_text("{}")
    assert min(refused) > 150
    assert len(list(tmp_path.iterdir())) + len(refused) == 255


def test_where_only_the_second_rename_fails_the_old_one_is_back_and_the_work_is_kept(
    tmp_path, monkeypatch
):
    target = tmp_path / "x"
    put(target)
    real = Path.rename
    calls = []

    def rename(self, to):
        calls.append(to)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(self))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(CheckpointError, match="Input/output") as caught,
        staged_directory(target, may_replace=with_manifest) as staging,
    ):
        (staging / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert (tmp_path / "x.unplaced" / "a").read_text() == "new"
    assert str(tmp_path / "x.unplaced") in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.unplaced"]


HOLD = (
    "import sys; from pathlib import Path; from headprune.runtime.targets import exclusive\n"
    "with exclusive(Path(sys.argv[1]), where='--run'): print('held', flush=True); sys.stdin.read()"
)


def test_a_directory_in_use_is_refused_until_its_process_ends_however_it_ends(tmp_path):
    folder = tmp_path / "runs" / "mine"
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with pytest.raises(CheckpointError, match="in use"), exclusive(folder, where="--run-dir"):
            raise AssertionError("entered")
        child.kill()
        child.wait()
    with exclusive(folder, where="--run-dir"):
        pass
    folder.rmdir()
    folder.parent.rmdir()
    with exclusive(folder, where="--run-dir"):
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == [], "what was made for the lock alone"
    with exclusive(folder, where="--run-dir"):
        (folder / "scores").write_text("x")
    assert (folder / "scores").is_file()
