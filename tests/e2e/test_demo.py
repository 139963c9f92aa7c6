"""The main job on all-MiniLM-L6-v2 and STS-B, as `./scripts/demo` runs it: the golden numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.real_model


def headprune(*words, folder):
    # The table of a run is for eyes: UTF-8 whatever the locale.
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-m", "headprune", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Run `headprune prune --keep 0.7` in an empty directory; an eighth of the calibration rows will do here."""
    folder = tmp_path_factory.mktemp("demo")
    done = headprune(
        "prune", "--keep", "0.7", "--num-samples", "128", "--no-latency", "--json", folder=folder
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def test_the_numbers_are_the_promised_ones(pruned):
    _folder, results, talk = pruned
    assert results["before"]["value"] == pytest.approx(0.8203, abs=0.0005)
    assert results["before"]["n"] == results["after"]["n"] == 1379
    assert results["after"]["value"] >= 0.820
    assert results["before"]["heads"] - results["after"]["heads"] == 22
    assert results["before"]["parameters"] - results["after"]["parameters"] == 1_083_456
    saved = results["weights_bytes"][0] - results["weights_bytes"][1]
    assert saved == pytest.approx(4 * 1_083_456, rel=0.02)
    assert all(proof["passed"] for proof in results["proofs"])
    assert results["calibration"]["n"] == 128
    assert "the built-in demo" in talk


@pytest.mark.nightly
def test_the_check_passes_on_it_and_fails_on_a_model_of_a_tenth(pruned):
    folder, _results, _talk = pruned
    baseline = ("--baseline", ROOT / "configs" / "demo-baseline.json", "--max-drop", "0.01")
    model = folder / "headprune-models" / "demo-minilm-keep-0.7"
    passed = headprune("check", model / "results.json", *baseline, folder=folder)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    done = headprune(
        "prune",
        "--keep",
        "0.1",
        "--limit",
        "64",  # what it reports isn't looked at
        "--reconstruct",
        "none",
        "--no-latency",
        "--out",
        "tenth",
        "--json",
        "--scores",
        model / "scores.json",
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    data = ("--task", "similarity", "--data", "demo:stsb", "--split", "test")
    failed = headprune(
        "check",
        folder / "tenth",
        *data,
        *baseline,
        "--format",
        "github",
        "--no-latency",
        folder=folder,
    )
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "::error title=headprune check%3A max-drop failed::" in failed.stdout


def test_it_loads_as_a_sentence_transformer_too(pruned):
    """The directory stays what it was: modules.json and pooling are still there."""
    script = (
        "import sys; sys.modules['headprune'] = None\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device='cpu')\n"
        "a, b, c = model.encode(['A man plays the guitar.', 'Someone plays an instrument.', 'Stocks fell.'])\n"
        "assert a @ b > 0.5 > a @ c, (a @ b, a @ c)\n"
    )
    model = pruned[0] / "headprune-models" / "demo-minilm-keep-0.7"
    environment = {**os.environ, "HF_MODULES_CACHE": str(pruned[0] / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
