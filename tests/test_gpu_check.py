"""scripts/gpu-check runs here too, and what it prints is short."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu.check import BUILD, WHEELS, Step, _pinned, _plain, _report
from benchmarks.gpu.kernels import idle_share

ROOT = Path(__file__).parent.parent


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_whole_check_passes_on_the_cpu(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [ROOT / "scripts" / "gpu-check", *("--device", "cpu", "--quick"), "--out", tmp_path / "out"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 60
    assert lines[-1] == "passed"
    assert " 0 failed" in done.stdout
    assert "on the CPU" in lines
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    for cases in document["results"].values():
        assert len(cases) == 3
        for found in cases.values():
            assert {"naive", "ablation", "unique"} <= set(found["timings"])
            assert found["problems"] == {}
            assert len(found["profile"]["kernels"]) == 10
    for name, found in document["results"]["fp32"].items():
        assert found["difference"] < 1e-5, name
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "| fp32 | bert 4 x 16 |" in page
    assert page.count("operators on the CPU") == 6


def test_failures_come_first_and_all_is_short(capsys):
    steps = [
        Step("tests", [f"test {number}" for number in range(40)], ["some passed"], 1.0),
        Step("benchmark", [], [f"line {number}" for number in range(90)], 2.0),
    ]
    assert _report(steps, Path("out"), device="a GPU") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 60
    assert lines[0] == "FAILED tests: test 0"
    assert lines[29] == "... and 11 more failed"
    assert lines[30:32] == ["on a GPU", "tests (1 s)"]
    assert lines[-1] == "FAILED"
    assert _report([Step("tests", [], ["fine"], 1.0)], Path("out"), device="") == 0


def test_every_wheel_has_a_version():
    pinned = _pinned()
    assert {_plain(name) for name in WHEELS.values()} <= set(pinned)
    assert not set(BUILD) & set(WHEELS)


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([], 0.0),
        ([(0, 2)], 0.0),
        ([(0, 2), (1, 3), (9, 10)], 0.6),
        ([(5, 6), (0, 4), (1, 2)], 1 / 6),
    ],
)
def test_the_share_of_time_in_which_nothing_runs(spans, share):
    assert idle_share(spans) == pytest.approx(share)
