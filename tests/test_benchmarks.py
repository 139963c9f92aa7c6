"""The benchmarks run: each in its smallest form, so that none rots while the house around it changes."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.mutants import FAULTS

ROOT = Path(__file__).parent.parent
QUICK = ("speed", "quality", "real_models", "memory")


def run(name, *words, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_module_of_the_benchmarks_can_be_imported():
    names = [module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]
    assert set(QUICK) <= {name.split(".")[1] for name in names}
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_a_recipe_is_measured_as_its_authors_state_it(tmp_path):
    out = tmp_path / "quality.jsonl"
    recipes = ("headprune", "michel", "kwon")
    done = run("quality", "--quick", "--json", out, "--recipe", *recipes, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["contender"] for row in rows] == list(recipes)
    assert [row["heads"] for row in rows] == [[6, 12]] * 3
    assert all(row["n"] == 64 for row in rows)
    assert rows[1]["reconstruct"] is None, "michel reconstructs nothing"
    again = run("quality", "--quick", "--json", out, "--recipe", *recipes, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(out.read_text().splitlines()) == 3, "what is measured is not measured again"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_deliberate_fault_has_its_place(fault):
    assert (ROOT / "headprune" / fault.file).read_text().count(fault.right) == 1, fault.file


@pytest.mark.nightly
@pytest.mark.real_model
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted({*QUICK} - {"quality"}))
def test_the_smoke_run_passes(name, tmp_path):
    done = run(name, "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
