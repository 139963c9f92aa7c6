"""The campaign of faults (benchmarks/faults): its quick part passes, and what it is made of sees what goes wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults import grammar, page
from benchmarks.faults.child import run, start
from benchmarks.faults.damage import damage
from benchmarks.faults.drive import CAMPAIGNS, Request
from benchmarks.faults.place import Ended, Limits, Place
from benchmarks.faults.scenarios import listing
from benchmarks.faults.watch import Fault

ROOT = Path(__file__).parent.parent
# Newer Pythons warn of every fork of a process that has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.mark.nightly
@pytest.mark.parametrize("part", ["--quick", "--minutes=1"])
def test_a_part_of_the_campaigns_passes(part, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    # --as-root: where this is root and nobody else can read this Python, the audit hook alone keeps trials in their folder.
    files = ["--json", tmp_path / "found.json", "--page", tmp_path / "page.md"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", part, "--jobs", "1", "--as-root", *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "passed"
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert set(found["campaigns"]) == set(CAMPAIGNS)
    for name in found["campaigns"]:
        assert found["campaigns"][name]["tried"] > 0 or part != "--quick", name
        assert found["campaigns"][name]["failed"] == 0, name
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for name in CAMPAIGNS:
        assert f"## {name}" in text
        assert f"| {name} | {found['campaigns'][name]['tried']:,} | 0 |" in text


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    place = Place(tmp_path / "trial")
    place.renew()
    return place


def _three_files():
    for name in ("a", "b", "c"):
        Path(name).write_text(name, encoding="utf-8")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_nth_call_fails_and_those_before_have_happened(place, at):
    ended = run(place, _three_files, fault=Fault(at, errno.ENOSPC))
    assert sorted(listing(place.work)) == ["a", "b", "c"][: at - 1]
    assert "No space left" in ended.err
    assert ended.problem()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_kill_comes_before_the_nth_change(place, at):
    ended = run(place, _three_files, fault=Fault(at, counted="changes"))
    assert ended.code == -signal.SIGKILL
    assert sorted(listing(place.work)) == ["a", "b", "c"][: at - 1]


def test_a_full_disk_stays_full_and_files_can_be_removed_still(place):
    def act():
        for name in ("a", "b", "c"):
            try:
                Path(name).write_text(name, encoding="utf-8")
            except OSError as error:
                sys.stdout.write(f"{error.strerror}\n")
        Path("a").unlink()

    ended = run(place, act, fault=Fault(2, errno.ENOSPC, lasting=True))
    assert ended.out == "No space left on device\n" * 2
    assert listing(place.work) == {}


def test_a_file_that_may_not_grow_fails_and_what_is_printed_is_whole(place):
    def act():
        sys.stdout.write("x" * 5000)
        Path("a").write_bytes(bytes(5000))

    ended = run(place, act, limits=Limits(file_size=100))
    assert "File too large" in ended.err
    assert ended.out == "x" * 5000
    assert (place.work / "a").stat().st_size <= 100


def test_kills_find_the_moment_between_two_renames(place):
    for name in ("target", "new"):
        (place.work / name).mkdir()

    def replace():
        Path("unrelated").touch()
        Path("target").rename("old")
        Path("new").rename("target")

    assert run(place, replace, fault=Fault(target="target")).after == 2
    place.renew()
    for name in ("target", "new"):
        (place.work / name).mkdir()
    run(place, replace, fault=Fault(2, counted="after", target="target"))
    assert sorted(listing(place.work)) == ["new", "old", "unrelated"]


@pytest.mark.parametrize(
    "act",
    [
        lambda path: path.write_text("changed", encoding="utf-8"),
        lambda path: path.unlink(),
        lambda path: path.rename("mine"),
        lambda path: path.chmod(0o777),
        lambda path: path.with_name("folder").mkdir(),
        lambda path: path.with_name("link").symlink_to(path),
    ],
)
def test_nothing_outside_is_changed_and_the_attempt_is_told(place, act):
    theirs = place.outside / "theirs"
    theirs.write_text("theirs", encoding="utf-8")
    before = listing(place.outside)
    ended = run(place, lambda: act(theirs))
    assert listing(place.outside) == before
    assert "outside" in ended.problem()


def test_a_write_through_a_link_out_is_refused(place):
    theirs = place.outside / "theirs"
    theirs.write_text("theirs", encoding="utf-8")
    (place.work / "link").symlink_to(theirs)
    ended = run(place, lambda: Path("link").write_text("changed", encoding="utf-8"))
    assert theirs.read_text(encoding="utf-8") == "theirs"
    assert ended.escaped


def test_what_hangs_is_ended_and_said(place):
    ended = run(place, lambda: time.sleep(60), limits=Limits(seconds=0.3))
    assert ended.hung
    assert "no end" in ended.problem()


def test_a_signal_comes_after_the_action_has_begun(place):
    def act():
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            sys.stdout.write("interrupted\n")

    ended = start(place, act).wait(blow=0.05, number=signal.SIGINT)
    assert ended.out == "interrupted\n"
    assert ended.code == 0


def test_what_is_lawful():
    def ended(code, err):
        return Ended(code, "", err, 0, 0, 0, 0, (), False, (), 0).problem()

    assert not ended(2, "error: a\n  in:   b\n  try:  c\n")
    assert not ended(2, "talk\nerror: a\nand more\n  in:   b\n  try:  c\n")
    assert ended(2, "error: a\n  in:   b\n")
    assert ended(2, "")
    assert ended(1, "")
    assert ended(-11, "")
    assert ended(2, "error: something unexpected went wrong: x\n  in:   b\n  try:  c\n")
    assert ended(0, "Traceback (most recent call last):\n")


@given(st.binary(min_size=1, max_size=200), st.integers(0, 2**32))
def test_damage_is_the_same_for_the_same_seed_and_never_longer(content, seed):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        results = []
        for name in ("a", "b"):
            path = Path(folder) / name
            path.write_bytes(content)
            damage(path, Random(seed))
            results.append(path.read_bytes())
    assert results[0] == results[1]
    assert len(results[0]) <= len(content)


@given(st.integers(0, 2**32))
def test_malformed_input_is_the_same_for_the_same_seed(seed):
    right = json.dumps({"a": [1, {"b": "c"}], "d": None})
    for make in (
        lambda draw: grammar.mutated_json(right, draw),
        lambda draw: grammar.mutated_yaml(("keep", "data"), draw),
        lambda draw: grammar.mutated_table(draw, separator=","),
        grammar.mutated_lines,
        lambda draw: grammar.mutated_words(("--keep", "--data"), draw, choose=lambda: "x"),
    ):
        assert make(Random(seed)) == make(Random(seed))


def test_failures_are_on_the_page_with_what_repeats_them():
    trial = {"campaign": "kills", "trial": 7, "kind": "export", "note": "", "seconds": 1.0}
    records = [{**trial, "problem": "it is lost", "tries": 1}]
    records.append({**trial, "trial": 8, "problem": "", "note": "target new", "tries": 1})
    request = Request(3, 60.0, False, 1, ("kills",), None)
    document = page.document(records, request=request, as_root=False)
    assert page.failures(document) == 1
    assert page.summary(document)[0].startswith("FAILED --only kills --seed 3 --trial 7: export")
    assert page.summary(document)[-1] == "FAILED"
    # Another day's run of another campaign stands beside it, each with its own command.
    request = request._replace(seed=4, only=("pairs",))
    text = page.page(page.document([], request=request, as_root=False, earlier=[document]))
    assert "| kills | 2 | 1 | 1 target new |" in text
    assert "trial 7, export: `it is lost`" in text
    assert "python -m benchmarks.faults --only kills --seed 3\n" in text
    assert "python -m benchmarks.faults --only pairs --seed 4\n" in text
