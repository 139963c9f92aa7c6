"""Heads that have a protected role are kept whatever the budget, and what is said of roles adds up with the plan."""

import json
import shutil

import pytest
import torch
import transformers
from families import build, inspected, sentences, token_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steps import drawn, scores_of

import headprune as hp
from headprune.analysis.catalogue import ROLES
from headprune.analysis.roles import Measure, Roles
from headprune.artefact import read_artefact
from headprune.config import Constraints, Settings
from headprune.errors import ConfigError, PlanError
from headprune.fate import RoleFate, RoleFates
from headprune.heads import HeadId
from headprune.planning.constraints import with_role_heads
from headprune.planning.plan import score_in_steps
from headprune.results import Results
from headprune.workflows.roles import NUM_ROWS, find_roles
from headprune.workflows.rows import separate_rows
from headprune.workflows.session import open_session

NAMES = ("bert", "gpt2", "llama")
ANATOMIES = {name: inspected(build(name)) for name in NAMES}


class Heard:
    """Remembers what was said."""

    def __init__(self):
        self.said = []

    def notify(self, text):
        self.said.append(text)

    def track(self, items, description):
        yield from items


def roles_of(anatomy, **having):
    """Return roles of which these heads have each, by their index."""
    count = len(anatomy.heads)
    some = (0.5,) * count
    measures = [
        Measure(
            role=name, values=some, low=some, high=some, baseline=some, queries=(99,) * count,
            examples=(9,) * count, passes=tuple(index in heads for index in range(count)),
        )
        for name, heads in having.items()
    ]  # fmt: skip
    rules = dict.fromkeys(having, "> 0.3")
    return Roles(heads=anatomy.heads, measures=tuple(measures), thresholds=rules)


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    gqa=st.sampled_from(["group", "even", "pad"]),
    keep=st.floats(0.1, 0.95),
    sinks=st.sets(st.integers(0, 17), max_size=9),
    previous=st.sets(st.integers(0, 17), max_size=9),
    steps=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_protected_head_is_never_removed_and_the_numbers_add_up(
    name, gqa, keep, sinks, previous, steps, seed
):
    anatomy = ANATOMIES[name]
    roles = roles_of(anatomy, sink=sinks, previous=previous, confident=sinks & previous)
    asked = Constraints(keep=keep, gqa=gqa, protect_role=("sink", "previous"))
    protected = {*roles.heads_with("sink"), *roles.heads_with("previous")}
    rescore, removed_on_the_way = drawn(anatomy, seed)
    values = torch.randn(len(anatomy.heads), generator=torch.Generator().manual_seed(seed))
    scores = scores_of(anatomy, values.tolist())
    try:
        if steps > 1:
            scores = score_in_steps(
                anatomy, rescore=rescore, constraints=with_role_heads(asked, roles), steps=steps
            )
        plan = hp.plan(scores, asked, anatomy=anatomy, roles=roles)
    except PlanError as refused:
        assert "sink, previous" in str(refused) or "removes no head" in str(refused)
        return
    assert not protected & {*plan.remove}
    assert all(not protected & removed for removed in removed_on_the_way)
    for role, fate in plan.roles.by_role.items():
        assert sorted((*fate.removed, *fate.kept)) == sorted(roles.heads_with(role))
        assert {*fate.removed} == {*roles.heads_with(role)} & {*plan.remove}
    assert plan.constraints["protect_role"] == ["sink", "previous"]
    assert not any(reason == "kept: protected" for reason in plan.reasons.values())
    assert hp.PruningPlan.model_validate_json(plan.to_json()) == plan


def test_the_reason_names_the_role_and_an_edit_tells_the_roles_anew():
    anatomy = ANATOMIES["bert"]
    scores = scores_of(anatomy, range(len(anatomy.heads)))
    roles = roles_of(anatomy, induction={0}, sink={1, 2, 3})
    plan = hp.plan(scores, Constraints(keep=0.5, protect_role=("induction",)), anatomy=anatomy, roles=roles)  # fmt: skip
    assert plan.reasons["L0.H0"] == "kept: induction head"
    assert (
        plan.roles.sentence
        == "of the 9 heads that are removed: 3 are sinks, not the one induction head"
    )
    assert plan.roles.sentence in str(plan)
    assert "2 are sinks" in plan.without("L0.H1").roles.sentence
    with pytest.raises(PlanError, match="protected"):
        plan.with_removed("L0.H0")


def fate(anatomy, removed, kept):
    heads = anatomy.heads
    return RoleFate(removed=heads[:removed], kept=heads[removed : removed + kept])


@pytest.mark.parametrize(
    ("fates", "removed", "sentence"),
    [
        ({"sink": (9, 3), "previous": (4, 2)}, 12, "of the 12 heads that are removed: 9 are sinks, 4 look at the previous token"),
        ({"sink": (1, 3), "previous": (1, 2)}, 5, "of the 5 heads that are removed: 1 is a sink, 1 looks at the previous token"),
        ({"induction": (1, 5)}, 5, "of the 5 heads that are removed: 1 is an induction head"),
        ({"induction": (0, 1), "next": (2, 1)}, 5, "of the 5 heads that are removed: 2 look at the next token, "
         "not the one induction head"),
        ({"induction": (1, 0), "next": (2, 1)}, 5, "of the 5 heads that are removed: 2 look at the next token, "
         "the one induction head"),
        ({"sink": (1, 3), "rare": (0, 0)}, 1, "of the 1 head that is removed: 1 is a sink"),
        ({"sink": (0, 0)}, 5, "no head has one of the roles that were measured"),
        ({"sink": (0, 3)}, 0, ""),
    ],
)  # fmt: skip
def test_the_sentence_counts_common_roles_and_tells_rare_ones_of_all(fates, removed, sentence):
    anatomy = ANATOMIES["bert"]
    by_role = {name: fate(anatomy, *counts) for name, counts in fates.items()}
    assert RoleFates(removed=removed, total=18, by_role=by_role).sentence == sentence
    many = RoleFates(removed=7, total=72, by_role={"induction": fate(anatomy, 1, 4)})
    assert many.sentence.endswith("1 of the 5 induction heads")


def test_a_role_that_no_head_can_have_is_refused():
    with pytest.raises(ConfigError, match="distance is a number of every head"):
        Constraints(protect_role=("distance",))
    with pytest.raises(ConfigError, match="no role 'inductoin'"):
        Constraints(protect_role=("inductoin",))


def test_protecting_takes_roles_and_those_of_this_model():
    model = build("bert")
    batches = [{**token_inputs(), "labels": torch.arange(4) % 2}]
    scores = hp.score(model, batches, task="classification", method="gradient")
    asked = Constraints(keep=0.5, protect_role=("sink",))
    anatomy = inspected(model)
    with pytest.raises(PlanError, match="isn't known which heads have the role sink"):
        hp.plan(scores, asked, anatomy=anatomy)
    others = hp.analyze(build("bert", seed=1), batches, roles=("sink",))
    with pytest.raises(PlanError, match="of another model"):
        hp.plan(scores, asked, anatomy=anatomy, roles=others)
    with pytest.raises(PlanError, match="of another model"):
        hp.shrink(model, batches, task="classification", keep=asked, roles=others)
    only = hp.analyze(model, batches, roles=("previous",), anatomy=anatomy)
    with pytest.raises(PlanError, match="the role sink"):
        hp.plan(scores, asked, anatomy=anatomy, roles=only)


def test_python_measures_what_batches_and_tokenizer_tell(tokenizer):
    model = build("llama").train()
    roles = hp.analyze(model, [token_inputs()], roles=hp.AnalyzeSpec(num_sequences=4), seed=3)
    assert model.training
    assert {"sink", "previous", "induction", "rare"} <= {*roles.names}
    assert {"cls", "sep", "punctuation"} <= {*roles.undefined}
    assert roles.data["n"] == 4
    assert repr(roles) == f"<Roles: {len(roles.names)} roles of 24 heads>"
    assert "24 heads, n = 4" in str(roles)
    assert roles._repr_html_().count("<td") == 24
    made_up = hp.analyze(model, roles=hp.AnalyzeSpec(num_sequences=4), seed=3)
    of_both = [one for one in roles.measures if one.role == "induction"]
    assert [one for one in made_up.measures if one.role == "induction"] == of_both
    assert "there are no rows to look at" in made_up.undefined["sink"]
    with_tokenizer = hp.analyze(build("bert"), [token_inputs()], tokenizer=tokenizer)
    assert "cls" in with_tokenizer.names
    assert "it takes a causal language model" in with_tokenizer.undefined["induction"]


def test_shrinking_keeps_protected_heads():
    model = build("gpt2")
    batches = [token_inputs(rows=8)]
    least = hp.score(model, batches, task="causal-lm").ranked()[:3]
    roles = roles_of(inspected(model), sink={inspected(model).heads.index(head) for head in least})
    asked = Constraints(keep=0.5, protect_role=("sink",))
    _model, report = hp.shrink(model, batches, task="causal-lm", keep=asked, roles=roles)
    assert report.plan.remove
    assert not {*least} & {*report.plan.remove}
    assert report.plan.roles.by_role["sink"].removed == ()


@pytest.fixture
def place(run_here, bert_directory, tokenizer):
    """Return a directory with a classifier, a language model, and their data."""
    shutil.copytree(bert_directory, run_here / "bert")
    build("llama").save_pretrained("llama")
    tokenizer.save_pretrained("llama")
    rows = "".join(f"{text},{n % 2}\n" for n, text in enumerate(sentences(60)))
    (run_here / "bert.csv").write_text(f"text,label\n{rows}")
    (run_here / "llama.txt").write_text("\n".join(sentences(80, seed=1)))
    return run_here


def words(name, *more):
    data = "bert.csv" if name == "bert" else "llama.txt"
    return (name, "--data", data, "--method", "gradient", "--no-latency", "--max-length", "16", *more)  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_prune_measures_what_analyze_measures(name, place):
    asked = Settings.of(model=name, data=f"{name}.{'csv' if name == 'bert' else 'txt'}", max_length=16, keep=0.5)  # fmt: skip
    session = open_session(asked, progress=Heard())
    rows = separate_rows(session).calibrate
    found = find_roles(session, rows, shows=True)
    found.discard_journal()
    batches = session.batches(rows.examples[:NUM_ROWS])
    names = tuple(role for role in ROLES if role in found.roles.names)
    direct = hp.analyze(
        session.model,
        batches,
        roles=hp.AnalyzeSpec(role=names, num_sequences=50),
        tokenizer=session.tokenizer,
    )
    assert direct.measures == found.roles.measures
    assert direct.thresholds == found.roles.thresholds
    assert found.roles.data["n"] == len(rows.examples[:NUM_ROWS])
    assert ("induction" in names) == (name == "llama")


def test_prune_keeps_a_role_and_says_which_heads_of_it_were_removed(place, command_line):
    code, _out, err = command_line(
        "prune", *words("llama", "--keep", "0.5", "--protect-role", "induction", "--out", "a")
    )
    assert code == 0, err
    results = read_artefact(Results, place / "a" / "results.json")
    roles = read_artefact(Roles, place / "a" / "roles.json")
    heads = roles.heads_with("induction")
    assert heads
    assert not {*map(str, heads)} & {*results.removed}
    assert results.roles.by_role["induction"].kept == tuple(sorted(heads))
    assert results.roles.data["name"] == "llama.txt"
    steps = read_artefact(hp.HeadScores, place / "a" / "scores.json").steps
    assert steps.count == 2
    assert steps.constraints["protect"] == [*map(str, heads)]
    plan = read_artefact(hp.PruningPlan, place / "a" / "plan.json")
    assert plan.roles == results.roles
    assert plan.constraints["protect_role"] == ["induction"]
    assert results.roles.sentence.startswith("of the 12 heads that are removed: ")
    assert results.roles.sentence[1:] in (place / "a" / "README.md").read_text()
    assert "kept for their role: 1 induction head" in err
    assert not [*place.glob("headprune-runs/.*/*")], "no journal is left"

    # The same heads by the roles that analyze wrote: in a file of settings, and from file to file.
    code, _out, err = command_line(
        "analyze", "llama", "--role", "induction", "--num-sequences", "50", "--run-dir", "r"
    )
    assert code == 0, err
    measured = read_artefact(Roles, place / "r" / "roles.json")
    (ones,) = [one for one in roles.measures if one.role == "induction"]
    assert ones.values == pytest.approx(measured.measures[0].values)
    assert (ones.examples, ones.passes) == (
        measured.measures[0].examples,
        measured.measures[0].passes,
    )
    (place / "s.yaml").write_text("protect_role: [induction]\nroles: r/roles.json\nkeep: 0.5\n")
    code, out, err = command_line("prune", *words("llama", "-c", "s.yaml", "--json", "--out", "b"))
    assert code == 0, err
    assert tuple(json.loads(out)["removed"]) == results.removed
    stream = (
        "prune",
        "llama",
        "--stream",
        "--scores",
        "a/scores.json",
        "--keep",
        "0.5",
        "--protect-role",
        "induction",
    )
    code, out, err = command_line(*stream, "--out", "c")
    assert code == 2
    assert "--roles RUN/roles.json" in err
    code, out, err = command_line(*stream, "--roles", "r/roles.json", "--out", "c", "--json")
    assert code == 0, err
    assert tuple(json.loads(out)["removed"]) == results.removed
    assert json.loads(out)["roles"]["data"]["file"] == "r/roles.json"
    assert (place / "c" / "roles.json").is_file()


def test_a_dry_run_says_the_sentence_and_leaves_nothing(place, command_line):
    code, out, err = command_line("prune", *words("bert", "--keep", "0.5", "--dry-run"))
    assert code == 0, err
    assert "of the 9 heads that are removed: " in " ".join(out.split())
    assert "roles were measured on 30 rows of bert.csv" in out
    assert not (place / "headprune-runs").exists()
    code, out, err = command_line("prune", *words("bert", "--keep", "0.5", "--dry-run", "--roles", "none"))  # fmt: skip
    assert code == 0, err
    assert "heads that are removed: " not in out


def test_more_protected_heads_than_the_budget_are_refused_by_role(place, command_line):
    all_heads = roles_of(ANATOMIES["bert"], sink=set(range(18)))
    (place / "all.json").write_text(all_heads.to_json())
    more = ("--keep", "0.5", "--protect-role", "sink")
    code, _out, err = command_line("prune", *words("bert", *more, "--roles", "all.json"))
    assert code == 2
    assert "18 are protected, by role: sink" in err
    assert "--protect-role sink" in err
    code, _out, err = command_line("prune", *words("bert", *more, "--roles", "none"))
    assert code == 2
    assert "can't be protected where they aren't measured" in err
    other = all_heads.model_copy(update={"model": {"fingerprint": "of-another", "name": "x"}})
    (place / "other.json").write_text(other.to_json())
    code, _out, err = command_line("prune", *words("bert", *more, "--roles", "other.json"))
    assert code == 2
    assert "the roles are of another model (x)" in err


def test_sweep_and_score_in_steps_keep_the_role(place, command_line):
    some = roles_of(ANATOMIES["bert"], sink={0, 1, 2, 3})
    (place / "some.json").write_text(some.to_json())
    data = ("bert", "--data", "bert.csv", "--max-length", "16", "--protect-role", "sink", "--roles", "some.json")  # fmt: skip
    code, out, err = command_line("sweep", *data, "--method", "magnitude", "--points", "0.5", "--json")  # fmt: skip
    assert code == 0, err
    removed = json.loads(out)["curves"][0]["points"][1]["removed"]
    assert len(removed) == 9
    assert not {"L0.H0", "L0.H1", "L0.H2", "L0.H3"} & {*removed}
    assert (place / "headprune-runs" / "001-sweep" / "roles.json").is_file()
    code, out, err = command_line("score", *data, "--keep", "0.5", "--steps", "3", "--json")
    assert code == 0, err
    steps = json.loads(out)["steps"]
    assert steps["went"][:4] == [0, 0, 0, 0]
    assert steps["constraints"]["protect_role"] == ["sink"]
    # These scores are what prune would make: they serve as the latest.
    more = ("--keep", "0.5", "--steps", "3", "--scores", "latest", "--no-latency", "--out", "o")
    code, out, err = command_line("prune", *data, *more, "--json")
    assert code == 0, err
    assert not {str(HeadId.parse(name)) for name in ("L0.H0", "L0.H1")} & {*json.loads(out)["removed"]}  # fmt: skip
    code, _out, err = command_line("score", "bert", "--data", "bert.csv", "--protect-role", "sink")
    assert code == 2
    assert "--protect-role has no effect here" in err
    code, _out, err = command_line("sweep", "bert", "--data", "bert.csv", "--roles", "some.json")
    assert code == 2
    assert "--roles has no effect here" in err


def test_a_model_that_hides_its_weights_is_pruned_and_says_once_why_no_roles_are_shown(
    run_here, tokenizer, command_line
):
    config = transformers.YosoConfig(
        vocab_size=96, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16,
        max_position_embeddings=64, initializer_range=0.4, pad_token_id=0,
    )  # fmt: skip
    transformers.YosoForSequenceClassification(config).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = "".join(f"{text},{n % 2}\n" for n, text in enumerate(sentences(40)))
    (run_here / "d.csv").write_text(f"text,label\n{rows}")
    words = (
        "prune",
        "model",
        "--data",
        "d.csv",
        "--keep",
        "0.5",
        "--method",
        "magnitude",
        "--dry-run",
    )
    code, out, err = command_line(*words)
    assert code == 0, err
    assert (
        err.count("no roles of heads are shown: the attention L0 doesn't hand out its weights") == 1
    )
    assert "heads that are removed:" not in out
    code, out, err = command_line(*words, "--protect-role", "sink")
    assert code == 2
    assert "which heads have the role sink: the attention L0 doesn't hand out its weights" in err
    assert "what doesn't look at attention works" in err


def test_a_role_that_too_few_rows_tell_is_not_called_absent(place, command_line):
    budget = ("--keep", "0.5", "--dry-run", "--protect-role", "broad")
    code, _out, err = command_line("prune", *words("bert", *budget))
    assert code == 0, err
    # Entropy can't be 3.8 nats where rows have so few tokens.
    assert "careful: too few rows tell broad heads, so none is kept for that" in err
    assert "the model has no" not in err
