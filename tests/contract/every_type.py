"""The contract over every model type, in several processes; writes docs/support.md. See scripts/support."""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the contract shares with the other tests
SECONDS_A_TYPE = 900


def _verdict(name: str) -> tuple[Any, str, float]:
    """Return what became of a type, and the law it broke, if any."""
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    from law import BrokenLawError, Verdict, examine

    def late(_signal: int, _frame: object) -> None:
        raise BrokenLawError(f"it took more than {SECONDS_A_TYPE} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS_A_TYPE)
    started = time.perf_counter()
    try:
        return examine(name), "", time.perf_counter() - started
    except Exception as error:  # noqa: BLE001 - one type's failure is a finding, not the end
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return (
            Verdict(name, "refused", f"it breaks the contract: {text}"),
            text,
            time.perf_counter() - started,
        )
    finally:
        signal.alarm(0)


def main() -> None:
    """Run the types named, or all of them."""
    import support
    from law import TOLERANCE
    from zoo import model_types
    from zoo_variants import VARIANTS

    names = sys.argv[1:] or [*model_types(), *VARIANTS]
    verdicts, broken = [], []
    # A process for a few types each: what imports and models leave behind is given back.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=40) as pool:
        for done, (verdict, problem, seconds) in enumerate(pool.imap_unordered(_verdict, names), 1):
            verdicts.append(verdict)
            if problem:
                broken.append(verdict)
            if verdict.state != "not built":
                print(
                    f"{done}/{len(names)} {verdict.name}: {verdict.state} "
                    f"{','.join(verdict.executions)} {verdict.reason[:150]} ({seconds:.1f} s)",
                    flush=True,
                )
    found = sum(verdict.found for verdict in verdicts)
    built = sum(verdict.state not in ("not built", "no attention") for verdict in verdicts)
    print(f"{built} types with attention, {found} found and exact, {len(broken)} broke a law")
    for verdict in broken:
        print(f"BROKEN {verdict.name}: {verdict.reason}")
    if not sys.argv[1:]:
        support.PAGE.write_text(support.page(verdicts, tolerance=TOLERANCE), encoding="utf-8")
        print(f"wrote {support.PAGE.name}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
