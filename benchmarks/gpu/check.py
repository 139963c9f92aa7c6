"""The whole check of a GPU in one command: the tests in tests/gpu, then the benchmark; see scripts/gpu-check.

Imports nothing but the standard library: on a bare machine the packages come as wheels first.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
# What may be missing beside torch, transformers, accelerate, numpy, scipy, pandas, pyarrow, rich, typer, safetensors, jaxtyping,
# pytest, hypothesis and what those need, by the name under which it is imported. Versions are those of constraints.txt.
WHEELS = {
    "pydantic": "pydantic",
    "pydantic_core": "pydantic_core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "yaml": "PyYAML",
    "datasets": "datasets",
    "multiprocess": "multiprocess",
    "dill": "dill",
    "xxhash": "xxhash",
    "aiohttp": "aiohttp",
    "aiosignal": "aiosignal",
    "aiohappyeyeballs": "aiohappyeyeballs",
    "attrs": "attrs",
    "frozenlist": "frozenlist",
    "multidict": "multidict",
    "propcache": "propcache",
    "yarl": "yarl",
    "evaluate": "evaluate",
    "requests": "requests",
    "certifi": "certifi",
    "charset_normalizer": "charset-normalizer",
    "urllib3": "urllib3",
    "matplotlib": "matplotlib",
    "contourpy": "contourpy",
    "cycler": "cycler",
    "fontTools": "fonttools",
    "kiwisolver": "kiwisolver",
    "PIL": "pillow",
    "pyparsing": "pyparsing",
    "beartype": "beartype",
    "pytest_timeout": "pytest-timeout",
    "xdist": "pytest-xdist",
    "execnet": "execnet",
}
# What builds headprune itself, without an index.
BUILD = {"hatchling": "hatchling", "pathspec": "pathspec", "trove_classifiers": "trove-classifiers"}
_PYTHON = "3.12"
_LARGEST_BYTES = 60_000_000
_LONGEST_TESTS = 90
_LINES = 60


class Step(NamedTuple):
    """One part of the check: what failed in it, and what to show of it."""

    name: str
    failed: list[str]
    shown: list[str]
    seconds: float


def main() -> None:
    """Do what is asked on the command line; exit 1 where something failed."""
    asked = _parser().parse_args()
    if asked.fetch_wheels:
        sys.exit(fetch_wheels(Path(asked.fetch_wheels)))
    with tempfile.TemporaryDirectory() as site:
        environment = _environment(Path(site), Path(asked.wheels))
        out = Path(asked.out)
        out.mkdir(parents=True, exist_ok=True)
        device, name = _device(asked.device, environment)
        environment["HEADPRUNE_TEST_DEVICE"] = device
        steps = [
            _tests(device, out, environment),
            _benchmark(asked, device, out, environment),
        ]
    sys.exit(_report(steps, out, device=name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check", description="Run the tests for a GPU, then the benchmark."
    )
    add = parser.add_argument
    add("--device", default="auto", help="auto (a GPU where there is one), cuda, cpu")
    add("--quick", action="store_true", help="tiny sizes in the benchmark: shows that it runs")
    add("--minutes", type=float, default=7, help="of the benchmark (default: 7)")
    add("--out", metavar="DIR", default="gpu-check", help="where results go (default: gpu-check)")
    wheels = ROOT.parent / "headprune-wheels"
    add("--wheels", metavar="DIR", default=str(wheels), help="wheels of what isn't installed")
    add("--fetch-wheels", metavar="DIR", help="bring those wheels, for another machine, and stop")
    return parser


def fetch_wheels(folder: Path) -> int:
    """Download what a bare machine lacks, for its Python and processor; return the exit code."""
    versions = _pinned()
    wanted = [f"{name}=={versions[_plain(name)]}" for name in WHEELS.values()]
    platforms = [f"manylinux_2_{number}_x86_64" for number in (28, 27, 24, 17)]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--only-binary=:all:", "--python-version", _PYTHON, "--implementation", "cp"),
        *(f"--platform={name}" for name in (*platforms, "manylinux2014_x86_64")),
        *("--dest", str(folder), *wanted, *BUILD.values()),
    ]
    code = subprocess.run(command, check=False).returncode
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    tree = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    size += sum((ROOT / name).stat().st_size for name in tree if name and (ROOT / name).is_file())
    print(f"{folder}: with the tree {size / 1e6:.1f} MB (at most {_LARGEST_BYTES / 1e6:.0f})")
    return code or int(size > _LARGEST_BYTES)


def _pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {_plain(name): version for name, _, version in pairs}


def _plain(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return name.lower().replace("_", "-")


def _environment(site: Path, wheels: Path) -> dict[str, str]:
    """Return the environment of the steps; what is missing is installed into ``site``, nowhere else."""
    paths = [str(ROOT)]
    missing = [name for name in WHEELS if importlib.util.find_spec(name) is None]
    missing += [] if list(importlib.metadata.distributions(name="headprune")) else ["headprune"]
    if missing:
        found = sorted(map(str, wheels.glob("*.whl")))
        if not found:
            sys.exit(
                f"error: {', '.join(missing)} can't be imported, and there are no wheels\n"
                f"  in:   {wheels}\n"
                "  try:  scripts/gpu-check --fetch-wheels DIR where there is an index, and --wheels DIR here"
            )
        _install(site, found)
        _install(site, ["--no-build-isolation", str(ROOT)], path=str(site))
        paths.append(str(site))
    given = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *([given] if given else [])]),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
    }


def _install(site: Path, what: list[str], *, path: str = "") -> None:
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run(
        [sys.executable, *pip, "--upgrade", "--target", str(site), *what],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )


def _device(asked: str, environment: dict[str, str]) -> tuple[str, str]:
    """Return ``cuda`` or ``cpu``, and what it is; of several GPUs the one that is asked for is the only one to be seen."""
    kind, _, number = asked.partition(":")
    if number:
        environment["CUDA_VISIBLE_DEVICES"] = number
    probe = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    seen = subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind == "cpu" or (kind == "auto" and not seen):
        return "cpu", "the CPU" + (", for there is no GPU" if kind == "auto" else "")
    if not seen:
        sys.exit(
            "error: torch sees no GPU\n"
            f"  in:   --device {asked}\n"
            "  try:  nvidia-smi tells whether there is one; --device cpu --quick needs none"
        )
    return "cuda", seen


def _tests(device: str, out: Path, environment: dict[str, str]) -> Step:
    report = out / "tests.xml"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"),
        *("-n", "0", "--durations=8", "--timeout=60", f"--junitxml={report.absolute()}"),
    ]
    code = _logged(command, out / "tests.log", environment)
    seconds = time.monotonic() - started
    if not report.exists():
        return Step(
            "tests", [f"the tests did not run (exit {code})"], _end(out / "tests.log"), seconds
        )
    cases = list(ET.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('name')}: {' '.join((problem.get('message') or '').split())[:160]}"
        for case in cases
        for problem in [*case.findall("failure"), *case.findall("error")]
    ]
    if not cases or (code and not failed):
        failed.append(f"pytest ended with exit {code} after {len(cases)} tests")
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - skipped - len(failed)
    slow = sorted(cases, key=lambda case: -float(case.get("time") or 0))[:3]
    shown = [f"{passed} passed, {len(failed)} failed, {skipped} skipped"]
    if device != "cpu" and seconds > _LONGEST_TESTS:
        failed.append(f"the tests took {seconds:.0f} s, and {_LONGEST_TESTS} s are allowed")
    if not passed:
        failed.append("no test passed")
    shown += [f"  {float(case.get('time') or 0):.1f} s  {case.get('name')}" for case in slow]
    return Step("tests", failed, shown, seconds)


def _benchmark(
    asked: argparse.Namespace, device: str, out: Path, environment: dict[str, str]
) -> Step:
    started = time.monotonic()
    command = [
        *(sys.executable, "-m", "benchmarks.gpu", "--device", device),
        *("--minutes", str(asked.minutes), "--json", str((out / "gpu.json").absolute())),
        *("--page", str((out / "gpu.md").absolute()), *(["--quick"] if asked.quick else [])),
    ]
    for name in ("gpu.json", "gpu.md"):
        (out / name).unlink(missing_ok=True)
    code = _logged(command, out / "benchmark.log", environment)
    seconds = time.monotonic() - started
    if not (out / "gpu.json").exists():
        failed = [f"the benchmark ended with exit {code}", *_end(out / "benchmark.log")]
        return Step("benchmark", failed, [], seconds)
    document = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    text = (out / "gpu.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## Kernels")[0].splitlines() if line.startswith("|")]
    failed = document["failed"]
    if code and not failed:
        failed = [f"the benchmark ended with exit {code}", *_end(out / "benchmark.log")]
    if device != "cpu" and not asked.quick:
        (ROOT / "docs" / "gpu.md").write_text(text, encoding="utf-8")
    missing = [f"no time was left for: {line}" for line in document["no_time"]]
    return Step("benchmark", failed, [*rows, *missing], seconds)


def _logged(command: list[str], log: Path, environment: dict[str, str]) -> int:
    print(f"gpu-check: {log.stem}", file=sys.stderr, flush=True)
    with log.open("w", encoding="utf-8") as file:
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode


def _end(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-6:]


def _report(steps: list[Step], out: Path, *, device: str) -> int:
    """Print what failed, then a summary, in at most 60 lines; return the exit code."""
    failed = [f"FAILED {step.name}: {line}" for step in steps for line in step.failed]
    summary = [
        line for step in steps for line in (f"{step.name} ({step.seconds:.0f} s)", *step.shown)
    ]
    head = failed[: _LINES // 2]
    if len(failed) > len(head):
        head[-1] = f"... and {len(failed) - len(head) + 1} more failed"
    room = _LINES - len(head) - 3
    if len(summary) > room:
        summary = [*summary[: room - 1], f"... {len(summary) - room + 1} more lines"]
    print(
        "\n".join(
            [
                *head,
                f"on {device}",
                *summary,
                f"everything: {out}",
                "FAILED" if failed else "passed",
            ]
        )
    )
    return int(bool(failed))


if __name__ == "__main__":
    main()
