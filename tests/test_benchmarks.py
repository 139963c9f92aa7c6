"""The benchmarks run: each in its smallest form, so that none rots while the house around it changes."""

import importlib
import json
import math
import os
import pkgutil
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import build, inspected, toy_tokenizer

import benchmarks
from benchmarks.mutants import FAULTS
from benchmarks.quality.measure import Bench, Measured, text_loss
from benchmarks.quality.merged import merge
from benchmarks.quality.recipes import CONTENDERS
from benchmarks.quality.report import prices
from benchmarks.quality.subjects import Case
from benchmarks.quality.tried import removal_order
from headprune.config import Settings
from headprune.distillation.teacher import mean_distance
from headprune.placement import fingerprint
from headprune.report.terminal import ConsoleProgress
from headprune.tasks.rows import Example
from headprune.workflows.reading import Rows
from headprune.workflows.rows import RowParts
from headprune.workflows.session import open_session

ROOT = Path(__file__).parent.parent
# What --quick runs on every time: the sections of what --json writes, and the headings of the page.
QUICK = {
    "speed": (["machine", "settings", "subjects", "linear", "memory", "profiles", "targets"], []),
    "quality": (["cuts"], ["# Quality", "## A tiny random BERT", "## Recipes"]),
    "real_models": (["passed", "versions", "models"], []),
    "memory": (["imports", "look", "in_memory", "stream", "model_bytes", "pruned_bytes"], []),
    "gpu": (["failed", "no_time", "machine", "results"], ["# On a GPU", "## Kernels"]),
}
OPTIONS = {"speed": ["--profile"], "gpu": ["--device", "cpu"]}


def run(name, *words, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Return a function that does what ``python -m benchmarks.NAME`` does, where all is imported: gives the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_here(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.delitem(sys.modules, "benchmarks.mutants", raising=False)  # runs as __main__
        with pytest.raises(SystemExit) as end:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
        return end.value.code or 0

    return run_here


def numbers(value, at="document"):
    """Yield every number of a JSON document, and where it is."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(one, f"{at}.{key}")
    elif isinstance(value, int | float):
        yield at, value


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_module_of_the_benchmarks_can_be_imported():
    names = [module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]
    assert set(QUICK) <= {name.split(".")[1] for name in names}
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name in ("memory", "gpu") else [])
        for name in QUICK
    ],
)
def test_the_smoke_run_writes_all_that_a_run_writes(name, benchmark, tmp_path, capsys):
    sections, headings = QUICK[name]
    out, page = tmp_path / "numbers.json", tmp_path / "page.md"
    words = ["--json", out, *(["--page", page] if headings else []), *OPTIONS.get(name, [])]
    code = benchmark(name, "--quick", *words)
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    document = {"cuts": rows(out)} if name == "quality" else json.loads(out.read_text())
    assert [section for section in sections if document.get(section) is None] == []
    found = list(numbers(document))
    assert len(found) > 10
    assert [at for at, number in found if not math.isfinite(number)] == []
    text = page.read_text() if headings else ""
    assert [heading for heading in headings if heading not in text] == []


@pytest.mark.parametrize("name", [*QUICK, "faults", "mutants"])
def test_help_says_what_the_smoke_run_is(name, benchmark, capsys):
    assert benchmark(name, "--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--quick a smoke run: the same code on tiny inputs" in told
    assert "Its numbers mean nothing; it writes nothing into docs/" in told


@pytest.mark.parametrize("name", [*QUICK, "faults"])
def test_the_smoke_run_writes_nothing_into_the_documents(name, benchmark, capsys):
    before = sorted((ROOT / "docs").iterdir())
    assert benchmark(name, "--quick", "--json", ROOT / "docs" / "new.json") == 2
    assert "--json can't be in docs/" in capsys.readouterr().err
    assert sorted((ROOT / "docs").iterdir()) == before


def test_a_recipe_is_measured_as_its_authors_state_it(benchmark, tmp_path):
    out = tmp_path / "quality.jsonl"
    recipes = ("headprune", "michel", "kwon")
    assert benchmark("quality", "--quick", "--json", out, "--recipe", *recipes) == 0
    found = rows(out)
    assert [row["contender"] for row in found] == list(recipes)
    assert [row["heads"] for row in found] == [[6, 12]] * 3
    assert all(row["n"] == 64 for row in found)
    assert found[1]["reconstruct"] is None, "michel reconstructs nothing"
    assert benchmark("quality", "--quick", "--json", out, "--recipe", *recipes) == 0
    assert rows(out) == found, "what is measured is not measured again"


def test_prices_are_in_forwards_and_a_cell_that_was_not_measured_is_empty():
    """22 steps of four forwards of a third of the rows, 10 to choose, 3 to decide."""
    row = {
        **{"metric": "perplexity", "interval": (1, 2), "base": 36.0, "difference": 1.0, "n": 16},
        **{"difference_interval": (1, 2), "heads": (1, 2), "reconstruct": None, "seconds": 1.0},
    }
    found = [
        Measured(subject=subject, contender=name, keep=keep, seed=seed, value=value, **row)
        for subject, name, keep, seed, value in (
            ("smollm2", "headprune", 0.5, 0, 60.0),
            ("smollm2", "headprune", 0.7, 0, 45.0),
            ("smollm2", "headprune", 0.7, 1, 99.0),
            ("smollm2-groups", "headprune", 0.5, 0, 100.0),
            ("smollm2", "headprune, healed, 22 steps", 0.5, 0, 44.0),
            ("smollm2", "headprune, LoRA, 60 steps", 0.5, 0, 33.0),
            ("smollm2", "michel, no norm", 0.5, 0, 133.0),
        )
    ]
    lines = [line.strip("| ").split(" | ") for line in prices(found).splitlines()]
    assert lines[0][-3:] == ["query heads, 0.7", "query heads, 0.5", "groups, 0.5"]
    assert [line[1:] for line in lines[2:]] == [
        ["3", "", "133.00"],
        ["10", "45.00", "60.00", "100.00"],
        ["42", "", "44.00"],
    ]
    assert prices([]) == ""


def test_osscar_removes_what_least_squares_misses_least():
    """Every step, against exact least squares over each set that could be left."""
    generator = torch.Generator().manual_seed(0)
    z, weight = (torch.randn(n, m, generator=generator).double() for n, m in ((60, 12), (12, 5)))
    z = z @ torch.randn(12, 12, generator=generator).double()
    columns = {(head,): torch.arange(3 * head, 3 * head + 3) for head in range(4)}

    def missed(left):
        if not left:
            return float((z @ weight).square().sum() / 2)
        at = torch.cat([columns[one] for one in left])
        fitted = torch.linalg.lstsq(z[:, at], z @ weight).solution
        return float((z[:, at] @ fitted - z @ weight).square().sum() / 2)

    left, before = list(columns), 0.0
    for gone, cost in removal_order(z.T @ z, weight, columns):
        after = {one: missed([other for other in left if other != one]) for one in left}
        assert gone == min(after, key=after.__getitem__)
        assert cost == pytest.approx(after[gone] - before)
        left.remove(gone)
        before = after[gone]


@pytest.fixture(params=["pad", "group"])
def small(request, tmp_path):
    """A bench on a random Llama, whose very first head puts out nothing."""
    model = build("llama", initializer_range=0.4)
    model.model.layers[0].self_attn.o_proj.weight.data[:, : model.config.head_dim] = 0
    model.save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    asked = Settings.of(model=str(tmp_path), task="causal-lm", gqa=request.param, keep=0.5)
    session = open_session(asked, progress=ConsoleProgress(quiet=True))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 60, (120, 12), generator=generator).tolist()
    examples = tuple(Example(tokens=tuple(one)) for one in tokens)
    choose, report, train = (
        Rows(part, {"n": len(part)}) for part in (examples[:24], examples[24:40], examples[40:])
    )
    case = Case(session, replace(RowParts.of(choose, report), train=train))
    quiet = ConsoleProgress(quiet=True)
    return Bench("llama", case, inspected(session.model), progress=quiet, folder=tmp_path / "run")


@pytest.mark.parametrize("name", ["headprune, gates", "k-prune", "osscar"])
def test_others_choose_as_many_heads_as_are_to_go(name, small):
    seen, choose = [], CONTENDERS[name].choose

    def noted(*given):
        seen.append((choose(*given), *given[2:]))
        return seen[-1][0]

    before = fingerprint(small.case.session.model)
    found = small.measure(name, CONTENDERS[name]._replace(choose=noted), keep=0.5)
    assert found.heads[0] * 2 == found.heads[1]
    ((chosen, scores, count),) = seen
    if name == "k-prune":
        assert chosen.values.count(0) == count, "it chooses all of them itself"
    if name == "headprune, gates" and small.case.session.settings.plan.gqa == "pad":
        places = {head: place for place, head in enumerate(scores.ranked())}
        starts = [places[head] / len(scores.heads) * 2 - 1 for head in scores.heads]
        moved = [abs(one - other) > 1e-6 for one, other in zip(chosen.values, starts, strict=True)]
        assert moved == [False] + [True] * (len(moved) - 1), "what puts out nothing teaches nothing"
    assert fingerprint(small.case.session.model) == before


def test_groups_that_say_the_same_in_other_words_are_merged_without_a_trace():
    """Keys that differ by a factor for each frequency, values that differ by a matrix."""
    model, generator = build("llama", initializer_range=0.4), torch.Generator().manual_seed(0)
    attention, ids = model.model.layers[0].self_attn, torch.arange(5, 53).reshape(4, 12)
    width, rows = attention.head_dim, (-1, attention.head_dim, model.config.hidden_size)
    keys, values = (one.weight.data.view(rows) for one in (attention.k_proj, attention.v_proj))
    for group in range(1, len(keys)):
        factor = torch.view_as_complex(torch.randn(width // 2, 2, generator=generator))
        turned = factor[:, None] * torch.complex(*keys[0].chunk(2))
        keys[group] = torch.cat([turned.real, turned.imag])
        values[group] = torch.randn(width, width, generator=generator) @ values[0]
    usual = keys.norm(dim=-1).mean(), values.norm(dim=-1).mean()
    read = []
    hook = attention.k_proj.register_forward_pre_hook(lambda _module, given: read.append(given[0]))
    with torch.no_grad():
        before = model(ids).logits
        hook.remove()
        seen = read[0].flatten(0, 1).double()
        merge(attention, seen.T @ seen)
        after = model(ids).logits
    assert len(attention.k_proj.weight) == len(attention.v_proj.weight) == width
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    for one, expected in zip((attention.k_proj, attention.v_proj), usual, strict=True):
        size = one.weight.norm(dim=1).mean()
        assert 0.5 < size / expected < 2, "as large as before: it is trained at the same rate"


def test_merging_keeps_as_many_groups_as_pruning_and_every_head(small, monkeypatch):
    before, moved = fingerprint(small.case.session.model), []
    monkeypatch.setattr(
        "benchmarks.quality.merged.mean_distance",
        lambda *given, **more: moved.append(mean_distance(*given, **more)) or moved[-1],
    )
    name = "headprune, groups merged"
    found = small.measure(name, CONTENDERS[name], keep=0.5)
    assert found.heads[0] == found.heads[1]
    assert found.kv_cache[0] * 2 == found.kv_cache[1], "two of three layers, to one of four groups"
    merged = small.pruned(small.case.session.settings.replaced(keep=0.5), CONTENDERS[name]).model
    groups = [len(layer.self_attn.k_proj.weight) for layer in merged.model.layers]
    dearest = moved[:3].index(max(moved[:3]))
    assert [at for at, rows in enumerate(groups) if rows == max(groups)] == [dearest]
    assert fingerprint(small.case.session.model) == before


def test_each_way_of_training_does_what_it_is_for(small, monkeypatch):
    """Sublayers come nearer to the whole model's states, fine-tuning and adapters to the text itself."""
    session, parts = small.case.session, small.case.parts
    whole, before = session.model, fingerprint(session.model)
    (batch,) = session.batches(parts.train.examples, batch_size=len(parts.train.examples))
    settings = session.settings.replaced(run_dir=str(session.source.directory / "run"))
    monkeypatch.setattr(
        "benchmarks.quality.tried._LOCAL_RATE", 3e-3
    )  # ten steps, of random weights
    pruned = small.pruned(settings, CONTENDERS["headprune"])

    def looked_at(name, **more):
        asked = settings.replaced(**{**CONTENDERS[name].settings, **more})
        model = small.trained(asked, pruned, CONTENDERS[name])
        with torch.no_grad():
            ours, theirs = (
                one(**batch.inputs, output_hidden_states=True) for one in (model, whole)
            )
        away = (ours.hidden_states[-1] - theirs.hidden_states[-1]).square().mean().item()
        return away, text_loss(ours.logits, theirs.logits, batch.inputs).mean().item()

    idle = looked_at("headprune, fine-tuned, 40 steps", heal=1, learning_rate=1e-12)
    assert looked_at("headprune, sublayer by sublayer")[0] < 0.95 * idle[0]
    quick = {"heal": 10, "learning_rate": 3e-3}
    assert looked_at("headprune, fine-tuned, 40 steps", **quick)[1] < idle[1] - 0.1
    if settings.plan.gqa == "group":
        assert looked_at("headprune, LoRA, 60 steps", **quick)[1] < idle[1]
    assert fingerprint(whole) == before


def test_fine_tuning_has_the_loss_of_transformers():
    model = build("llama").eval()
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids)
    real[1, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": real}
    with torch.no_grad():
        logits = model(**inputs).logits
        rows = [model(input_ids=one[None], labels=one[None]).loss for one in (ids[0], ids[1][:6])]
    assert torch.allclose(text_loss(logits, logits, inputs), torch.stack(rows), atol=1e-5)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_deliberate_fault_has_its_place(fault):
    assert (ROOT / "headprune" / fault.file).read_text().count(fault.right) == 1, fault.file


@pytest.mark.nightly
def test_a_deliberate_fault_is_noticed(tmp_path):
    done = run("mutants", "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 of 1 faults caught"


@pytest.mark.nightly
@pytest.mark.real_model
def test_the_chain_holds_on_the_real_model_that_the_set_up_installs(tmp_path):
    done = run("real_models", "minilm", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_roles_are_tried_on_tokens_that_the_model_has(tmp_path):
    build("llama").save_pretrained(tmp_path)
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([f"new{index}" for index in range(300)])
    tokenizer.save_pretrained(tmp_path)
    session = open_session(Settings.of(model=str(tmp_path)), progress=ConsoleProgress())
    size = session.model.config.vocab_size
    assert len(session.tokenizer) > size
    for batch in importlib.import_module("benchmarks.roles.__main__").said_twice(session):
        assert int(batch.inputs["input_ids"].max()) < size
