"""Malformed input of every kind, made by rules from right input."""

import inspect
import json
import struct
from collections.abc import Callable
from functools import cache
from random import Random

from benchmarks.faults import grammar
from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import Action, command, reading, run
from benchmarks.faults.ground import CUT
from benchmarks.faults.place import LIMIT_SECONDS, Ended, Limits
from benchmarks.faults.rows import read_rows
from benchmarks.faults.scenarios import Bench

_Make = Callable[[Bench, Random], tuple[Action, str]]
_CHECK = ("check", "results.json", "--baseline", "baseline.json", "-q")
_ROOM = 6 << 30
"""Address space for one malformed input: what asks for more is refused, or memory ran out, which is said too."""


def _trial(bench: Bench, number: int) -> Outcome:
    draw = bench.ground.draw("malformed", number)
    kind = _TURNS[number % len(_TURNS)]
    action, shown = _KINDS[kind](bench, draw)
    ended = run(bench.place, action, limits=Limits(LIMIT_SECONDS, memory=_ROOM))
    codes = (0, 1, 2) if kind in ("results", "baseline", "settings", "options") else (0, 2)
    problem = ended.problem(codes=codes) or _silent(ended)
    note = "named" if ended.code == 2 else "read" if ended.code == 0 else "a gate said no"
    return Outcome(kind, f"{problem} <- {shown[:160]!r}" if problem else "", note)


def _silent(ended: Ended) -> str:
    return "exit 2, and nothing said" if ended.code == 2 and not ended.err.strip() else ""


def _config(bench: Bench, draw: Random) -> tuple[Action, str]:
    name = draw.choice(("bert", "llama", "pruned"))
    work = bench.ground.lay_out(name)
    (work / name / "manifest.json").unlink(missing_ok=True)
    path = work / name / "config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    if draw.random() < 0.3:
        added = draw.choice(
            (
                "headprune",
                "pruned_heads",
                "auto_map",
                "quantization_config",
                "architectures",
                "model_type",
                "num_labels",
                "id2label",
                "text_config",
                "rope_parameters",
                "torch_dtype",
                "attn_implementation",
            )
        )
        document[added] = draw.choice(
            (*grammar.NASTY, {"0": [0]}, {"sites": {"x": 1}, "format": 1})
        )
        text = json.dumps(document)
    else:
        text = grammar.mutated_json(json.dumps(document), draw)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return command("inspect", name, "-q"), _difference(text)


def _artefact(name: str) -> _Make:
    def make(bench: Bench, draw: Random) -> tuple[Action, str]:
        work = bench.ground.lay_out("results.json", "baseline.json")
        path = work / f"{name}.json"
        text = grammar.mutated_json(path.read_text(encoding="utf-8"), draw)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        shape = draw.choice((("--format", "junit"), ("--format", "github"), ("--json",), ()))
        return command(*_CHECK, *shape), _difference(text)

    return make


def _scores(bench: Bench, draw: Random) -> tuple[Action, str]:
    work = bench.ground.lay_out("bert", "scores.json")
    path = work / "scores.json"
    text = grammar.mutated_json(path.read_text(encoding="utf-8"), draw)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return command("prune", "bert", *CUT, "--stream", "--dry-run", "-q"), _difference(text)


def _settings(bench: Bench, draw: Random) -> tuple[Action, str]:
    from headprune.config import SECTION_OF

    work = bench.ground.lay_out("results.json", "baseline.json")
    text = grammar.mutated_yaml(tuple(SECTION_OF), draw)
    (work / "recipe.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    return command(*_CHECK, "-c", "recipe.yaml"), text


def _table(suffix: str) -> _Make:
    def make(bench: Bench, draw: Random) -> tuple[Action, str]:
        work = bench.ground.lay_out()
        name = f"rows.{suffix}"
        if suffix in ("csv", "tsv"):
            content = grammar.mutated_table(draw, separator="," if suffix == "csv" else "\t")
        else:
            content = grammar.mutated_lines(draw)
        (work / name).write_bytes(content)
        return reading(lambda: read_rows(name)), repr(content)

    return make


def _header(bench: Bench, draw: Random) -> tuple[Action, str]:
    work = bench.ground.lay_out("bert")
    path = work / "bert" / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    text = grammar.mutated_json(raw[8 : 8 + length].decode(), draw)
    header = text.encode(errors="replace")
    size = len(header) if draw.random() < 0.9 else draw.choice((0, 1, 2**40, 2**64 - 1))
    path.write_bytes(struct.pack("<Q", size) + header + raw[8 + length :])
    return _load("bert"), _difference(text)


def _index(bench: Bench, draw: Random) -> tuple[Action, str]:
    work = bench.ground.lay_out("bert")
    folder = work / "bert"
    raw = (folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = {name: "model-00001-of-00001.safetensors" for name in header if name != "__metadata__"}
    whole = json.dumps({"metadata": {"total_size": len(raw)}, "weight_map": names})
    text = grammar.mutated_json(whole, draw)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8", errors="replace")
    return _load("bert"), _difference(text)


def _tokenizer(bench: Bench, draw: Random) -> tuple[Action, str]:
    work = bench.ground.lay_out("bert")
    path = work / "bert" / draw.choice(("tokenizer.json", "tokenizer_config.json"))
    text = grammar.mutated_json(path.read_text(encoding="utf-8"), draw)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")

    def read() -> str:
        from headprune.models.find import find
        from headprune.models.tokenizer import load_tokenizer

        return str(load_tokenizer(find("bert"))("w1 w2"))

    return reading(read), f"{path.name}: {_difference(text)}"


def _load(name: str) -> Action:
    def read() -> str:
        import headprune

        return str(sum(parameter.numel() for parameter in headprune.load(name).parameters()))

    return reading(read)


def _options(bench: Bench, draw: Random) -> tuple[Action, str]:
    names = _commands()
    name = draw.choice(sorted(names))
    bench.ground.lay_out("results.json", "baseline.json", "scores.json", "test.csv")
    right = (
        "results.json",
        "baseline.json",
        "test.csv",
        "scores.json",
        "no-such-model",
        "0.5",
        "3",
    )
    words = grammar.mutated_words(names[name], draw, choose=lambda: draw.choice(right))
    # Without a model a command takes the built-in demo, a real one, and works for minutes.
    target = [draw.choice(("no-such-model", "./results.json", "", "a/b/c", "[x]"))]
    return command(name, *target, *words), " ".join([name, *target, *words])


@cache
def _commands() -> dict[str, tuple[str, ...]]:
    """Return every command with its options."""
    from headprune.cli.app import app

    found = {}
    for registered in app.registered_commands:
        if registered.callback is not None and registered.name:
            names = inspect.signature(registered.callback).parameters
            found[registered.name] = tuple(f"--{option.replace('_', '-')}" for option in names)
    return found


def _difference(text: str) -> str:
    return text if len(text) < 160 else f"{text[:60]} ... ({len(text)} characters)"


_KINDS: dict[str, _Make] = {
    "config.json": _config,
    "results": _artefact("results"),
    "baseline": _artefact("baseline"),
    "scores": _scores,
    "settings": _settings,
    "csv": _table("csv"),
    "tsv": _table("tsv"),
    "jsonl": _table("jsonl"),
    "weights' header": _header,
    "weights' index": _index,
    "tokenizer": _tokenizer,
    "options": _options,
}
_TURNS = (
    "results",
    "options",
    "settings",
    "csv",
    "config.json",
    "baseline",
    "jsonl",
    "scores",
    "weights' header",
    "options",
    "settings",
    "tsv",
    "results",
    "weights' index",
    "tokenizer",
    "options",
    "csv",
    "baseline",
    "config.json",
    "jsonl",
)

CAMPAIGN = Campaign(
    "malformed",
    promise="Malformed input is refused in three parts, or read as what it says: no traceback, nothing unexpected, nothing "
    "silent, no end later than 30 s (P7, P8).",
    tried="config.json, weights' headers and indices, tokenizers, scores, results, baselines, settings, tables and options, "
    "changed by a grammar of nasty values.",
    full=10000,
    quick=0,
    weight=17,
    trial=_trial,
)
