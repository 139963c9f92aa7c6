"""A directory's record is no settings, no file has code loaded, and what is published names neither rows nor homes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from families import build, sentences
from hypothesis import given
from hypothesis import strategies as st

from headprune.artefact import read_artefact
from headprune.config import (
    OF_THE_ROWS,
    RECIPE_FILE,
    SECTION_OF,
    Settings,
    load_settings,
    recorded_rows,
)
from headprune.errors import ConfigError, HeadpruneError, ModelError
from headprune.plans import HeadScores
from headprune.runtime import local
from headprune.runtime.local import count_noted_elsewhere, noted_hash, published_name
from headprune.tasks.catalogue import METRICS
from headprune.tasks.rows import Example, noted_rows, without_noted
from headprune.workflows.evaluate import evaluate
from headprune.workflows.prune import plan, prune
from headprune.workflows.record import record_of, with_recorded_rows
from headprune.workflows.score import score
from headprune.workflows.session import open_session
from headprune.workflows.stream import prune_streamed
from headprune.workflows.sweep import sweep
from headprune.workflows.teacher import open_teacher

EVIL = "open('PWNED', 'w')\nraise SystemExit\n"


class Progress:
    """Keeps what is said."""

    def __init__(self):
        self.texts = []

    def notify(self, text):
        self.texts.append(text)

    def track(self, items, description):
        return items

    @property
    def text(self):
        return "\n".join(self.texts)


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer):
    """A model whose tokenizer, processor and config name somebody's code."""
    directory = tmp_path_factory.mktemp("home-of-somebody") / "source"
    names = {0: "no", 1: "yes"}
    build("bert", id2label=names, label2id={"no": 0, "yes": 1}).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    foreign = ["somebody/repo--code.Evil", "somebody/repo--code.Evil"]
    path = directory / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": foreign}})
    )
    for name in ("preprocessor_config.json", "processor_config.json", "generation_config.json"):
        (directory / name).write_text(json.dumps({"auto_map": {"X": foreign[0]}, "kept": 1}))
    (directory / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\ntext")
    rows = [f"{text},{('no', 'yes')[n % 2]}" for n, text in enumerate(sentences(60))]
    (directory.parent / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return directory


@pytest.fixture(scope="module")
def runs(source, tmp_path_factory):
    """The settings of a run with paths from the root, and what it saved."""
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(place / ".cache"))
        recipe = Settings.of(
            model=str(source),
            data=str(source.parent / "train.csv"),
            out=str(place / "pruned"),
            keep=0.5,
            method="activation",
            steps=1,
            reconstruct="none",
            batch_size=8,
            max_length=16,
        )
        prune(recipe, progress=Progress(), show=lambda *_: None)
        score(recipe.replaced(run_dir="run"), progress=Progress())
        streamed = {"data": None, "scores": str(place / "run" / "scores.json")}
        streamed |= {
            "batch_size": "auto",
            "out": str(place / "streamed"),
            "reconstruct": None,
            "method": None,
        }
        streamed |= {"steps": None}
        prune_streamed(recipe.replaced(**streamed), progress=Progress(), show=lambda *_: None)
    return recipe, place


@pytest.fixture
def pruned(runs, tmp_path, monkeypatch):
    """A copy of what was saved, looked at from another directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / ".cache"))
    return Path(shutil.copytree(runs[1] / "pruned", tmp_path / "pruned"))


def texts_in(directory):
    return {
        path.name: path.read_text(encoding="utf-8", errors="replace")
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".safetensors"
    }


# --- settings and records


def test_built_in_metrics_and_the_rows_settings_are_what_they_say():
    assert set(OF_THE_ROWS) <= set(SECTION_OF)
    paths = {"model", "out", "run_dir", "scores", "teacher", "baseline", "trainer", "overwrite"}
    assert not paths & set(OF_THE_ROWS)


words = st.sampled_from(["x", "../x.py", "/etc/x", "org/name", "accuracy", "f1", "5"])


@given(record=st.dictionaries(st.sampled_from([*SECTION_OF, "unknown", "auto_map"]), words))
def test_only_what_defines_rows_is_taken_from_a_record(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("r") / RECIPE_FILE
    path.write_text(yaml.safe_dump(record))
    try:
        known, refused = recorded_rows(path)
    except ConfigError:  # a word where a number belongs
        return
    assert set(known) <= set(OF_THE_ROWS) & set(record)
    assert known.get("metric") in (None, *METRICS)
    assert bool(refused) == (record.get("metric") not in (None, *METRICS))


@pytest.mark.parametrize("beside", ["config.json", "manifest.json"])
def test_a_record_in_the_working_directory_is_no_settings(run_here, beside):
    (run_here / RECIPE_FILE).write_text("model: m\nmetric: evil.py\nout: o\noverwrite: true\n")
    with pytest.raises(ConfigError, match="evil"):
        load_settings({})
    (run_here / beside).write_text("{}")
    settings, origin = load_settings({"model": ".", "data": "x.csv"})
    assert (settings.data.metric, settings.run.out, settings.run.overwrite) == (None, None, False)
    assert RECIPE_FILE in origin
    assert "record" in origin
    assert "record" in load_settings({})[1], "the demo doesn't hide it"


def test_settings_of_the_working_directory_are_said_aloud(run_here, command_line):
    (run_here / RECIPE_FILE).write_text("model: nowhere\ndata: x.csv\n")
    code, _out, err = command_line("eval")
    assert code == 2
    assert f"settings from ./{RECIPE_FILE}" in err


@pytest.mark.parametrize("metric", ["evil.py", "./evil.py", "org/metric", "rouge", "x" * 500])
@pytest.mark.parametrize("way", ["./", "--config"])
def test_a_metric_that_a_file_names_is_code_and_one_that_was_typed_is_wanted(run_here, metric, way):
    path = run_here / (RECIPE_FILE if way == "./" else "mine.yaml")
    path.write_text(f"model: m\ndata: d.csv\nmetric: {metric}\nhigher_is_better: true\n")
    named = {} if way == "./" else {"file": path}
    with pytest.raises(ConfigError, match="isn't built in") as raised:
        load_settings({}, **named)
    assert "`trust_metric_code`" in raised.value.hint
    assert load_settings({}, trust_metric_code=True, **named)[0].data.metric == metric
    assert load_settings({"metric": metric}, **named)[0].data.metric == metric
    path.write_text("model: m\ndata: d.csv\nmetric: accuracy\n")
    assert load_settings({}, **named)[0].data.metric == "accuracy"
    path.write_text(f"model: m\nmetric: {metric}\ntrust_metric_code: true\n")
    with pytest.raises(ConfigError):
        load_settings({}, **named)


@pytest.mark.parametrize("command", ["score", "prune", "sweep", "eval", "heal", "check", "run"])
def test_no_command_runs_the_code_that_a_file_names(run_here, command_line, command):
    (run_here / "evil.py").write_text(EVIL)
    (run_here / "x.yaml").write_text(
        "model: m\ndata: d.csv\nmetric: evil.py\nhigher_is_better: true\nkeep: 0.5\ncheck: {baseline: b.json}\n"
    )
    words = ("x.yaml",) if command == "run" else ("-c", "x.yaml")
    code, _out, err = command_line(command, *words)
    assert code == 2
    assert "--trust-metric-code" in err
    code, _out, err = command_line(command, *words, "--no-trust-metric-code")
    assert "--trust-metric-code" in err
    assert not (run_here / "PWNED").exists()


@pytest.mark.parametrize("use", [evaluate, prune, plan, score, sweep])
def test_no_command_runs_what_a_record_names(pruned, use):
    """With the record of a stranger: its data is read, its metric, model, outputs and teacher aren't."""
    (pruned / "evil.py").write_text(EVIL)
    (pruned / "manifest.json").unlink()
    record = yaml.safe_load((pruned / RECIPE_FILE).read_text())
    record |= {"metric": "pruned/evil.py", "higher_is_better": True, "teacher": "/etc"}
    record |= {"overwrite": True, "run": "/etc", "scores": "/etc/hosts", "limit": 10}
    (pruned / RECIPE_FILE).write_text(yaml.safe_dump(record))
    # The metric is looked at before the model: this stops each command right after that.
    (pruned / "tokenizer.json").unlink()
    progress = Progress()
    recipe = Settings.of(
        model="pruned", keep=0.8, method="magnitude", steps=1, reconstruct="none", out="new"
    )
    found = with_recorded_rows(recipe, progress=progress)
    assert found.data.limit == 10
    assert Path(found.data.data).name == "train.csv"
    assert (found.data.metric, found.distill.teacher, found.run.scores, found.run.run_dir) == (
        None,
        None,
        None,
        None,
    )
    assert (found.run.out, found.run.overwrite) == ("new", False)
    extra = {"show": print} if use in (prune, plan) else {}
    with pytest.raises(ModelError, match="tokenizer"):
        use(recipe, progress=progress, **extra)
    assert progress.text.count("pruned/evil.py") == 2
    assert not Path("PWNED").exists()


def test_what_was_typed_goes_before_the_record(pruned):
    progress = Progress()
    recipe = Settings.of(model="pruned", limit=7)
    assert with_recorded_rows(recipe, progress=progress).data.limit == 7
    typed = Settings.of(model="pruned", data="mine.csv")
    assert with_recorded_rows(typed, progress=progress) == typed


# --- what is published


@pytest.mark.parametrize("kind", ["pruned", "streamed"])
def test_what_is_saved_names_no_path_from_the_root_and_no_code_of_others(runs, kind):
    texts = texts_in(runs[1] / kind)
    assert {"README.md", "config.json", "headprune.yaml", "plan.json", "scores.json"} <= set(texts)
    for name, text in texts.items():
        assert "home-of-somebody" not in text, name
        assert str(runs[1]) not in text, name
        assert "somebody/repo" not in text, name
    assert json.loads(texts["preprocessor_config.json"]) == {"kept": 1}
    assert "license: mit" in texts["README.md"]


def test_rows_are_recognised_here_and_nowhere_else(pruned, source, tmp_path, monkeypatch):
    """Who has every text that was scored recognises none of them; this machine recognises all."""
    lines = (source.parent / "train.csv").read_text().splitlines()[1:]
    examples = [Example((line.rpartition(",")[0],)) for line in lines]
    rows = read_artefact(HeadScores, pruned / "scores.json").rows
    assert len(rows) == 30
    assert set(rows) <= set(noted_rows(examples))
    assert len(without_noted(examples, rows)) == 30
    assert count_noted_elsewhere(rows) == 0
    everything = "".join(texts_in(pruned).values())
    for example in examples:
        assert example.input_digest[:8] not in everything
        assert example.digest[:8] not in everything
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    assert not set(rows) & set(noted_rows(examples))
    assert count_noted_elsewhere(rows) == len(rows)


def test_commands_recognise_the_rows_that_chose_or_say_that_they_cannot(
    pruned, source, tmp_path, monkeypatch
):
    progress = Progress()
    evaluate(Settings.of(model="pruned"), progress=progress)
    assert "30 of these 60 rows chose the heads" in progress.text
    assert str(source.parent / "train.csv") in progress.text, "found where it lies on this machine"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    progress = Progress()
    evaluate(Settings.of(model="pruned", data=str(source.parent / "train.csv")), progress=progress)
    assert "noted on another machine" in progress.text


def test_the_source_is_found_again_on_this_machine_and_asked_for_elsewhere(
    pruned, source, tmp_path, monkeypatch
):
    subject = open_session(Settings.of(model="pruned"), progress=Progress())
    teacher = open_teacher(subject)
    assert teacher.note["name"] == "source"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(ModelError) as raised:
        open_teacher(subject)
    assert "`teacher=" in raised.value.hint
    record = {**subject.model.config.headprune, "source": {"name": str(source)}}
    subject.model.config.headprune = record
    with pytest.raises(ModelError, match="isn't known here"):
        open_teacher(subject)


@given(text=st.text(min_size=1))
def test_a_hash_is_the_same_again_says_whose_it_is_and_depends_on_the_key(tmp_path_factory, text):
    here = noted_hash(text)
    assert here == noted_hash(text)
    assert len(here) == 24
    assert count_noted_elsewhere([here]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "other"))
        assert noted_hash(text) != here
        assert count_noted_elsewhere([here, here[:16], "", "é"]) == 4


def test_the_key_is_for_its_owner_alone_and_a_folder_that_cannot_be_used_stops_nobody(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first = noted_hash("x")
    key = tmp_path / "headprune" / "row-key"
    assert key.stat().st_mode & 0o077 == 0
    local._key.cache_clear()
    assert noted_hash("x") == first, "another process reads the same key"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert noted_hash("x") != first
    local.note_places({"0" * 16: str(tmp_path)})
    assert local.place_of("0" * 16, name="x") is None


def test_places_are_found_by_fingerprint_and_name_as_long_as_they_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    file, mark = tmp_path / "train.csv", "0123456789abcdef"
    file.write_text("x")
    local.note_places({mark: "train.csv", "../../evil": str(file), "f" * 16: "org/name"})
    assert local.place_of(mark, name="data/train.csv") == str(file)
    assert local.place_of(mark, name="other.csv") is None
    assert local.place_of("../../evil", name="train.csv") is None
    assert local.place_of("f" * 16, name="name") is None
    file.unlink()
    assert local.place_of(mark, name="train.csv") is None


@given(parts=st.lists(st.text("ab.~", min_size=1), min_size=1, max_size=4), root=st.booleans())
def test_names_are_published_without_their_root(parts, root):
    name = ("/" if root else "") + "/".join(parts)
    shown = published_name(name)
    assert not Path(shown).is_absolute()
    assert shown == (Path(name).name if root or name.startswith("~") else name)


def test_a_record_can_be_read_as_settings_again():
    recipe = Settings.of(model="/home/x/m", data="/home/x/d.csv", out="/tmp/o", keep=0.5, seed=3)
    again = Settings.of(**yaml.safe_load(record_of(recipe)))
    assert (again.model.model, again.data.data, again.run.out) == ("m", "d.csv", "o")
    assert (again.plan.keep, again.data.seed) == (0.5, 3)


def test_a_damaged_record_ends_in_three_parts(pruned):
    for text in ("[", "a: &a [*a]", "- 1", "data: [1]", "limit: many"):
        (pruned / RECIPE_FILE).write_text(text)
        with pytest.raises(HeadpruneError) as raised:
            with_recorded_rows(Settings.of(model="pruned"), progress=Progress())
        assert "\n  try:  " in str(raised.value)
