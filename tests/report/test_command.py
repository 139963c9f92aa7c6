"""The command makes a report without model, data or a model library, and replaces nothing of anyone else's."""

import json
import resource
import subprocess
import sys

import pytest
import report_documents as made


@pytest.fixture
def run_dir(run_here):
    return made.write(run_here / "runs" / "001-unique", "scores.json")


def test_a_report_lies_beside_its_first_run(run_dir, run_here, command_line):
    other = made.write(run_here / "sweep", "sweep.json")
    code, out, err = command_line("report", run_dir, other)
    assert code == 0, err
    assert [path.name for path in (run_here / "runs").iterdir()] == [
        "001-unique",
        "001-unique-report.html",
    ]
    assert "runs/001-unique-report.html" in out
    code, out, _ = command_line("report", "runs/001-unique/scores.json", "--json")
    assert (code, json.loads(out)["report"]) == (0, "runs/001-unique/scores-report.html")


def test_a_report_is_replaced_where_that_is_asked_for(run_dir, run_here, command_line):
    words = ("report", run_dir, "--out", "r.html")
    assert command_line(*words)[0] == 0
    first = (run_here / "r.html").read_bytes()
    made.write(run_here / "more", "sweep.json")
    code, _, err = command_line("report", run_here / "more", "--out", "r.html")
    assert code == 2
    assert "is there already" in err
    assert "--overwrite" in err
    assert (run_here / "r.html").read_bytes() == first
    assert command_line("report", run_here / "more", "--out", "r.html", "--overwrite")[0] == 0
    assert (run_here / "r.html").read_bytes() != first


def test_nothing_of_anyone_elses_is_replaced(run_dir, run_here, command_line):
    (run_here / "r.html").write_text("<!doctype html><p>mine")
    (run_here / "pictures").mkdir()
    (run_here / "pictures" / "mine.png").write_bytes(b"mine")
    code, _, err = command_line("report", run_dir, "--out", "r.html", "--overwrite")
    assert code == 2
    assert "no page of headprune report" in err
    words = ("--out", "s.html", "--pictures", "pictures", "--overwrite")
    code, _, err = command_line("report", run_dir, *words)
    assert code == 2
    assert "did not write" in err
    assert (run_here / "r.html").read_text() == "<!doctype html><p>mine"
    assert (run_here / "pictures" / "mine.png").read_bytes() == b"mine"
    assert not (run_here / "s.html").exists()


def test_pictures_are_written_of_every_chart(run_here, command_line):
    words = ("report", made.write(run_here / "all"), "--out", "r.html", "--pictures", "pictures")
    code, out, err = command_line(*words, "--json")
    assert code == 0, err
    charts = json.loads(out)["charts"]
    assert charts == [*made.CHARTS]
    names = {f"{name}.{kind}" for name in charts for kind in ("png", "svg")}
    assert {path.name for path in (run_here / "pictures").iterdir()} == {*names, "manifest.json"}
    first = {name: (run_here / "pictures" / name).read_bytes() for name in names}
    assert command_line(*words, "--overwrite")[0] == 0
    assert {name: (run_here / "pictures" / name).read_bytes() for name in names} == first


def test_settings_of_other_commands_have_no_say(run_dir, run_here, command_line):
    (run_here / "headprune.yaml").write_text("out: smaller\nnonsense: 1\n")
    code, _, err = command_line("report", run_dir)
    assert code == 0, err
    assert (run_dir.parent / "001-unique-report.html").is_file()


def test_no_run_is_named(run_here, command_line):
    code, _, err = command_line("report")
    assert code == 2
    assert "RUN_OR_DIR" in err


def test_a_report_needs_no_model_library_and_little_time(run_here):
    run_dir = made.write(run_here / "all")
    script = (
        "import sys\nfrom headprune.cli import main\n"
        f"sys.argv = ['headprune', 'report', {str(run_dir)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'scipy'} & {*sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5, "seconds of CPU: others may use this machine"
    assert (run_here / "all-report.html").stat().st_size < 500_000
