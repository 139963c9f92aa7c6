"""What strangers put into directories: code in every place that somebody might run, and ways out."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

SECRET = "PRIVATE-7c1e"
RAN = "RAN"
"""The file that a stranger's code would make."""

_CODE = """
import pathlib
pathlib.Path({ran!r}).write_text("code of a stranger")
from transformers import BertConfig as EvilConfig, BertForSequenceClassification as EvilModel
from transformers import PreTrainedTokenizerFast as EvilTokenizer
try:
    import datasets, evaluate
    class Evil(evaluate.Metric):
        def _info(self):
            return evaluate.MetricInfo(description="", citation="", features=datasets.Features(
                {{"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}}))
        def _compute(self, predictions, references):
            return {{"evil": 1.0}}
except ImportError:
    pass
"""


class Scene(NamedTuple):
    """A directory of a stranger, its working directory, and the user's own folder outside."""

    model: Path
    work: Path
    outside: Path
    draw: Random

    def code(self, name: str) -> None:
        """Put a file of code into the directory."""
        path = self.model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_CODE.format(ran=str(self.work / RAN)), encoding="utf-8")

    def change(self, name: str, values: Mapping[str, Any]) -> None:
        """Change values of a JSON file of the directory; it isn't sealed any more."""
        path = self.model / name
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**known, **values}), encoding="utf-8")
        self.unseal()

    def unseal(self) -> None:
        """Remove the manifest."""
        (self.model / "manifest.json").unlink(missing_ok=True)


def _foreign_code(scene: Scene) -> None:
    scene.code("modeling_evil.py")
    classes = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModel": "modeling_evil.EvilModel",
        "AutoModelForSequenceClassification": "modeling_evil.EvilModel",
    }
    scene.change("config.json", {"auto_map": classes})


def _foreign_tokenizer(scene: Scene) -> None:
    scene.code("tokenization_evil.py")
    named = scene.draw.choice(("tokenization_evil.EvilTokenizer", "stranger/repo--tok.Evil"))
    scene.change(
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": [named, named]}, "tokenizer_class": "EvilTokenizer"},
    )


def _replaced_code(scene: Scene) -> None:
    scene.code("modeling_headprune.py")
    scene.unseal()


def _code_everywhere(scene: Scene) -> None:
    for name in (
        "__init__.py",
        "setup.py",
        "conftest.py",
        "sitecustomize.py",
        "custom_generate/generate.py",
        "handler.py",
        "torch.py",
        "json.py",
    ):
        scene.code(name)
    scene.change("modules.json", {})
    (scene.model / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "handler.Evil"}]), encoding="utf-8"
    )


def _metric_in_record(scene: Scene) -> None:
    scene.code("evil.py")
    record = scene.model / "headprune.yaml"
    known = record.read_text(encoding="utf-8") if record.is_file() else ""
    metric = scene.draw.choice(("model/evil.py", str(scene.model / "evil.py"), "./model/evil.py"))
    record.write_text(f"{known}metric: {metric}\nhigher_is_better: true\n", encoding="utf-8")
    scene.unseal()


def _metric_beside(scene: Scene) -> None:
    scene.code("evil.py")
    text = "metric: model/evil.py\nhigher_is_better: true\ndata: test.csv\n"
    (scene.work / "headprune.yaml").write_text(text, encoding="utf-8")


def _pickle(scene: Scene) -> None:
    target = str(scene.work / RAN)
    evil = b"cposix\nmkdir\n(V" + target.encode() + b"\ntR."
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (scene.model / name).write_bytes(evil)
    if scene.draw.random() < 0.7:
        (scene.model / "model.safetensors").unlink()
    scene.unseal()


def _loading_script(scene: Scene) -> None:
    scene.code("model.py")
    scene.code("data.py")


def _yaml_objects(scene: Scene) -> None:
    path = scene.draw.choice((scene.work, scene.model)) / "headprune.yaml"
    path.write_text(
        f"model: !!python/object/apply:os.mkdir ['{scene.work / RAN}']\n", encoding="utf-8"
    )
    scene.unseal()


def _links_out(scene: Scene) -> None:
    (scene.outside / "folder").mkdir(exist_ok=True)
    (scene.outside / "folder" / "config.json").write_text(
        f'{{"key": "{SECRET}"}}', encoding="utf-8"
    )
    for name in scene.draw.sample(
        (
            "1_Pooling",
            "modules.json",
            "generation_config.json",
            "preprocessor_config.json",
            "README.md",
            "special_tokens_map.json",
            "chat_template.jinja",
            "vocab.txt",
            "config_sentence_transformers.json",
        ),
        3,
    ):
        path = scene.model / name
        path.unlink(missing_ok=True)
        path.symlink_to(scene.outside / ("folder" if name == "1_Pooling" else "id_rsa"))
    scene.unseal()


def _files_outside(scene: Scene) -> None:
    digest = "0" * 64
    name = scene.draw.choice(("../../outside/id_rsa", str(scene.outside / "id_rsa"), "/etc/passwd"))
    files = {name: {"sha256": digest, "size": 10}}
    text = json.dumps({"format": 1, "files": files})
    (scene.model / "manifest.json").write_text(text, encoding="utf-8")


def _weights_outside(scene: Scene) -> None:
    raw = (scene.model / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    (scene.model / "model.safetensors").rename(scene.outside / "weights.safetensors")
    names = dict.fromkeys(header, "../../outside/weights.safetensors")
    names.pop("__metadata__", None)
    scene.change(
        "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": names}
    )


def _pipes(scene: Scene) -> None:
    name = scene.draw.choice(
        (
            "a.safetensors",
            "config.json",
            "tokenizer.json",
            "generation_config.json",
            "headprune.yaml",
            "manifest.json",
            "README.md",
            "1_Pooling",
            "adapter_config.json",
        )
    )
    path = scene.model / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if name != "manifest.json":
        scene.unseal()


def _adapters(scene: Scene) -> None:
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": "stranger/repo",
        "r": 2,
        "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"},
    }
    (scene.model / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (scene.model / "adapter_model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")


def _absurd(scene: Scene) -> None:
    name = scene.draw.choice(
        (
            "num_hidden_layers",
            "hidden_size",
            "vocab_size",
            "num_labels",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
    )
    value = scene.draw.choice((10**4, 10**6, 10**9, 2**40, 2**62, -1, 0))
    scene.change("config.json", {name: value})


def _deep(scene: Scene) -> None:
    depth = scene.draw.choice((2000, 20000, 200000))
    name = scene.draw.choice(
        (
            "config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "manifest.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "headprune.yaml",
        )
    )
    text = (
        "[" * depth + "]" * depth if name.endswith("yaml") else '{"a":' * depth + "1" + "}" * depth
    )
    (scene.model / name).write_text(text, encoding="utf-8")
    if name != "manifest.json":
        scene.unseal()


def _headers(scene: Scene) -> None:
    path = scene.model / "model.safetensors"
    entries: Any = scene.draw.choice(
        (
            {"a": {"dtype": "F32", "shape": [2**40, 2**30], "data_offsets": [0, 8]}},
            {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [2**62, 2**62 + 4]}},
            {f"a{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20000)},
        )
    )
    header = json.dumps(entries).encode()
    size = scene.draw.choice((len(header), len(header), 2**63, 2**40))
    path.write_bytes(struct.pack("<Q", size) + header + bytes(8))
    scene.unseal()


def _many_files(scene: Scene) -> None:
    for number in range(2000):
        (scene.model / f"{'n' * 200}{number}.json").write_text("{}", encoding="utf-8")
    deep = scene.model
    for _ in range(40):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (scene.model / "loop").symlink_to(scene.model)


def _templates(scene: Scene) -> None:
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}x{% endfor %}"
    (scene.model / "chat_template.jinja").write_text(evil, encoding="utf-8")
    scene.change("tokenizer_config.json", {"chat_template": evil})


SCENES: dict[str, Callable[[Scene], None]] = {
    "code named by the config": _foreign_code,
    "code named by the tokenizer": _foreign_tokenizer,
    "modeling_headprune.py replaced": _replaced_code,
    "files of code": _code_everywhere,
    "a metric in the record": _metric_in_record,
    "a metric in ./headprune.yaml": _metric_beside,
    "pickles": _pickle,
    "loading scripts": _loading_script,
    "objects in YAML": _yaml_objects,
    "links out": _links_out,
    "a manifest of files outside": _files_outside,
    "an index of weights outside": _weights_outside,
    "pipes": _pipes,
    "adapters": _adapters,
    "absurd sizes": _absurd,
    "deep nesting": _deep,
    "absurd headers": _headers,
    "thousands of files, a loop of links": _many_files,
    "templates": _templates,
}
