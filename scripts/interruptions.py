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
        if not run(folder, [*words, "--run", "whole"]):
            sys.exit("the run that nobody killed failed")
        whole = time.perf_counter() - started
        parts = folder / "killed" / "partial"
        found: list[int] = []
        for _ in range(asked.kills):
            # Late enough to have begun, early enough that some runs do little: most of a short run is imports.
            if run(folder, [*words, "--run", "killed"], seconds=moments.uniform(0.1, 0.6) * whole):
                break
            found.append(len(list(parts.glob("*/*.safetensors"))))
        if not (folder / "killed" / "scores.json").exists():
            run(folder, [*words, "--run", "killed"])
        same = (folder / "whole" / "scores.json").read_bytes() == (
            folder / "killed" / "scores.json"
        ).read_bytes()
        left = [path.name for path in (folder / "killed").iterdir()]
    print(f"killed {len(found)} times, with so many batches done: {found}")
    print(f"left in the run's directory: {left}")
    print("the scores are the same bytes" if same else "the scores DIFFER")
    sys.exit(not same)


if __name__ == "__main__":
    main()
