"""What was found: as JSON, in a few lines, and as docs/reliability.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.faults.drive import CAMPAIGNS, Record, Request

Document = Mapping[str, Any]
_SHOWN = 40


def document(
    records: Sequence[Record],
    *,
    request: Request,
    as_root: bool,
    earlier: Sequence[Document] = (),
) -> dict[str, Any]:
    """Return everything that was found, by campaign.

    Args:
        records: The trials.
        request: What was asked for.
        as_root: Whether root tried it.
        earlier: What other runs found of campaigns that this one left out.
    """
    from headprune.placement import versions

    words = [f"--seed {request.seed}"]
    words += ["--quick"] if request.quick else []
    ran = {
        "date": datetime.now(UTC).date().isoformat(),
        "as_root": as_root,
        "seed": request.seed,
        "versions": versions(),
    }
    here = {
        name: {
            **ran,
            "command": " ".join(["python -m benchmarks.faults", f"--only {name}", *words]),
            **_campaign(name, [r for r in records if r["campaign"] == name]),
        }
        for name in (request.only or CAMPAIGNS)
    }
    known = {name: part for other in earlier for name, part in other["campaigns"].items()} | here
    return {"format": 2, "campaigns": {name: known[name] for name in CAMPAIGNS if name in known}}


def _campaign(name: str, records: Sequence[Record]) -> dict[str, Any]:
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for record in records:
        tried[record["kind"]] += record["tries"]
        failed[record["kind"]] += bool(record["problem"])
        notes[record["note"]] += 0 if record["problem"] else record["tries"]
    return {
        "planned": CAMPAIGNS[name].full,
        "tried": sum(tried.values()),
        "failed": sum(failed.values()),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "kinds": {kind: [tried[kind], failed[kind]] for kind in sorted(tried)},
        "right": {note: count for note, count in sorted(notes.items()) if note and count},
        "failures": [
            {name: record[name] for name in ("trial", "kind", "problem")}
            for record in records
            if record["problem"]
        ],
    }


def failures(found: Document) -> int:
    """Return how many trials failed."""
    return sum(part["failed"] for part in found["campaigns"].values())


def summary(found: Document) -> list[str]:
    """Return some lines for the terminal: what failed, then the counts."""
    lines = [
        f"FAILED --only {name} --seed {part['seed']} --trial {failure['trial']}: {failure['kind']}: {failure['problem']}"
        for name, part in found["campaigns"].items()
        for failure in part["failures"][:5]
    ]
    lines += [
        f"{name}: {part['tried']} tried, {part['failed']} failed, {part['seconds']:.0f} s  "
        + ", ".join(f"{count} {note}" for note, count in part["right"].items())
        for name, part in found["campaigns"].items()
    ]
    return [*lines, "FAILED" if failures(found) else "passed"]


def page(found: Document) -> str:
    """Return docs/reliability.md."""
    lines = [
        "# Reliability",
        "",
        "Written by `python -m benchmarks.faults --page`, which tries what happens to files when things go wrong.",
        "Every trial runs in a temporary folder of its own, offline, on tiny models of two layers; an audit hook refuses, and",
        "reports, what would change anything outside. With `--trial N` behind a command, that trial alone is run again.",
        "",
        "- P6: an interrupted or failed run loses nothing, leaves nothing half-written, and resumes; nothing of anyone else's is",
        "  ever replaced or removed.",
        "- P7: no pickle, no network unless asked, no remote code unless asked, no traceback for a user's mistake.",
        "",
        "| campaign | tried | failed | those that were right |",
        "|---|---|---|---|",
    ]
    for name, part in found["campaigns"].items():
        right = ", ".join(f"{count:,} {note}" for note, count in part["right"].items())
        lines.append(f"| {name} | {part['tried']:,} | {part['failed']:,} | {right} |")
    for name, part in found["campaigns"].items():
        lines += _section(name, part)
    return "\n".join([*lines, ""])


def _section(name: str, part: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    user = "root" if part["as_root"] else "an ordinary user"
    lines = ["", f"## {name}", "", f"Promised: {CAMPAIGNS[name].promise}", ""]
    lines += [f"Tried: {CAMPAIGNS[name].tried}", "", f"    {part['command']}", ""]
    lines += [
        f"{part['date']}, {versions}, by {user}.",
        "",
        "| what | tried | failed |",
        "|---|---|---|",
    ]
    lines += [
        f"| {_cell(kind)} | {tried:,} | {failed:,} |"
        for kind, (tried, failed) in part["kinds"].items()
    ]
    if part["failures"]:
        lines += ["", "What failed:", ""]
        lines += [
            f"- trial {failure['trial']}, {failure['kind']}: `{_code(failure['problem'])}`"
            for failure in part["failures"][:_SHOWN]
        ]
        more = len(part["failures"]) - _SHOWN
        lines += [f"- and {more} more"] if more > 0 else []
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
