"""What was found: as JSON, in a few lines, and as docs/reliability.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.faults.drive import CAMPAIGNS, Record, Request

Document = Mapping[str, Any]
_SHOWN = 40


def document(records: Sequence[Record], *, request: Request, as_root: bool) -> dict[str, Any]:
    """Return everything that was found, by campaign."""
    from headprune.models import versions

    words = [f"--minutes {request.seconds / 60:g}", f"--seed {request.seed}"]
    words += ["--quick"] if request.quick else []
    words += [f"--only {','.join(request.only)}"] if request.only else []
    return {
        "format": 1,
        "command": " ".join(["scripts/faults", *words]),
        "date": datetime.now(UTC).date().isoformat(),
        "as_root": as_root,
        "seed": request.seed,
        "versions": versions(),
        "campaigns": {
            name: _campaign(name, [r for r in records if r["campaign"] == name])
            for name in (request.only or CAMPAIGNS)
        },
    }


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
        f"FAILED --only {name} --seed {found['seed']} --trial {failure['trial']}: {failure['kind']}: {failure['problem']}"
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
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "# Reliability",
        "",
        "Written by `scripts/faults`, which tries what happens to files when things go wrong. Every trial runs in a temporary",
        "folder of its own, offline, on tiny models of two layers; an audit hook refuses, and reports, what would change",
        "anything outside.",
        "",
        "- P6: an interrupted or failed run loses nothing, leaves nothing half-written, and resumes; nothing of anyone else's is",
        "  ever replaced or removed.",
        "- P7: no pickle, no network unless asked, no remote code unless asked, no traceback for a user's mistake.",
        "",
        f"    {found['command']}",
        "",
        f"{found['date']}; {versions}. {'As root.' if found['as_root'] else 'As an ordinary user.'} One trial again: "
        f"`--only NAME --seed {found['seed']} --trial N`.",
        "",
        "| campaign | tried | failed | those that were right |",
        "|---|---|---|---|",
    ]
    for name, part in found["campaigns"].items():
        right = ", ".join(f"{count:,} {note}" for note, count in part["right"].items())
        lines.append(f"| {name} | {part['tried']:,} | {part['failed']:,} | {right} |")
    for name, part in found["campaigns"].items():
        lines += ["", f"## {name}", "", f"Promised: {CAMPAIGNS[name].promise}", ""]
        lines += [
            f"Tried: {CAMPAIGNS[name].tried}",
            "",
            "| what | tried | failed |",
            "|---|---|---|",
        ]
        for kind, (tried, failed) in part["kinds"].items():
            lines.append(f"| {_cell(kind)} | {tried:,} | {failed:,} |")
        if part["failures"]:
            lines += ["", "What failed:", ""]
            lines += [
                f"- trial {failure['trial']}, {failure['kind']}: `{_code(failure['problem'])}`"
                for failure in part["failures"][:_SHOWN]
            ]
            more = len(part["failures"]) - _SHOWN
            lines += [f"- and {more} more"] if more > 0 else []
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
