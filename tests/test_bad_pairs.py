"""Two bad things at once, of data, model and options: the command stops, and names the true cause of one of them."""

import gzip
import json
import os
import random
import re
import shutil
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
from families import build, sentences, toy_tokenizer
from lawful import is_lawful
from safetensors.torch import load_file, save_file

import headprune as hp
from headprune.config import Settings
from headprune.gate import write_baseline
from headprune.report.terminal import ConsoleProgress
from headprune.workflows.evaluate import evaluate

PAIRS = 200
SEED = 0
COMMANDS = {
    "score": ("score", "MODEL", "--data", "DATA", "--method", "gradient"),
    "prune": ("prune", "MODEL", "--data", "DATA", "--method", "magnitude", "--keep", "0.5", "--out", "o"),
    "eval": ("eval", "MODEL", "--data", "DATA", "--no-latency"),
    "sweep": ("sweep", "MODEL", "--data", "DATA", "--methods", "random", "--points", "0.5", "--no-latency"),
    "heal": ("heal", "pruned", "--teacher", "MODEL", "--data", "DATA", "--out", "o", "--max-steps", "1"),
    "check": ("check", "MODEL", "--data", "DATA", "--baseline", "baseline.json", "--no-latency"),
}  # fmt: skip
ALL = tuple(COMMANDS)
SCORING = ("score", "prune", "sweep")
CUTTING = ("prune", "sweep")
LABELLED = (*SCORING, "eval", "check")  # heal reads labels to measure alone
# Words of other libraries for their own users, and of what nobody foresaw.
FOREIGN = re.compile(r"above report|ignore_mismatched_sizes|trust_remote_code=True|from_tf")


class Bad(NamedTuple):
    """A bad thing: how it comes about, a pattern of the words that name it, the commands that meet it, what else is said."""

    make: object
    cause: str
    commands: tuple[str, ...] = ALL
    words: tuple[str, ...] = ()


# --- data: a name, and what lies there

TEXTS = sentences(24)
ROWS = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)


def relabelled(*labels):
    return "text,label\n" + "".join(f"{t},{labels[n % len(labels)]}\n" for n, t in enumerate(TEXTS))


def lines(*rows, first=ROWS[:3]):
    return "".join(json.dumps(row) + "\n" for row in (*first, *rows))


def parquet(**columns):
    return lambda path: pyarrow.parquet.write_table(pyarrow.table(columns), path)


def cut_parquet(path):
    parquet(text=TEXTS, label=[0, 1] * 12)(path)
    path.write_bytes(path.read_bytes()[:-40])


DATA = {
    "nowhere.csv": Bad(None, "there is no file nowhere.csv"),
    "d.csv:train": Bad(None, "which has no parts to be named after it"),
    "https://example.org/d.csv": Bad(None, "is an address"),
    "*.csv": Bad(None, "there is no file"),
    "no/such/set": Bad(None, "no data set on the hub is called so"),
    "somebody/nowhere": Bad(None, "the data can't be read.*Hub|couldn't be found|offline"),
    "csv": Bad(None, "is the name of a format"),
    "demo:nothing": Bad(None, "demo.*nothing|nothing.*demo"),
    "empty.csv": Bad("", "it is empty"),
    "header.csv": Bad("text,label\n", "no rows"),
    "rows": Bad(lambda path: path.mkdir(), "is a folder"),
    "pipe.csv": Bad(os.mkfifo, "is a pipe"),
    "ragged.csv": Bad(CSV + "w1,1,w2\n", "line 26: it has 3 fields"),
    "short.tsv": Bad(CSV.replace(",", "\t") + "w1\n", "line 26: it has 1 field"),
    "latin.csv": Bad((CSV + "é,1\n").encode("latin-1"), "line 26: .*not UTF-8"),
    "wide.csv": Bad(CSV.encode("utf-16"), "UTF-16"),
    "packed.csv": Bad(gzip.compress(CSV.encode()), "compressed"),
    "semicolons.csv": Bad(CSV.replace(",", ";"), "separated by ';'"),
    "open.csv": Bad(CSV + '"w1,1\n', "never closed"),
    "twice.csv": Bad("text,text,label\nw1 w2,w3 w4,1\n", "same name, 'text'"),
    "headless.csv": Bad("".join(CSV.splitlines(keepends=True)[1:]), "isn't a header"),
    "unlabelled.csv": Bad("text,kind\nw1 w2,1\nw3 w4,0\n", "looks like the label", LABELLED),
    "minus.csv": Bad(relabelled(-1), "this split has no labels", LABELLED),
    "maybe.csv": Bad(relabelled("no", "maybe"), "label '(no|maybe)'", LABELLED),
    "three.csv": Bad(relabelled(0, 1, 7), "label '?7", LABELLED),
    "ones.csv": Bad(relabelled(1, 2), "count from 1", LABELLED),
    "halves.csv": Bad(relabelled(0.5, 1), r"label '?0\.5", LABELLED),
    "rivals.csv": Bad("text,label,labels\nw1 w2,1,0\nw3,0,1\n", "could be the label", LABELLED),
    "question.csv": Bad("question,passage,label\nw1 w2,w3 w4,1\n", "could be the text"),
    "gap.csv": Bad(CSV + ",1\n", r"row 24 \(line 26\) has no text"),
    "one.csv": Bad("text,label\nw1 w2,1\n", "rows? (is|are) left|1 row", ("prune", "heal")),
    "list.jsonl": Bad(lines({"text": ["w1", "w2"], "label": 0}), r"row 3 .*no text.*\['w1', 'w2'\]"),
    "nan.jsonl": Bad(lines({"text": float("nan"), "label": 0}), "row 3 .*no text.*nan"),
    "number.jsonl": Bad(lines({"text": 7, "label": 0}), "row 3 .*no text.*7"),
    "none.jsonl": Bad(lines({"label": 0}), "row 3 .*no text.*None"),
    "broken.jsonl": Bad(lines() + '{"text": "w1\n', "line 4: the JSON is damaged"),
    "listed.jsonl": Bad(lines(first=[ROWS[:3]]), "line 1: it is a list"),
    "chat.jsonl": Bad(
        lines(first=[{"text": [{"role": "user", "content": "w1"}], "label": 0}] * 8), "chat template|row 0 .*no text"
    ),
    "vector.jsonl": Bad(lines({"text": "w1 w2", "label": [0, 1]}), r"row 3 .*label \[0, 1\]", LABELLED),
    "truth.jsonl": Bad(lines({"text": "w1 w2", "label": "yes"}), r"row 3 \(line 4\) has the label 'yes'", LABELLED),
    "data.json": Bad(json.dumps({"data": ROWS}), "'data' inside, not a list of rows"),
    "texts.json": Bad(json.dumps(TEXTS), "row 0 is a text"),
    "deep.json": Bad("[" * 100_000, "nested too deep"),
    "table.parquet": Bad(CSV, "no .parquet file"),
    "cut.parquet": Bad(cut_parquet, "the file is damaged"),
    "bytes.parquet": Bad(parquet(text=[b"a", b"b"], label=[0, 1]), "text"),
    "table.arrow": Bad(CSV, "no .arrow file"),
    "rows.xls": Bad(CSV, "format that isn't known"),
    "rows.csv.gz": Bad(gzip.compress(CSV.encode()), "is compressed"),
}  # fmt: skip


# --- models: a directory, and what becomes of it


def config(**changes):
    """Change the config; a setting that becomes None is taken out."""

    def change(folder):
        path = folder / "config.json"
        settings = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))

    return change


def text(name, content):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))

    return change


def each(*changes):
    def change(folder):
        for one in changes:
            one(folder)

    return change


def without(*patterns):
    def change(folder):
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return change


def tensors(change):
    """Give every tensor another name, or, where it has none, leave it out."""

    def rename(folder):
        path = folder / "model.safetensors"
        renamed = {change(name): value for name, value in load_file(path).items()}
        renamed.pop(None, None)
        save_file(renamed, path, {"format": "pt"})

    return rename


def cut(name, share):
    def change(folder):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(len(raw) * share)])

    return change


def sharded(folder):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    files[names[-1]] = "model-00002-of-00002.safetensors"
    text("model.safetensors.index.json", {"metadata": {}, "weight_map": files})(folder)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # it isn't opened


def of(family, *changes, **settings):
    """Put another model in its place."""

    def change(folder):
        without("*.safetensors", "config.json")(folder)
        build(family, num_hidden_layers=1, **settings).save_pretrained(folder)
        each(*changes)(folder)

    return change


def more_words(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {w: n if n < 7 else n + 500 for w, n in words.items()}
    path.write_text(json.dumps(tokenizer))


def linked(folder):
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


def piped(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def with_nan(folder):
    path = folder / "model.safetensors"
    save_file({k: v * float("nan") for k, v in load_file(path).items()}, path, {"format": "pt"})


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "target_modules": ["x"]}
BAD_LENGTH = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "long"}
PIECES = {"tokenizer_class": "LlamaTokenizer"}
NO_WORDS = {"tokenizer_class": "BertTokenizer"}
FOREIGN_MODULES = [{"type": "evil.Module", "path": ""}]
LABELS = {"0": "bad", "1": "good"}
ENCODED = ("--task", "causal-lm")
MODELS = {
    "nothing": Bad(None, "nothing is not a directory|there is no directory"),
    "./nothing": Bad(None, "there is no directory ./nothing"),
    "a b": Bad(None, "neither a directory nor a hub id"),
    "d.csv": Bad(None, "is a file, not the directory"),
    "demo:nobody": Bad(None, "nobody"),
    "empty": Bad(without("*"), "config.json is missing"),
    "weights-alone": Bad(without("config.json"), "config.json is missing"),
    "config-alone": Bad(without("*.safetensors"), "no weights"),
    "no-json": Bad(text("config.json", "{"), "config.json is damaged"),
    "a-list": Bad(text("config.json", []), "config.json is damaged: it is a list"),
    "no-type": Bad(config(model_type=None), "unknown model type None"),
    "other-type": Bad(config(model_type="bertt"), "unknown model type 'bertt'"),
    "own-code": Bad(config(auto_map={"AutoModel": "own.M"}), "own.M"),
    "own-class": Bad(config(architectures=["JinaModel"]), "JinaModel"),
    "truncated": Bad(cut("model.safetensors", 0.5), "model.safetensors is damaged"),
    "no-bytes": Bad(cut("model.safetensors", 0), "model.safetensors is damaged"),
    "sharded": Bad(sharded, "index names model-00002"),
    "bad-index": Bad(each(sharded, cut("model.safetensors.index.json", 0.5)), "index.json is damaged"),
    "pickled": Bad(pickled, "pickled weights"),
    "gptq": Bad(config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    "packed": Bad(tensors(lambda n: n.replace(".weight", ".qweight")), "quantised"),
    "adapters": Bad(each(without("*"), text("adapter_config.json", ADAPTER)), "adapters alone"),
    "adapters-beside": Bad(text("adapter_config.json", ADAPTER), "a model and adapters beside it"),
    "no-tokenizer": Bad(without("*token*"), "has no tokenizer"),
    "bad-tokenizer": Bad(text("tokenizer.json", {}), "the tokenizer of .* can't be loaded"),
    "cut-tokenizer": Bad(cut("tokenizer.json", 0.5), "the tokenizer of .* can't be loaded"),
    "no-words": Bad(each(without("*token*"), text("tokenizer_config.json", NO_WORDS)), "has no vocabulary"),
    "bad-tokenizer-config": Bad(text("tokenizer_config.json", "{"), "tokenizer"),
    "more-words": Bad(more_words, "the tokenizer gives input_ids up to|another vocabulary"),
    "no-lm": Bad(None, "BertForSequenceClassification, and causal-lm would run it without", words=ENCODED),
    "encoder": Bad(of("bert", cls="BertModel"), "no task here|never trained"),
    "no-decoder": Bad(of("bert", cls="BertLMHeadModel", is_decoder=False), "reads tokens ahead|no head for classification"),
    "masked": Bad(of("bert", cls="BertForMaskedLM"), "BertForMaskedLM"),
    "token-classes": Bad(of("bert", cls="BertForTokenClassification"), "BertForTokenClassification"),
    "contradicting": Bad(config(id2label=LABELS, label2id={"good": 0, "bad": 1}), "label2id says that 'good'"),
    "no-numbers": Bad(config(id2label={"x": "bad"}), "no whole numbers"),
    "headless": Bad(tensors(lambda n: None if n.startswith("classifier") else n), "classifier.*never trained"),
    "no-pooler": Bad(tensors(lambda n: None if "pooler" in n else n), "pooler"),
    "no-layer": Bad(tensors(lambda n: None if "layer.0.output" in n else n), "the weights have no bert.encoder.layer.0"),
    "no-tensors": Bad(tensors(lambda n: None), "no tensor|none of the weights|numbers"),
    "compiled": Bad(tensors(lambda n: f"_orig_mod.{n}"), "torch.compile"),
    "parallel": Bad(tensors(lambda n: f"module.{n}"), "DataParallel"),
    "in-a-trainer": Bad(tensors(lambda n: f"student.{n}"), "starts with 'student.'"),
    "lora": Bad(tensors(lambda n: n.replace(".weight", ".base_layer.weight")), "adapters that aren't merged"),
    "absurd-size": Bad(config(hidden_size=10**9), "hidden_size .*more than any model has"),
    "absurd-layers": Bad(config(num_hidden_layers=10**6), "num_hidden_layers .*more than any model has"),
    "large": Bad(config(vocab_size=9_000_000), "the config describes a model of"),
    "no-heads": Bad(config(num_attention_heads=0), "config"),
    "odd-heads": Bad(config(num_attention_heads=5), "config"),
    "text-size": Bad(config(hidden_size="48"), "config"),
    "other-vocabulary": Bad(config(vocab_size=100), "96 x .*100 x"),
    "other-labels": Bad(config(id2label={"0": "a", "1": "b", "2": "c"}), "classifier"),
    "bad-chunks": Bad(config(chunk_size_feed_forward=7), "chunk size 7", LABELLED),
    "bad-length": Bad(text("tokenizer_config.json", BAD_LENGTH), "model_max_length .* 'long'"),
    "weights-folder": Bad(each(without("*.safetensors"), lambda f: (f / "model.safetensors").mkdir()), "has no weights"),
    "pieces-gone": Bad(each(without("*token*"), text("tokenizer_config.json", PIECES)), "has no vocabulary"),
    "bad-activation": Bad(config(hidden_act="geluu"), "geluu"),
    "foreign-modules": Bad(text("modules.json", FOREIGN_MODULES), "evil.Module", LABELLED, ("--task", "similarity")),
    "bad-modules": Bad(text("modules.json", "["), "modules.json is damaged"),
    "link": Bad(linked, "is a link to something outside"),
    "pipe": Bad(piped, "is a pipe"),
    "seal": Bad(text("manifest.json", "{"), "manifest.json is damaged"),
    "nan": Bad(with_nan, "the weight .* holds a nan"),
    "pruned-by-v4": Bad(config(pruned_heads={"9": [0]}), "pruned_heads"),
    "nan-lm": Bad(of("llama", with_nan), "the weight .* holds a nan", ("eval",), ENCODED),
}  # fmt: skip


# --- options


OPTIONS = {
    "keep-2": Bad("--keep 2", "--keep can't be 2", ("prune", "score")),
    "keep-0": Bad("--keep 0", "--keep can't be 0", ("prune", "score")),
    "keep-nan": Bad("--keep nan", "--keep can't be '?nan", ("prune", "score")),
    "keep-text": Bad("--keep most", "'--keep'.*'most'|--keep.*most", ("prune", "score")),
    "keep-and-heads": Bad("--heads 3", "contradict|--heads", ("prune",)),
    "heads-0": Bad("--heads 0", "--heads", ("prune",)),
    "method": Bad("--method gradiant", "method.*gradiant", ("prune", "score")),
    "methods": Bad("--methods random,magic", "magic", ("sweep",)),
    "metric-of-numbers": Bad("--metric spearman", "spearman", ("eval", "prune", "sweep", "check")),
    "metric-of-texts": Bad("--metric perplexity", "perplexity", ("eval", "prune", "sweep", "check")),
    "metric-unknown": Bad("--metric nonesuch", "nonesuch", ("eval", "prune", "sweep", "check", "heal")),
    "max-length-0": Bad("--max-length 0", "--max-length can't be 0"),
    "batch-size-0": Bad("--batch-size 0", "--batch-size can't be"),
    "batch-size-text": Bad("--batch-size many", "--batch-size can't be 'many'"),
    "protect-head": Bad("--protect L0.H99", "L0.H99", CUTTING),
    "protect-layer": Bad("--protect L9", "no layer L9", CUTTING),
    "protect-words": Bad("--protect all", "'all'", CUTTING),
    "sites": Bad("--sites decoder", "no attention 'decoder'", CUTTING),
    "task": Bad("--task clasification", "no task 'clasification'"),
    "task-other": Bad("--task causal-lm", "causal-lm"),
    "device": Bad("--device tpu9", "'tpu9'"),
    "device-gone": Bad("--device cuda:99", "'cuda:99'"),
    "dtype": Bad("--dtype float8", "--dtype can't be 'float8'"),
    "split": Bad("--split nowhere --data demo:stsb", "nowhere|stsb"),
    "split-of-a-file": Bad("--split nowhere", "a file has no split 'nowhere'"),
    "eval-split-of-a-file": Bad("--eval-split nowhere", "a file has no split 'nowhere'"),
    "out-source": Bad("--out m", "source|m ", ("prune",)),
    "out-file": Bad("--out d.csv", "d.csv", ("prune", "heal")),
    "out-in-file": Bad("--out d.csv/o", "d.csv", ("prune", "heal", "sweep")),
    "out-taken": Bad("--out taken", "taken", ("prune", "heal", "sweep")),
    "seed": Bad("--seed text", "--seed"),
    "seed-large": Bad("--seed 99999999999999999999", "--seed can't be 9999"),
    "seed-negative": Bad("--seed -1", "--seed can't be -1"),
    "limit": Bad("--limit -1", "--limit can't be -1"),
    "gqa": Bad("--gqa groups", "--gqa can't be 'groups'", CUTTING),
    "revision": Bad("--revision main", "only models of the hub have revisions"),
    "empty-text": Bad("--text ,", "--text can't be"),
    "column-twice": Bad("--text text,text", "'text' is named twice"),
    "device-meta": Bad("--device meta", "'meta'"),
    "scores": Bad("--scores nowhere.json", "nowhere.json", ("prune",)),
    "scores-none": Bad("--scores latest", "scores|latest", ("prune",)),
    "scores-other": Bad("--scores d.csv", "d.csv", ("prune",)),
    "scores-baseline": Bad("--scores baseline.json", "baseline.json", ("prune",)),
    "config": Bad("-c nowhere.yaml", "nowhere.yaml|the recipe can't be read"),
    "config-broken": Bad("-c broken.yaml", "not YAML"),
    "config-unknown": Bad("-c unknown.yaml", "unknown setting 'keeep'"),
    "config-csv": Bad("-c d.csv", "d.csv"),
    "text": Bad("--text nowhere", "no column 'nowhere'"),
    "text-pair": Bad("--text text,label,text", "--text|text columns"),
    "label": Bad("--label nowhere", "no column 'nowhere'", LABELLED),
    "label-text": Bad("--label text", "label|column", LABELLED),
    "min-heads": Bad("--min-heads 9", "--min-heads|at least 9|min", CUTTING),
    "min-heads-negative": Bad("--min-heads -1", "--min-heads can't be -1", CUTTING),
    "multiple-of": Bad("--multiple-of 5", "multiple", CUTTING),
    "points": Bad("--points 1.5", "--points can't be", ("sweep",)),
    "points-text": Bad("--points half", "--points can't be", ("sweep",)),
    "reconstruct": Bad("--reconstruct allways", "--reconstruct can't be 'allways'", ("prune",)),
    "steps": Bad("--steps 0", "--steps can't be 0", ("prune", "score")),
    "steps-many": Bad("--steps 99999999", "--steps can't be 99999999", ("prune", "score")),
    "num-samples": Bad("--num-samples 0", "--num-samples can't be 0", (*SCORING, "heal")),
    "objective": Bad("--objective losses", "--objective can't be 'losses'", SCORING),
    "objective-metric": Bad("--objective metric", "--objective|metric", ("score", "prune")),
    "normalize": Bad("--normalize l2", "--normalize can't be 'l2'", SCORING),
    "recipe": Bad("--recipe michael", "--recipe can't be 'michael'", ("prune",)),
    "target": Bad("--target-parameters lots", "lots|--target-parameters", ("prune",)),
    "max-drop": Bad("--max-drop lots", "--max-drop can't be|--max-drop lots, --keep", ("prune", "sweep", "check")),
    "baseline": Bad("--baseline nowhere.json", "nowhere.json", ("check",)),
    "baseline-csv": Bad("--baseline d.csv", "d.csv", ("check",)),
    "format": Bad("--format xml", "--format can't be 'xml'", ("check",)),
    "latency": Bad("--latency --latency-length 0", "--latency-length can't be", ("eval", "check", "prune")),
    "unknown": Bad("--kepe 0.5", "--kepe"),
    "no-value": Bad("--limit", "--limit"),
    "more": Bad("again", "again"),
    "eval-data": Bad("--eval-data nowhere.csv", "nowhere.csv|--eval-data has no effect"),
    "eval-data-same": Bad("--eval-data d.csv", "every row of the data is an evaluation row too", (*SCORING, "heal")),
    "epochs": Bad("--epochs 0", "--epochs can't be 0", ("heal",)),
    "lora": Bad("--lora 0", "--lora can't be 0", ("heal",)),
    "trainer": Bad("--trainer warmup", "warmup", ("heal",)),
    "trainer-unknown": Bad("--trainer warmmup_steps=1", "warmmup_steps", ("heal",)),
    "learning-rate": Bad("--learning-rate 0", "--learning-rate can't be 0", ("heal",)),
    "resume": Bad("--resume", "resume|checkpoint", ("heal",)),
    "run-dir": Bad("--run-dir d.csv", "d.csv", ("score", "heal")),
}  # fmt: skip
OF = {"data": DATA, "model": MODELS, "option": OPTIONS}


def draw_pairs(seed, count):
    """Yield a command and two bad things of two kinds, by name, that it meets."""
    source = random.Random(seed)
    drawn = 0
    while drawn < count:
        kinds = source.choice(list(combinations(OF, 2)))
        names = [source.choice(list(OF[kind])) for kind in kinds]
        fitting = [set(OF[kind][name].commands) for kind, name in zip(kinds, names, strict=True)]
        if commands := sorted(set.intersection(*fitting)):
            drawn += 1
            yield source.choice(commands), dict(zip(kinds, names, strict=True))


def drawn_alone(seed):
    source = random.Random(seed)
    for kind, pool in OF.items():
        for name, bad in pool.items():
            yield source.choice(bad.commands), {kind: name}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A directory with a right model, right data, a pruned model and a baseline, and every bad thing that lies somewhere."""
    here = tmp_path_factory.mktemp("ground")
    (here / "d.csv").write_text(CSV)
    build("bert", num_hidden_layers=1).save_pretrained(here / "m")
    toy_tokenizer().save_pretrained(here / "m")
    (here / "taken").mkdir()
    (here / "taken" / "mine.txt").write_text("mine")
    (here / "broken.yaml").write_text("keep: [0.5\n")
    (here / "unknown.yaml").write_text("keeep: 0.5\n")
    pruned = hp.prune(build("bert", num_hidden_layers=1), ["L0.H1", "L0.H2"])
    pruned.save_pretrained(here / "pruned")
    toy_tokenizer().save_pretrained(here / "pruned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        settings = Settings.of(model="m", data="d.csv", latency=False)
        write_baseline(
            Path("baseline.json"),
            evaluate(settings, progress=ConsoleProgress(quiet=True, verbose=False)),
        )
    for name, bad in DATA.items():
        if callable(bad.make):
            bad.make(here / name)
        elif bad.make is not None:
            content = bad.make
            (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, bad in MODELS.items():
        if bad.make is not None:
            bad.make(Path(shutil.copytree(here / "m", here / f"m-{name}")))
    return here


def words_of(command, bad):
    """Return the command line."""
    model, words = "m", ()
    if name := bad.get("model"):
        made = MODELS[name].make is not None
        model, words = f"m-{name}" if made else name, MODELS[name].words
        model = "m" if name == "no-lm" else model
    data = bad.get("data", "d.csv")
    line = [{"MODEL": model, "DATA": data}.get(word, word) for word in COMMANDS[command]]
    option = OPTIONS[bad["option"]].make.split() if "option" in bad else ()
    return [*line, *words, *option]


def fault(code, out, err, causes):
    """Return what isn't as it should be of how a command ended, or nothing."""
    if not is_lawful(code, err):
        return f"not lawful ({code})"
    if out:
        return "something on stdout"
    if foreign := FOREIGN.search(err):
        return f"foreign words: {foreign.group()}"
    error = err[err.index("error: ") :]
    return "" if any(re.search(cause, error) for cause in causes) else "another cause"


def faults(drawn, here, command_line, monkeypatch):
    """Run what was drawn, and return the faults."""
    monkeypatch.chdir(here)
    there = {path.name for path in Path().iterdir()}
    found = []
    for command, bad in drawn:
        words = words_of(command, bad)
        ended = command_line(*words)
        what = fault(*ended, [OF[kind][name].cause for kind, name in bad.items()])
        shutil.rmtree("headprune-runs", ignore_errors=True)  # work done, for another try
        left = sorted({path.name for path in Path().iterdir()} - there)
        for name in left:
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
        if left:
            what += f" left {left}"
        if what:
            found.append(f"{what}: {bad}\n$ headprune {' '.join(words)}\n{ended[2]}")
    return found


def told(found):
    return f"{len(found)} faults\n\n" + "\n".join(found)


def test_one_bad_thing_is_named(ground, command_line, monkeypatch):
    found = faults(drawn_alone(SEED), ground, command_line, monkeypatch)
    assert not found, told(found)


@pytest.mark.nightly
def test_of_two_bad_things_one_is_named(ground, command_line, monkeypatch):
    found = faults(draw_pairs(SEED, PAIRS), ground, command_line, monkeypatch)
    assert not found, told(found)
