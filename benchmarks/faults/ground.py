"""What the trials are made of: tiny models, data, and what every command makes of them; built once, copied for each trial."""

import csv
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.child import Action, command, run
from benchmarks.faults.place import Place
from benchmarks.faults.warm import import_all

WORDS = [f"w{number}" for number in range(60)]
_SPECIAL = ["[PAD]", "<s>", "</s>", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_PLAIN = {
    "vocab_size": 72,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 256,
}
DATA = ("--data", "train.csv", "--eval-data", "test.csv", "--limit", "8")
CUT = ("--keep", "0.5", "--scores", "scores.json", "--reconstruct", "none")


@dataclass(frozen=True)
class Ground:
    """The folder with all that was made, the seed of the campaign, and the place where this process' trials happen."""

    folder: Path
    seed: int
    place: Place

    def draw(self, campaign: str, number: int) -> random.Random:
        """Return the random numbers of one trial: the same for the same seed, whatever ran before."""
        return random.Random(f"{self.seed}:{campaign}:{number}")

    def lay_out(self, *names: str) -> Path:
        """Empty the place, and copy things of these names into its working directory; return that."""
        self.place.renew()
        for name in names:
            self.copy(name, self.place.work / name)
        return self.place.work

    def copy(self, name: str, target: Path) -> None:
        """Copy one thing."""
        source = self.folder / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copyfile(source, target)


def build(ground: Ground) -> None:
    """Make models, data, scores, pruned models, results, a baseline and an interrupted run.

    Raises:
        RuntimeError: A command failed without any fault; nothing can be tried then.
    """
    folder = ground.folder
    _models(folder)
    _data(folder)
    modules: set[str] = set()
    place = ground.place

    def make(action: Action, *results: str, stdout: str = "") -> None:
        ended = run(place, action)
        if problem := ended.problem(codes=(0,)):
            raise RuntimeError(f"the ground can't be laid: {problem}")
        modules.update(ended.modules)
        if stdout:
            (folder / stdout).write_text(ended.out, encoding="utf-8")
        for name in results:
            shutil.move(place.work / name, folder / name)

    ground.lay_out("bert", "llama", "train.csv", "test.csv")
    score = ("score", "bert", "--data", "train.csv", "--limit", "8", "-q")
    make(command(*score, "--run-dir", "run"), "run")
    shutil.move(folder / "run" / "scores.json", folder / "scores.json")
    shutil.rmtree(folder / "run")
    ground.copy("scores.json", place.work / "scores.json")
    prune = ("prune", "bert", *DATA, *CUT, "-q")
    make(command(*prune, "--out", "pruned"), "pruned")
    other = ("prune", "bert", *DATA, "--keep", "0.8", *CUT[2:], "-q")
    make(command(*other, "--out", "old"), "old")
    make(command("eval", "bert", "--data", "test.csv", "--json", "-q"), stdout="results.json")
    ground.copy("results.json", place.work / "results.json")
    check = ("check", "results.json", "--baseline", "baseline.json", "--update-baseline", "-q")
    make(command(*check), "baseline.json")
    baseline = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
    del baseline["sha256"]  # as it is changed on purpose
    old = json.dumps({**baseline, "value": 0.25}, indent=2)
    (folder / "old-baseline.json").write_text(old, encoding="utf-8")
    (folder / "old.gguf").write_bytes(b"GGUF" + bytes(200))
    import_all(sorted(modules))
    _load_once(folder)


def _load_once(folder: Path) -> None:
    """Let transformers make what it makes once a process; without gradients, whose threads don't survive a fork."""
    import headprune

    for name in ("bert", "llama", "pruned"):
        headprune.load(folder / name)


def _models(folder: Path) -> None:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    bert = ("BertConfig", "BertForSequenceClassification")
    llama = ("LlamaConfig", "LlamaForCausalLM")
    small = {"hidden_size": 16, "num_attention_heads": 4}
    grouped = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings: dict[str, tuple[tuple[str, str], dict[str, int]]] = {
        "bert": (bert, small),
        "llama": (llama, grouped),
        "wide-bert": (bert, {**small, "intermediate_size": 2048}),
        "wide-llama": (llama, {**grouped, "vocab_size": 4000}),
    }
    for name, ((config_name, class_name), sizes) in settings.items():
        given = {**_PLAIN, **sizes}
        config = getattr(transformers, config_name)(**given)
        torch.manual_seed(0)
        model = getattr(transformers, class_name)._from_config(config)
        model.save_pretrained(folder / name)
        _tokenizer().save_pretrained(folder / name)


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def _data(folder: Path) -> None:
    """Write the same kind of rows in every format that is read."""
    import datasets

    draw = random.Random(0)
    rows = [
        (" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) + f" {WORDS[n]}", n % 2)
        for n in range(40)
    ]
    for name, part, separator in (
        ("train.csv", rows[:24], ","),
        ("test.csv", rows[24:], ","),
        ("rows.tsv", rows[:12], "\t"),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=separator).writerows([("text", "label"), *part])
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows[:12]]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "rows.txt").write_text("\n".join(text for text, _ in rows), encoding="utf-8")
    columns = {"text": [text for text, _ in rows[:24]], "label": [label for _, label in rows[:24]]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).to_parquet(folder / "rows.parquet")
    recipe = "model: results.json\ncheck:\n  baseline: baseline.json\n  max_drop: 0.5\n  min_recovery: 0.1\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
