"""Kill a run at random moments and go on; see scripts/interruptions."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCORE = [sys.executable, "-m", "headprune", "score", "--method", "ablation"]


def run(folder: Path, words: list[str], *, seconds: float | None = None) -> bool:
    """Run the command, killed after so many seconds; say whether it came to its end."""
    process = subprocess.Popen(
        [*SCORE, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def main() -> None:
    """Compare a run that was killed with one that wasn't."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    words = ["--num-samples", str(asked.rows), "--batch-size", "4"]
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        if not run(folder, [*words, "--run-dir", "whole"]):
            sys.exit("the run that nobody killed failed")
        seconds = time.perf_counter() - started
        expected = (folder / "whole" / "scores.json").read_bytes()
        kills, runs, same = 0, 0, True
        while kills < asked.kills:
            runs += 1
            target = folder / f"killed-{runs}"
            found: list[int] = []
            while not (target / "scores.json").exists():
                if kills < asked.kills:
                    # From the middle of the imports to the end of a whole run: most of a short run is imports.
                    limit = moments.uniform(0.3, 1.0) * seconds
                    kills += not run(folder, [*words, "--run-dir", target.name], seconds=limit)
                else:
                    run(folder, [*words, "--run-dir", target.name])
                found.append(len(list(target.glob("partial/*/*.safetensors"))))
            left = [path.name for path in target.iterdir()]
            agrees = (target / "scores.json").read_bytes() == expected and left == ["scores.json"]
            same = same and agrees
            print(
                f"run {runs}: batches done at each stop {found[:-1]}, "
                + ("then the same bytes" if agrees else f"then OTHER bytes, or leftovers {left}"),
                flush=True,
            )
    print(f"killed {kills} times: " + ("the scores are the same bytes" if same else "DIFFERENT"))
    sys.exit(not same)


if __name__ == "__main__":
    main()
