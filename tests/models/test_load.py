"""What is saved loads, damage is noticed, and nothing is trusted that needn't be."""

import json
import random
import shutil
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import transformers
from families import build, token_inputs
from safetensors.torch import load_file, save_file

import headprune as hp
from headprune.errors import CheckpointError, HeadpruneError, ModelError
from headprune.models.find import find
from headprune.models.fresh import load_afresh
from headprune.models.manifest import check_manifest
from headprune.untrusted.weights import read_header
from headprune.verify import reload_is_identical


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """Return a pruned BERT classifier on disk, and its logits."""
    model = build("bert")
    hp.prune(model, {"L0": [0, 1, 2, 3, 4, 5], "L1": [2], "L2": [0, 5]})
    directory = tmp_path_factory.mktemp("saved") / "model"
    hp.save(model, directory, tokenizer=tokenizer)
    with torch.no_grad():
        return directory, model(**token_inputs())[0], model


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


@pytest.mark.parametrize(
    "auto_class",
    [
        "AutoModel",
        "AutoModelForSequenceClassification",
        "AutoModelForMaskedLM",
        "AutoModelForTokenClassification",
    ],
)
def test_every_auto_class_of_the_family_gets_the_pruned_attention(
    saved, auto_class, tmp_path, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    model = getattr(transformers, auto_class).from_pretrained(saved[0], trust_remote_code=True)
    attention = model.base_model.encoder.layer[1].attention
    assert attention.self.query.out_features == 40
    assert attention.output.dense.in_features == 40
    assert torch.equal(
        attention.self.query.weight, saved[2].bert.encoder.layer[1].attention.self.query.weight
    )


def test_a_fresh_process_without_headprune_gives_the_same_bits(saved):
    directory, _logits, model = saved
    proof = reload_is_identical(
        model,
        directory,
        inputs=token_inputs(),
        auto_class="AutoModelForSequenceClassification",
        route="remote-code",
    )
    assert proof.passed, proof
    assert proof.measured == 0


@pytest.mark.parametrize("offset", [1, 2, 10])
def test_where_weights_lie_in_memory_changes_no_proof(saved, offset):
    """Matrix products may round otherwise at other addresses."""
    directory, _logits, model = saved
    model = deepcopy(model)
    for parameter in model.parameters():
        room = torch.empty(parameter.numel() + 16)[offset : offset + parameter.numel()]
        parameter.data = room.view(parameter.shape).copy_(parameter.data)
    assert any(parameter.data_ptr() % 64 for parameter in model.parameters())
    proof = reload_is_identical(
        model,
        directory,
        inputs={name: value[:1] for name, value in token_inputs().items()},
        auto_class="AutoModelForSequenceClassification",
        route="remote-code",
    )
    assert proof.passed, proof
    assert not any(parameter.data_ptr() % 64 for parameter in model.parameters())


WHERE = """
from torch import nn, tensor
from transformers import PreTrainedConfig, PreTrainedModel
class WhereConfig(PreTrainedConfig):
    model_type = "where"
class Where(PreTrainedModel):
    config_class = WhereConfig
    def __init__(self, config):
        super().__init__(config)
        self.one, self.two = nn.Linear(3, 5), nn.Linear(7, 1)
        self.post_init()
    def forward(self, numbers):
        return (tensor([float(one.data_ptr() % 64) for one in [*self.parameters(), numbers]]),)
"""


def test_a_fresh_process_runs_no_weights_where_the_file_has_put_them(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    names = {"AutoConfig": "where.WhereConfig", "AutoModel": "where.Where"}
    (tmp_path / "where.py").write_text(WHERE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "where", "auto_map": names}))
    weights = {"one.weight": torch.ones(5, 3), "two.weight": torch.ones(1, 7)}
    biases = {"one.bias": torch.ones(5), "two.bias": torch.ones(1)}
    save_file({**weights, **biases}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    job = {
        "directory": str(tmp_path),
        "auto_class": "AutoModel",
        "trust_remote_code": True,
        "threads": 1,
        "device_map": {"": "cpu"},
        "attn_implementation": None,
    }
    complaints, places = load_afresh(job, {"numbers": torch.ones(3)}, ids={})
    assert not complaints
    assert places.tolist() == [0.0] * 5


def test_the_reload_proof_can_fail(saved, copy):
    """Other weights, a missing tensor, and a missing file are each noticed."""
    model = build("bert", seed=1)
    hp.prune(model, {"L0": [0, 1, 2, 3, 4, 5], "L1": [2], "L2": [0, 5]})
    arguments = {"inputs": token_inputs(), "auto_class": "AutoModelForSequenceClassification"}
    wrong = reload_is_identical(model, copy, **arguments, route="remote-code")
    assert not wrong.passed
    assert wrong.measured > 0
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors.pop("classifier.bias")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    incomplete = reload_is_identical(saved[2], copy, **arguments, route="remote-code")
    assert not incomplete.passed
    assert "missing_keys: classifier.bias" in incomplete.detail
    (copy / "modeling_headprune.py").unlink()
    gone = reload_is_identical(saved[2], copy, **arguments, route="remote-code")
    assert not gone.passed
    assert "loading failed" in gone.detail


def test_stock_classes_refuse_a_pruned_directory_loudly(saved):
    with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
        transformers.BertForSequenceClassification.from_pretrained(saved[0])


def test_the_file_beside_the_weights_needs_nothing_of_ours(saved):
    text = (saved[0] / "modeling_headprune.py").read_text()
    assert "import headprune" not in text
    assert "from headprune" not in text
    check = (
        "import sys; sys.modules['headprune'] = None; sys.path.insert(0, sys.argv[1]); import modeling_headprune as m; "
        "print(m.HeadPrunedBertModel.__mro__[2].__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(saved[0])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "BertModel"


def test_only_data_is_saved(saved, tokenizer, tmp_path):
    # A directory of its own: Python leaves compiled files where other tests load with remote code.
    hp.save(saved[2], tmp_path / "own", tokenizer=tokenizer)
    names = {path.suffix for path in (tmp_path / "own").rglob("*") if path.is_file()}
    assert names <= {".safetensors", ".json", ".py", ".txt", ".jinja"}
    config = json.loads((saved[0] / "config.json").read_text())
    assert "per_layer_config" not in config
    assert config["model_type"] == "bert"
    assert config["headprune"]["removed"][-1] == "L2.H5"


def test_pruned_models_can_be_trained_and_keep_their_dtype(saved, tmp_path):
    model = hp.load(saved[0], device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model = hp.load(saved[0], device="cpu").train()
    model(**token_inputs(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert model.bert.encoder.layer[1].attention.self.query.weight.grad.abs().sum() > 0


def test_loading_as_another_task_names_what_is_missing(saved):
    with pytest.raises(ModelError, match=r"no cls\.predictions") as caught:
        hp.load(saved[0], auto_class="AutoModelForMaskedLM")
    assert "`task=similarity`" in caught.value.hint


def test_every_flipped_byte_is_noticed(saved, copy):
    rng = random.Random(0)
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "modeling_headprune.py",
        "manifest.json",
    ):
        path = copy / name
        good = path.read_bytes()
        for _ in range(40):
            place = rng.randrange(len(good))
            flipped = bytes([good[place] ^ (1 << rng.randrange(8))])
            path.write_bytes(good[:place] + flipped + good[place + 1 :])
            try:
                check_manifest(copy)
            except CheckpointError:
                continue
            # Only the manifest's own white space may change without a word.
            assert name == "manifest.json"
            assert good[place : place + 1].isspace() or flipped.isspace()
        path.write_bytes(good)
    check_manifest(copy)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused_by_name(saved, copy, share):
    path = copy / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[: int(len(good) * share)])
    with pytest.raises(ModelError):
        read_header(path)
    with pytest.raises(HeadpruneError, match=r"model\.safetensors") as caught:
        hp.load(copy)
    assert str(path) in caught.value.where


def test_a_missing_file_is_refused_by_name(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        hp.load(copy)


def test_pickles_are_refused(tmp_path):
    directory = tmp_path / "pickled"
    build("bert").config.save_pretrained(directory)
    (directory / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="only pickled weights"):
        hp.load(directory)


def test_an_unpruned_model_is_saved_as_it_was(tmp_path):
    model = build("llama")
    assert hp.save(model, tmp_path / "out") == "stock"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "headprune" not in config
    assert "auto_map" not in config


def test_a_checkpoint_in_shards_loads_again(tmp_path):
    """Weights in more than one file, as large models have them."""
    model = build("gpt2", n_embd=48)
    hp.prune(model, ["L0.H0", "L2.H3"])
    hp.save(model, tmp_path / "one")
    again = hp.load(tmp_path / "one", device="cpu")
    again.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    many = hp.load(tmp_path / "many", device="cpu")
    with torch.no_grad():
        assert torch.equal(many(**token_inputs())[0], model(**token_inputs())[0])


def test_tied_weights_stay_tied(tmp_path):
    model = build("llama", tie_word_embeddings=True)
    hp.prune(model, {"L0": [0, 1]})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    hp.save(model, tmp_path / "out")
    again = hp.load(tmp_path / "out", device="cpu")
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize("sharded", [False, True])
def test_what_the_hub_download_fetches_loads_and_no_other_weights_are_fetched(
    saved, tmp_path, monkeypatch, sharded
):
    from huggingface_hub.utils import filter_repo_objects

    hub, cache = tmp_path / "hub", tmp_path / "cache" / ("a" * 40)
    shutil.copytree(saved[0], hub)
    whole = hub / "model.safetensors"
    if sharded:
        names = dict.fromkeys(load_file(whole), "model-00001-of-00001.safetensors")
        whole.with_name("model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": names})
        )
        whole = whole.rename(hub / "model-00001-of-00001.safetensors")
    (hub / "onnx").mkdir()
    for other in ("consolidated.safetensors", "onnx/model.safetensors", "model-00002.safetensors"):
        (hub / other).write_bytes(b"another format")
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append(revision)
        paths = (path for path in hub.rglob("*") if path.is_file())
        names = (path.relative_to(hub).as_posix() for path in paths)
        for path in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / path, cache / path)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    source = find("somebody/model", revision="main")
    assert asked == ["main", "a" * 40], "files of one commit"
    assert [path.name for path in cache.rglob("*.safetensors")] == [whole.name]
    assert source.weight_files == (cache / whole.name,)
    if not sharded:
        assert hp.load(cache, device="cpu").config.headprune["removed"]


def test_records_may_be_absent_but_not_damaged(copy):
    from headprune.models.manifest import write_manifest

    (copy / "scores.json").write_text("{}")
    write_manifest(copy)
    (copy / "scores.json").write_text("{ }")
    with pytest.raises(CheckpointError, match=r"scores\.json"):
        check_manifest(copy)
    (copy / "scores.json").unlink()
    check_manifest(copy)


def test_the_fingerprint_sees_a_change_anywhere():
    from headprune.placement import fingerprint

    model = build("bert")
    before = fingerprint(model)
    assert before == fingerprint(build("bert"))
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight[:, 8:16] *= 3
    assert fingerprint(model) != before
