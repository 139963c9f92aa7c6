"""Checkpoints that transformers v4 pruned: recognised, loaded, converted."""

import json

import pytest
import torch
import transformers
from families import build, token_inputs

import headprune as hp
from headprune.config import Settings
from headprune.errors import CheckpointError, ModelError
from headprune.models.legacy import pruned_heads
from headprune.models.load import load
from headprune.passes import Progress
from headprune.workflows.convert import convert
from headprune.workflows.inspect import inspect

REMOVED = {"0": [1, 4], "2": [0, 1, 2]}


class Silent:
    """Says nothing."""

    def notify(self, text):
        """Say nothing."""

    def track(self, items, description):
        """Show nothing."""
        return items


def as_v4(model, directory):
    """Write what v4's save_pretrained wrote after prune_heads: small weights, and the heads in the config."""
    hp.prune(model, {f"L{layer}": heads for layer, heads in REMOVED.items()})
    model.save_pretrained(directory)
    path = directory / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("headprune")
    settings["pruned_heads"] = REMOVED
    path.write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
def test_a_checkpoint_pruned_by_v4_loads_and_says_the_same(name, tmp_path):
    model, inputs = as_v4(build(name), tmp_path), token_inputs()
    again = load(tmp_path, device="cpu")
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], model(**inputs)[0])
    left = {str(head) for head in hp.inspect(again).heads}
    assert left.isdisjoint({"L0.H1", "L0.H4", "L2.H0", "L2.H1", "L2.H2"})
    assert len(left) == 3 * 6 - 5


def test_it_is_converted_once_and_then_loads_like_any_other(tmp_path):
    assert isinstance(Silent(), Progress)
    model, inputs = as_v4(build("bert"), tmp_path / "old"), token_inputs()
    recipe = Settings.of(model=str(tmp_path / "old"))
    found = inspect(recipe, progress=Silent())
    assert found.pruned_before["by"] == "transformers v4 (config.pruned_heads)"
    assert found.num_heads == 13
    converted = convert(recipe.replaced(out=str(tmp_path / "new")), progress=Silent())
    assert converted.loads_with == "remote-code"
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["headprune"]["removed"] == ["L0.H1", "L0.H4", "L2.H0", "L2.H1", "L2.H2"]
    again = load(tmp_path / "new", device="cpu")
    assert not pruned_heads(again.config)
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], model(**inputs)[0])
    with pytest.raises(CheckpointError, match="didn't prune this model") as caught:
        convert(
            Settings.of(model=str(tmp_path / "new"), out=str(tmp_path / "x")), progress=Silent()
        )
    assert "headprune pruned it, and it loads as it is" in caught.value.hint


def test_a_conversion_leaves_nothing_behind_that_made_the_checkpoint_work(tmp_path):
    """Pooling by the first token, above all: without its file embeddings would be means, and nobody would be told."""
    old = tmp_path / "old"
    as_v4(build("bert"), old)
    (old / "1_Pooling").mkdir()
    files = {
        "modules.json": json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        ),
        "1_Pooling/config.json": json.dumps(
            {"word_embedding_dimension": 48, "pooling_mode_cls_token": True}
        ),
        "preprocessor_config.json": json.dumps({"size": 3}),
    }  # fmt: skip
    for name, text in files.items():
        (old / name).write_text(text)
    convert(Settings.of(model=str(old), out=str(tmp_path / "new")), progress=Silent())
    for name, text in files.items():
        assert json.loads((tmp_path / "new" / name).read_text()) == json.loads(text), name


def test_heads_that_are_not_there_are_refused(tmp_path):
    as_v4(build("bert"), tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    settings["pruned_heads"] = {"0": [1, 17]}
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="pruned_heads names heads"):
        load(tmp_path, device="cpu")


def pickled(model, directory, *, shards):
    """Write weights as v4 did by default."""
    as_v4(model, directory)
    state = model.state_dict()
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    parts = [names[number::shards] for number in range(shards)]
    files = (
        [f"pytorch_model-{n}.bin" for n in range(shards)] if shards > 1 else ["pytorch_model.bin"]
    )
    for file, part in zip(files, parts, strict=True):
        torch.save({name: state[name] for name in part}, directory / file)  # noqa: TID251 - as v4 did
    if shards > 1:
        weight_map = {name: f for f, part in zip(files, parts, strict=True) for name in part}
        index = directory / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    return model


# Of GPT-2, two names are one tensor: in one file, and in two.
@pytest.mark.parametrize(("name", "shards"), [("bert", 1), ("gpt2", 1), ("gpt2", 3)])
def test_pickled_weights_are_read_after_an_explicit_yes(name, shards, tmp_path):
    model, inputs = pickled(build(name), tmp_path / "old", shards=shards), token_inputs()
    (tmp_path / "old" / "preprocessor_config.json").write_text("{}")
    recipe = Settings.of(model=str(tmp_path / "old"))
    with pytest.raises(ModelError, match="pickled") as caught:
        convert(recipe.replaced(out=str(tmp_path / "new")), progress=Silent())
    assert "--allow-pickle" in caught.value.hint
    said = recipe.replaced(allow_pickle=True)
    assert (
        convert(said.replaced(out=str(tmp_path / "new")), progress=Silent()).loads_with
        == "remote-code"
    )
    assert (tmp_path / "new" / "preprocessor_config.json").is_file()
    assert not list((tmp_path / "new").glob("*.bin"))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "new", device="cpu")(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("shards", [1, 2])
def test_a_pickle_that_lies_elsewhere_is_not_read(shards, tmp_path):
    pickled(build("bert"), tmp_path / "old", shards=shards)
    file = sorted((tmp_path / "old").glob("*.bin"))[-1]
    file.rename(tmp_path / "elsewhere.bin")
    file.symlink_to(tmp_path / "elsewhere.bin")
    recipe = Settings.of(model=str(tmp_path / "old"), allow_pickle=True)
    with pytest.raises(ModelError, match="outside of the model's directory"):
        convert(recipe.replaced(out=str(tmp_path / "new")), progress=Silent())
    assert not (tmp_path / "new").exists()


class Runs:
    """What a pickle could do."""

    def __reduce__(self):
        """Make a file when it is read."""
        return (open, ("was-run", "w"))


def test_a_pickle_that_wants_more_than_tensors_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled(build("bert"), tmp_path / "old", shards=1)
    torch.save({"weight": Runs()}, tmp_path / "old" / "pytorch_model.bin")  # noqa: TID251 - a hostile file
    recipe = Settings.of(model=str(tmp_path / "old"), allow_pickle=True)
    with pytest.raises(ModelError, match="something else than tensors"):
        convert(recipe.replaced(out=str(tmp_path / "new")), progress=Silent())
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("nested", [True, False])
def test_encoder_decoders_of_v4_are_refused_by_name(nested, tmp_path):
    tiny = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    one = transformers.BertConfig(**tiny, intermediate_size=16)
    if nested:
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(one, one)
        model = transformers.EncoderDecoderModel._from_config(config)
    else:
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 96}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        feeds = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        model = transformers.BartModel._from_config(
            transformers.BartConfig(**sizes, **heads, **feeds)
        )
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    (settings["encoder"] if nested else settings)["pruned_heads"] = {"0": [1]}
    path.write_text(json.dumps(settings))
    with pytest.raises(
        ModelError, match="transformers v4 pruned the encoder|doesn't say which heads"
    ):
        load(tmp_path, device="cpu")


def test_a_config_alone_is_enough_to_look(tmp_path):
    config = build("llama").config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    found = inspect(Settings.of(model=str(tmp_path), keep=0.5), progress=Silent())
    assert found.num_heads == 24
    assert found.parameters == sum(p.numel() for p in build("llama").parameters())
    assert found.saves["heads"] == 12
    assert found.loads_with == {"uneven": "remote-code", "uniform": "stock"}
    model = build("llama")
    gone = [f"L{layer}.H{head}" for layer in range(3) for head in range(4)]
    hp.prune(model, gone)
    smaller = sum(p.numel() for p in model.parameters())
    assert found.saves["parameters"] == found.parameters - smaller
    # Two of four key/value heads of width 4 in three layers, keys and values, four bytes each.
    assert found.saves["kv_cache_bytes_per_token"] == 2 * 4 * 3 * 2 * 4


def test_a_config_that_names_no_class_is_looked_at_as_its_base_model(tmp_path):
    build("llama").config.save_pretrained(tmp_path)
    found = inspect(Settings.of(model=str(tmp_path)), progress=Silent())
    assert (found.architecture, found.num_heads) == ("LlamaModel", 24)
