"""Data is read as it is, columns are chosen out loud, metrics are the known ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build, sentences
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headprune.errors import ConfigError, DataError
from headprune.tasks import metrics
from headprune.tasks.batches import InputFormat, pack
from headprune.tasks.catalogue import METRICS, TASKS, require_metric
from headprune.tasks.columns import choose_columns
from headprune.tasks.load_metric import load_metric
from headprune.tasks.rows import Example, draw, fingerprint, hold_out, read_table, without_inputs
from headprune.tasks.task import detect_task, get_task

ROWS = [{"sentence": text, "label": index % 2} for index, text in enumerate(sentences(9))]


def written(folder, suffix):
    path = folder / f"data{suffix}"
    match suffix:
        case ".csv" | ".tsv":
            mark = "," if suffix == ".csv" else "\t"
            lines = [
                mark.join(["sentence", "label"]),
                *(f"{r['sentence']}{mark}{r['label']}" for r in ROWS),
            ]
            path.write_text("\n".join(lines) + "\n")
        case ".json":
            path.write_text(json.dumps(ROWS))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    table = read_table(str(written(tmp_path, suffix)))
    as_text = suffix in (".csv", ".tsv")  # a cell is the text that was written
    expected = [{**row, "label": str(row["label"])} for row in ROWS] if as_text else ROWS
    assert [dict(row) for row in table.rows] == expected
    columns = choose_columns(table)
    assert (columns.texts, columns.label) == (("sentence",), "label")


def test_text_files_are_lines(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("one two\n\nthree\n")
    table = read_table(str(path))
    assert [row["text"] for row in table.rows] == ["one two", "", "three"]


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        (("sentence1", "sentence2", "score"), ("sentence1", "sentence2"), "score"),
        (("idx", "premise", "hypothesis", "label"), ("premise", "hypothesis"), "label"),
        (("id", "text", "target"), ("text",), "target"),
        (("words", "label"), ("words",), "label"),
    ],
)
def test_columns_are_found_by_the_names_everybody_uses(tmp_path, columns, texts, label):
    path = tmp_path / "x.jsonl"
    path.write_text(
        json.dumps(
            {
                name: 1 if name in ("score", "label", "idx", "id", "target") else "a b"
                for name in columns
            }
        )
        + "\n"
    )
    found = choose_columns(read_table(str(path)))
    assert (found.texts, found.label) == (texts, label)
    assert found.why


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"texts": ("sentense",)}, "no column 'sentense'", "did you mean 'sentence'"),
        ({"label": "lable"}, "no column 'lable'", "did you mean 'label'"),
        ({"texts": ("sentence", "label"), "num_texts": (1,)}, "reads 1 text columns", "`text="),
    ],
)
def test_wrong_columns_are_refused_with_a_suggestion(tmp_path, settings, message, hint):
    table = read_table(str(written(tmp_path, ".csv")))
    with pytest.raises(DataError, match=message) as caught:
        choose_columns(table, **settings)
    assert hint in caught.value.hint


def test_drawing_does_not_depend_on_the_order_of_rows():
    examples = [Example((text,), 0) for text in sentences(40)]
    shuffled = [examples[i] for i in np.random.default_rng(0).permutation(40)]
    assert set(draw(examples, 10, seed=1)) == set(draw(shuffled, 10, seed=1))
    assert set(draw(examples, 10, seed=1)) != set(draw(examples, 10, seed=2))
    assert fingerprint(examples) == fingerprint(shuffled)
    assert fingerprint(examples) != fingerprint(examples[1:])


def test_rows_that_choose_are_never_rows_that_report():
    texts = sentences(30) * 2  # every text twice, under two labels
    examples = [Example((text,), index % 3) for index, text in enumerate(texts)]
    choosing, reporting = hold_out(examples, count=20, seed=0)
    assert len(choosing) == 20
    assert reporting
    assert not {e.texts for e in choosing} & {e.texts for e in reporting}
    assert not without_inputs(choosing, [e.input_digest for e in choosing])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.none() | st.integers(1, 9))
def test_packing_loses_nothing_and_keeps_to_its_bound(lengths, size):
    groups = pack(lengths, batch_size=size, budget=100)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert (
            len(group) <= size
            if size
            else len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 100
        )


numbers = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=40)


@given(numbers)
@settings(deadline=None)
def test_metrics_are_the_reference_ones(pairs):
    x, y = np.array(pairs, dtype=np.float64).T
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)
        assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
    else:
        assert math.isnan(metrics.pearson(x, y))
    if len(set(x) | set(y)) < 2:
        return  # scikit-learn warns, and there is nothing to compare
    from sklearn import metrics as sk

    assert metrics.accuracy(x, y) == pytest.approx(sk.accuracy_score(y, x))
    for count in (2, 5):  # the model's classes, whichever occur
        rows = np.maximum(x, y) < count
        if not rows.any():
            continue
        found = load_metric("f1", predicted="classes", classes=count).compute(x[rows], y[rows])
        average = (
            {"average": "binary", "pos_label": 1}
            if count == 2
            else {"average": "macro", "labels": range(5)}
        )
        assert found == pytest.approx(sk.f1_score(y[rows], x[rows], **average, zero_division=0))
    assert metrics.matthews_correlation(x, y) == pytest.approx(sk.matthews_corrcoef(y, x), abs=1e-9)


def test_perplexity_is_that_of_the_model_s_own_loss(tokenizer):
    model, task = build("llama"), get_task("causal-lm")
    ids = torch.randint(7, 90, (1, 20))
    examples = [Example(tokens=tuple(ids[0].tolist()))]
    batches = task.to_batches(examples, InputFormat(tokenizer, 32))
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.exp().item()
        found = task.predict(model(**batches[0].inputs), batches[0])
    values = [tensor.double().numpy() for tensor in found]
    assert metrics.perplexity(*values) == pytest.approx(expected, rel=1e-5)


def test_metrics_that_are_not_built_in_must_say_their_direction():
    with pytest.raises(ConfigError, match="which way"):
        load_metric("bleu")
    with pytest.raises(ConfigError, match="can't be loaded"):
        load_metric("no-such-metric", higher_is_better=True)


@pytest.mark.parametrize("name", METRICS)
def test_a_known_metric_has_its_direction_and_what_it_compares(name):
    """Whatever else is said, or predicted, is refused before any work, in three parts."""
    known = METRICS[name]
    agreeing = load_metric(name, higher_is_better=known.higher_is_better)
    assert agreeing.higher_is_better == known.higher_is_better
    with pytest.raises(ConfigError, match="is better, and the settings say") as caught:
        load_metric(name, higher_is_better=not known.higher_is_better)
    assert name in caught.value.where
    for task in TASKS.values():
        if task.predicts in known.takes:
            load_metric(name, predicted=task.predicts, classes=3)
            require_metric(name, predicted=task.predicts)
            continue
        for refused in (
            lambda: load_metric(name, predicted=task.predicts),  # noqa: B023
            lambda: require_metric(name, predicted=task.predicts),  # noqa: B023
        ):
            with pytest.raises(ConfigError, match=f"compares {known.takes[0]}") as caught:
                refused()
            assert task.metric in caught.value.hint


@pytest.mark.parametrize("others", [0, 1])
def test_f1_is_over_the_model_s_classes_in_every_resample_and_for_both_models(others):
    from sklearn.metrics import f1_score

    truth = np.array([0.0, 1.0] * 30 + [2.0])
    one, two = truth.copy(), np.zeros_like(truth)
    predictions = [one, two][: 1 + others]
    statistic = load_metric("f1", predicted="classes", classes=4)
    found = metrics.interval(statistic, predictions, truth, seed=0, resamples=200)
    rng, values = np.random.default_rng(0), []
    for _ in range(200):
        rows = rng.integers(0, len(truth), len(truth))
        scores = [
            f1_score(truth[rows], p[rows], labels=range(4), average="macro", zero_division=0)
            for p in predictions
        ]
        values.append(scores[0] - sum(scores[1:]))
    assert found == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


SCRIPT = """
import datasets
import evaluate

class {name}(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{{features}}}),
        )

    def _compute(self, {arguments}):
        {body}
"""
INTEGERS = '"predictions": datasets.Value("int32"), "references": datasets.Value("int32")'
FLOATS = INTEGERS.replace("int32", "float32")
SIDES = "predictions, references"
SHARE = "sum(p == r for p, r in zip(predictions, references)) / len(references)"


def script(folder, name, features, body, arguments=SIDES):
    path = folder / name
    path.mkdir()
    text = SCRIPT.format(name=name, features=features, arguments=arguments, body=body)
    (path / f"{name}.py").write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "features", "body", "message"),
    [
        ("mscores", INTEGERS.replace("predictions", "scores"), "return 1.0", "takes scores"),
        ("mtexts", INTEGERS.replace("int32", "string"), "return 1.0", "string"),
        ("mfloats", FLOATS, "return {'mfloats': 1.0}", "compares numbers"),
        ("mbinary", INTEGERS, "return {'mbinary': 1 / (max(references) < 2)}", "3 classes that were tried"),
        ("mseveral", INTEGERS, "return {'a': 1.0, 'b': 2.0}", "gives a, b"),
        ("mlist", INTEGERS, "return {'mlist': [1.0, 2.0]}", "none of them is one number"),
        ("reconstructs", INTEGERS, "import sys; sys.exit(3)", "fails on 6 rows"),
    ],
)  # fmt: skip
def test_a_script_that_does_not_fit_is_refused_before_the_work(
    tmp_path, monkeypatch, name, features, body, message
):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    arguments = SIDES.replace("predictions", "scores") if name == "mscores" else SIDES
    path = script(tmp_path, name, features, body, arguments)
    with pytest.raises(ConfigError, match=message) as caught:
        load_metric(path, higher_is_better=True, predicted="classes", classes=3)
    assert "`metric=" in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize("text", ["def (", "x = 1", "import sys; sys.exit(0)"])
def test_a_file_that_is_no_metric_is_to_be_repaired(tmp_path, monkeypatch, text):
    """It lies here: neither its name nor the network is to blame."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ConfigError, match="can't be loaded") as caught:
        load_metric(str(tmp_path / "own.py"), higher_is_better=True)
    assert "repair the file" in caught.value.hint


def test_a_script_s_interval_is_of_as_many_samples_as_there_is_time_for(tmp_path):
    from headprune.evaluation import Predictions, metric_with_interval

    references = np.arange(20.0) % 3
    body = f"import time; time.sleep(0.11 * (len(references) == 20)); return {{'mslow': {SHARE}}}"
    path = script(tmp_path, "mslow", INTEGERS, body)
    statistic = load_metric(path, higher_is_better=True, predicted="classes", classes=3)
    assert statistic.num_resamples(0.001, largest=1000, smallest=100) == 1000
    assert statistic.num_resamples(0.06, largest=1000, smallest=100) == 200
    assert statistic.num_resamples(9.0, largest=1000, smallest=100) == 100
    known = load_metric("accuracy")
    assert known.num_resamples(9.0, largest=1000, smallest=100) == 1000
    right = Predictions(references[:19], references[:19], losses=np.zeros(19), classes=3)
    found = metric_with_interval(right, statistic, seed=0)
    assert (found.value, *found.interval) == (1, 1, 1)


def test_resamples_on_which_a_script_is_not_defined_are_left_out(tmp_path):
    need = "1 / (len(set(references)) > 1)"
    path = script(tmp_path, "mneedy", INTEGERS, f"return {{'mneedy': {need} * {SHARE}}}")
    statistic = load_metric(path, higher_is_better=True, predicted="classes", classes=2)
    references = np.array([0.0, 1.0, 0.0])
    found = metrics.interval(statistic, [references], references, seed=0, resamples=60)
    assert found == (1, 1)
    with pytest.raises(DataError, match="not defined on most samples"):
        metrics.interval(statistic, [np.zeros(3)], np.zeros(3), seed=0, resamples=20)


def test_the_bootstrap_interval_has_the_width_of_theory():
    rng = np.random.default_rng(0)
    references = np.ones(2000)
    predictions = (rng.random(2000) < 0.8).astype(float)
    low, high = metrics.interval(load_metric("accuracy"), [predictions], references, seed=0)
    share = predictions.mean()
    half = 1.96 * math.sqrt(share * (1 - share) / 2000)
    assert low == pytest.approx(share - half, abs=0.004)
    assert high == pytest.approx(share + half, abs=0.004)
    again = metrics.interval(load_metric("accuracy"), [predictions], references, seed=0)
    assert (low, high) == again
    # A model compared with itself: the paired difference has no width, however wide each interval is.
    assert metrics.interval(load_metric("accuracy"), [predictions] * 2, references, seed=0) == (
        0,
        0,
    )


def test_the_task_is_told_by_the_model(tmp_path):
    assert (
        detect_task(build("llama").config.__class__(architectures=["LlamaForCausalLM"]))
        == "causal-lm"
    )
    assert (
        detect_task(build("bert").config.__class__(architectures=["BertForSequenceClassification"]))
        == "classification"
    )
    (tmp_path / "modules.json").write_text("[]")
    bare = build("bert").config.__class__(architectures=["BertModel"])
    assert detect_task(bare, model_directory=tmp_path) == "similarity"
    # An embedder that was saved as a generator; a reranker has modules, too.
    generator = build("llama").config.__class__(architectures=["LlamaForCausalLM"])
    assert detect_task(generator, model_directory=tmp_path) == "similarity"
    reranker = tmp_path / "config_sentence_transformers.json"
    reranker.write_text('{"model_type": "CrossEncoder"}')
    assert detect_task(generator, model_directory=tmp_path) == "causal-lm"
    reranker.unlink()
    with pytest.raises(ConfigError, match="no task here for a model saved as"):
        detect_task(bare)
    with pytest.raises(ConfigError, match="no task"):
        get_task("clasification")


def test_pooling_is_the_model_s_own(tmp_path, tokenizer):
    task = get_task("similarity", model_directory=tmp_path)
    model = build("bert", cls="BertModel")
    pairs = [Example((a, b), 0.5) for a, b in zip(sentences(4), sentences(4, seed=1), strict=True)]
    (batch,) = task.to_batches(
        pairs, InputFormat(tokenizer, 32, accepts={"input_ids", "attention_mask"}.__contains__)
    )
    with torch.no_grad():
        outputs = model(**batch.inputs)
        mean, _ = task.predict(outputs, batch)
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
        kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
        modules = [{"path": p, "type": f"sentence_transformers.models.{kind}"} for p, kind in kinds]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        first, _ = get_task("similarity", model_directory=tmp_path).predict(outputs, batch)
        one = tokenizer(pairs[2].texts[0], return_tensors="pt", return_token_type_ids=False)
        two = tokenizer(pairs[2].texts[1], return_tensors="pt", return_token_type_ids=False)
        a, b = (model(**x).last_hidden_state[0] for x in (one, two))
    cosine = torch.nn.functional.cosine_similarity
    place = batch.indices.tolist().index(2)
    assert mean[place].item() == pytest.approx(cosine(a.mean(0), b.mean(0), dim=0).item(), abs=1e-5)
    assert first[place].item() == pytest.approx(cosine(a[0], b[0], dim=0).item(), abs=1e-5)


def test_reading_a_file_talks_to_nobody(tmp_path, monkeypatch):
    """Not even where the hub isn't switched off."""
    import socket

    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_more: asked.append(words) or [])
    for suffix in (".csv", ".json", ".parquet"):
        read_table(str(written(tmp_path, suffix)))
    assert asked == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_a_metric_of_the_hub_is_never_what_lies_here_by_that_name(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "rouge")
    with pytest.raises(ConfigError, match="lies here") as caught:
        load_metric("rouge", higher_is_better=True)
    assert "./rouge" in caught.value.hint


@pytest.mark.parametrize("name", ["pandas", "csv", "json", "imagefolder"])
def test_a_format_s_name_is_no_data_set(name, tmp_path, monkeypatch):
    """The library would read, and of some unpickle, what lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="name of a format"):
        read_table(name)
