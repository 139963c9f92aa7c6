"""The command ``analyze``: what it writes and shows, what it says where a role can't be measured, and new detectors."""

import json
import re
import shutil

import pytest
import transformers
from families import build, sentences, t5, toy_tokenizer

from headprune.analysis.catalogue import ROLES, Role
from headprune.analysis.roles import Measure, Roles, decided
from headprune.artefact import read_artefact
from headprune.heads import HeadId, SiteId


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "llama"
    build("llama", max_position_embeddings=64).save_pretrained(directory)
    toy_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def there(run_here, llama_directory):
    """A working directory with a causal model and a text."""
    shutil.copytree(llama_directory, run_here / "m")
    (run_here / "d.txt").write_text("\n".join(sentences(60)), encoding="utf-8")
    return run_here


WORDS = ("analyze", "m", "--num-sequences", "4", "--sequence-length", "12", "--num-needles", "4")


def test_all_roles_of_a_causal_model_are_measured_or_it_is_said_why_not(there, command_line):
    code, out, err = command_line(*WORDS, "--data", "d.txt", "--json")
    assert code == 0, err
    roles = read_artefact(Roles, next(there.glob("headprune-runs/*-roles/roles.json")))
    assert json.loads(out) == json.loads(roles.to_json())
    assert {one.role for one in roles.measures} | set(roles.undefined) == set(ROLES)
    assert {"sink", "induction", "copying", "own-rank"} <= {one.role for one in roles.measures}
    assert "diagonal" in roles.undefined
    assert roles.data["n"] > 0
    assert "begin with a space" in roles.undefined["retrieval"]
    assert not (there / "headprune-runs" / "partial").exists()


def test_the_terminal_shows_a_map_and_a_table_of_eighty_columns(there, command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = command_line(*WORDS, "--data", "d.txt")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    roles = read_artefact(Roles, next(there.glob("headprune-runs/*-roles/roles.json")))
    for name in roles.names:
        count = str(len(roles.heads_with(name))) if name in roles.thresholds else "-"
        assert re.search(rf"^{name} +{re.escape(count)} ", out, re.M), name


def test_without_data_what_needs_none_is_measured(there, command_line):
    code, out, err = command_line(*WORDS, "--role", "induction,copying,sink", "--run-dir", "r")
    assert code == 0, err
    assert "not measured: sink: there are no rows to look at (name some: --data)" in out
    roles = read_artefact(Roles, there / "r" / "roles.json")
    assert {one.role for one in roles.measures} == {"induction", "copying"}
    assert roles.undefined == {"sink": "there are no rows to look at (name some: `data`)"}
    code, _out, err = command_line(*WORDS, "--role", "induction", "--run-dir", "r")
    assert code == 2
    assert "r holds roles already" in err


def test_an_encoder_has_no_made_up_sequences(here, command_line):
    code, out, err = command_line("analyze", "m", "--data", "d.csv", "--json")
    assert code == 0, err
    undefined = json.loads(out)["undefined"]
    assert {"induction", "duplicate", "retrieval", "copying", "syntax"} <= set(undefined)
    assert "causal language model" in undefined["induction"]
    assert ".conllu" in undefined["syntax"]
    assert "universaldependencies.org" in undefined["syntax"], "what to do, too"
    assert "leave the role out" not in undefined["induction"]


def test_roles_that_cannot_be_measured_at_all_are_an_error(here, command_line):
    code, _out, err = command_line("analyze", "m", "--data", "d.csv", "--role", "induction")
    assert code == 2
    assert "causal language model" in err
    assert not list(here.glob("headprune-runs/*/roles.json"))
    code, _out, err = command_line("analyze", "m", "--data", "d.csv", "--role", "inductoin")
    assert code == 2
    assert "induction" in err


def to_itself_and_before(call):
    return {"": call.along(call.offsets.abs() <= 1)}


def test_a_detector_is_one_row_and_one_function(here, command_line, monkeypatch):
    row = Role(
        name="near",
        function="analysis.test_analyze:to_itself_and_before",
        help="attention to itself and its neighbours",
        source="this test",
        threshold=0.2,
        sign="z",
    )
    monkeypatch.setitem(ROLES, "near", row)
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent.parent))
    code, out, err = command_line("analyze", "m", "--data", "d.csv", "--role", "near,self")
    assert code == 0, err
    roles = read_artefact(Roles, next(here.glob("headprune-runs/*-roles/roles.json")))
    by_role = {one.role: one for one in roles.measures}
    assert set(by_role) == {"near", "self"}
    assert all(
        near >= own
        for near, own in zip(by_role["near"].values, by_role["self"].values, strict=True)
    )
    assert "z near" in out or not roles.heads_with("near")
    code, out, _err = command_line("roles")
    assert code == 0
    assert "near" in out


def measure(role, values, *, baseline=0.0, queries=100):
    n = len(values)
    return Measure(
        role=role,
        values=values,
        low=tuple(value - 0.01 for value in values),
        high=tuple(value + 0.01 for value in values),
        baseline=(baseline,) * n,
        queries=(queries,) * n,
        examples=(10,) * n,
    )


def test_who_has_a_role_is_decided_by_its_published_rule():
    (sink,) = decided([measure("sink", (0.29, 0.31))])
    assert sink.passes == (False, True)
    (few,) = decided([measure("sink", (0.29, 0.31), queries=19)])
    assert few.passes == (None, None)
    (syntax,) = decided([measure("syntax", (0.55, 0.65), baseline=0.5)])
    assert syntax.passes == (False, True)
    many = tuple(index / 100 for index in range(100))
    (induction,) = decided([measure("induction", many)])
    assert [index for index, verdict in enumerate(induction.passes) if verdict] == [98, 99]
    (none,) = decided([measure("induction", many, baseline=0.985)])
    assert [index for index, verdict in enumerate(none.passes) if verdict] == []
    (distance,) = decided([measure("distance", (3.0, 4.0))])
    assert distance.passes == (None, None)


def test_a_document_with_lists_of_other_lengths_is_refused():
    head = HeadId(SiteId("", 0), 0)
    with pytest.raises(ValueError, match="length of heads"):
        Roles(heads=(head,), measures=decided([measure("sink", (0.1, 0.2))]))


def encoder_decoder(directory):
    t5().save_pretrained(directory)


def masked_lm(directory):
    build("bert", cls="BertForMaskedLM").save_pretrained(directory)


@pytest.mark.parametrize(
    ("make", "roles"), [(encoder_decoder, {"sink", "diagonal"}), (masked_lm, {"sink", "cls"})]
)
def test_a_model_without_a_task_here_is_looked_at_all_the_same(run_here, command_line, make, roles):
    make(run_here / "m")
    toy_tokenizer().save_pretrained(run_here / "m")
    texts = sentences(12)
    pairs = zip(texts, reversed(texts), strict=True)
    (run_here / "d.tsv").write_text("a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in pairs))
    for columns in ("a", "a,b"):
        code, out, err = command_line(
            "analyze", "m", "--data", "d.tsv", "--text", columns, "--json"
        )
        assert code == 0, err
        assert roles <= {one["role"] for one in json.loads(out)["measures"]}
    code, _out, err = command_line("score", "m", "--data", "d.tsv", "--text", "a")
    assert code == 2
    assert "task" in err


def test_even_attention_on_short_rows_has_no_role():
    (sink,) = decided([measure("sink", (0.35, 0.5), baseline=0.37)])
    assert sink.passes == (False, True)
    (broad,) = decided([measure("broad", (1.2, 1.6), baseline=1.7)])
    assert broad.passes == (None, None)
    (broad,) = decided([measure("broad", (3.7, 3.9), baseline=4.2)])
    assert broad.passes == (False, True)


def test_roles_on_rows_and_on_their_trees_share_a_pass(here, command_line, monkeypatch):
    line = "{0}\t{1}\t_\tX\t_\t_\t{2}\t{3}\t_\t_"
    trees = [
        "\n".join(
            line.format(i + 1, word, i, "dep" if i else "root") for i, word in enumerate(words)
        )
        for words in (text.split() for text in sentences(20))
    ]
    (here / "d.conllu").write_text("\n\n".join(trees) + "\n")
    forwards = []
    forward = transformers.BertModel.forward

    def counted(self, *args, **kwargs):
        forwards.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.BertModel, "forward", counted)
    counts = []
    for roles in ("sink", "sink,syntax"):
        forwards.clear()
        words = ("--data", "d.conllu", "--role", roles, "--run-dir", roles.replace(",", "-"))
        code, _out, err = command_line("analyze", "m", *words)
        assert code == 0, err
        counts.append(len(forwards))
    assert counts[0] == counts[1]
    alone, both = (
        read_artefact(Roles, here / name / "roles.json") for name in ("sink", "sink-syntax")
    )
    assert both.measures[0].values == pytest.approx(alone.measures[0].values, abs=1e-6)
    assert both.measures[0].baseline == pytest.approx(alone.measures[0].baseline, abs=1e-6)
    assert {one.role for one in both.measures} == {"sink", "syntax"}
