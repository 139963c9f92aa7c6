"""From file to file gives what memory gives, bit for bit, and no more than one tensor is ever held."""

import json
import shutil

import pytest
import torch
import transformers
from families import build, token_inputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import headprune as hp
from headprune.config import Settings
from headprune.errors import ModelError, ProofError
from headprune.inspection import inspect
from headprune.models.find import find
from headprune.models.load import load_shapes
from headprune.models.save import write_model
from headprune.models.stream import differing, find_cuts, shards, stored_tensors
from headprune.placement import available_memory
from headprune.surgery.cut import cut
from headprune.verify import files_are_exact, numbers_add_up
from headprune.workflows.stream import prune_streamed


class Quiet:
    """Remembers what was said."""

    def __init__(self):
        self.said = []

    def notify(self, text):
        self.said.append(text)

    def track(self, items, description):
        yield from items


@pytest.fixture
def progress():
    return Quiet()


@pytest.fixture
def no_child(monkeypatch):
    """Leave out the fresh process, which takes seconds, where another test has it."""
    monkeypatch.setattr("headprune.verify.load_afresh", lambda job, ids: ([], None))


def saved(model, directory, *, size="15KB"):
    model.save_pretrained(directory, max_shard_size=size)
    return directory


def written(model, directory):
    """Write a model as ``hp.save`` does, which also proves it."""
    directory.mkdir()
    return write_model(model, directory, anatomy=hp.inspect(model))


def scored(model, place, *, method="random"):
    scores = hp.score(model, [token_inputs()], loss=lambda outputs, batch: None, method=method)
    path = place / "scores.json"
    path.write_text(scores.to_json())
    return path


def stream(source, place, progress, **settings):
    asked = Settings.of(
        **{
            "model": str(source),
            "scores": str(place / "scores.json"),
            "out": str(place / "out"),
            "keep": 0.5,
            **settings,
        }
    )
    return prune_streamed(asked, progress=progress, show=lambda scores, plan: None)


def tensors(directory):
    found = {}
    for path in shards(directory):
        found |= load_file(path)
    return found


def same_bits(ones, others):
    assert set(ones) == set(others)
    for name, one in ones.items():
        other = others[name]
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        assert torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)), name


def output(directory):
    with torch.no_grad():
        return hp.load(directory, device="cpu")(**token_inputs())[0]


FP32, BF16 = torch.float32, torch.bfloat16
CASES = {
    "bert": ("bert", BF16, {}, {}),
    "bert without a layer's heads": ("bert", FP32, {}, {"min_heads": 0, "keep": 0.2}),
    "gpt2": ("gpt2", BF16, {}, {}),
    "llama": ("llama", BF16, {}, {}),
    "llama, tied": ("llama", FP32, {"tie_word_embeddings": True}, {}),
    "llama, padded groups": ("llama", FP32, {}, {"gqa": "pad", "keep": 0.7}),
    "llama, as a stock model": ("llama", BF16, {}, {"uniform": True, "keep": 0.75}),
    "qwen3": ("qwen3", FP32, {}, {"gqa": "even"}),
}


@pytest.mark.parametrize("name", CASES)
def test_streaming_gives_what_memory_gives(name, tmp_path, progress, request):
    if CASES[name][1] == FP32:
        request.getfixturevalue("no_child")
    family, dtype, config, settings = CASES[name]
    source = saved(build(family, **config).to(dtype), tmp_path / "source")
    assert len(shards(source)) >= 3
    model = hp.load(source, device="cpu")
    scored(model, tmp_path)
    results = stream(source, tmp_path, progress, **settings)
    assert results.streamed
    assert all(proof.passed for proof in results.proofs)
    assert len(shards(tmp_path / "out")) == len(shards(source))

    plan = hp.PruningPlan.model_validate_json((tmp_path / "out" / "plan.json").read_bytes())
    hp.prune(model, plan)
    route = written(model, tmp_path / "memory")
    assert results.loads_with == route
    assert results.parameters[1] == sum(p.numel() for p in model.parameters())
    same_bits(tensors(tmp_path / "out"), tensors(tmp_path / "memory"))
    configs = [
        json.loads((tmp_path / side / "config.json").read_text()) for side in ("out", "memory")
    ]
    for config in configs:
        config["headprune"].pop("source", None)
    assert configs[0] == configs[1]
    assert torch.equal(output(tmp_path / "out"), output(tmp_path / "memory"))
    assert hp.load(tmp_path / "out", device="cpu").dtype == dtype


@pytest.mark.usefixtures("no_child")
def test_a_pruned_model_is_streamed_again(tmp_path, progress):
    source = tmp_path / "source"
    model = build("bert")
    hp.prune(model, {"L0": [0, 1, 2, 3, 4, 5], "L1": [2]})
    written(model, source)
    scored(model, tmp_path)
    stream(source, tmp_path, progress)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    hp.prune(model, plan["remove"])
    written(model, tmp_path / "memory")
    same_bits(tensors(tmp_path / "out"), tensors(tmp_path / "memory"))
    assert torch.equal(output(tmp_path / "out"), output(tmp_path / "memory"))


def test_names_without_the_base_model_s_prefix_are_found(tmp_path, progress):
    """The gpt2 everybody has: saved as a GPT2Model with buffers that nobody reads, loaded with a head."""
    model = build("gpt2")
    source = saved(model.transformer, tmp_path / "source")
    for path in shards(source)[:1]:
        save_file(
            {**load_file(path), "h.0.attn.bias": torch.ones(1, 1, 4, 4)},
            path,
            metadata={"format": "pt"},
        )
    index = source / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["h.0.attn.bias"] = shards(source)[0].name
    index.write_text(json.dumps(places))
    config = source / "config.json"
    config.write_text(config.read_text().replace('"GPT2Model"', '"GPT2LMHeadModel"'))
    scored(model, tmp_path)
    assert stream(source, tmp_path, progress).streamed
    hp.prune(model, [*json.loads((tmp_path / "out" / "results.json").read_text())["removed"]])
    with torch.no_grad():
        assert torch.equal(output(tmp_path / "out"), model(**token_inputs())[0])
    assert set(tensors(tmp_path / "out")) == set(tensors(source))


def vision():
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=16,
        patch_size=8,
        initializer_range=0.4,
    )
    return transformers.ViTForImageClassification(config).eval()


def experts():
    config = transformers.MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        num_local_experts=2,
        initializer_range=0.4,
    )
    return transformers.MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("make", [vision, experts])
def test_names_that_differ_on_disk_stay_as_they_are(make, tmp_path, progress):
    """ViT's attentions are called otherwise in memory; Mixtral's experts lie there in one tensor."""
    model = make()
    source = saved(model, tmp_path / "source")
    if make is experts or hasattr(
        model.vit, "layers"
    ):  # older transformers have ViT's names of the disk
        assert set(tensors(source)) != set(model.state_dict())
    scored(model, tmp_path)
    results = stream(source, tmp_path, progress)
    assert results.streamed
    assert any("isn't checked" in text for text in progress.said) == (make is experts)
    assert set(tensors(tmp_path / "out")) == set(tensors(source))
    hp.prune(model, [*results.removed])
    again = hp.load(tmp_path / "out", device="cpu")
    same_bits(again.state_dict(), model.state_dict())


def test_a_file_whose_names_say_too_little_is_loaded(tmp_path, progress, monkeypatch):
    model = build("llama")
    source = saved(model, tmp_path / "source")
    scored(model, tmp_path)
    monkeypatch.setattr("headprune.models.stream.names_in_memory", lambda model, names: {})
    results = stream(source, tmp_path, progress)
    assert not results.streamed
    assert any("loading the whole model: " in text for text in progress.said)
    assert [proof.passed for proof in results.proofs] == [True, True]
    hp.prune(model, [*results.removed])
    with torch.no_grad():
        assert torch.equal(output(tmp_path / "out"), model(**token_inputs())[0])


@pytest.mark.usefixtures("no_child")
def test_only_what_is_cut_is_read_as_tensors(tmp_path, progress, monkeypatch):
    from headprune.models import stream as module
    from headprune.untrusted.weights import Stored

    model = build("llama")
    source = saved(model, tmp_path / "source")
    path = scored(model, tmp_path)
    scores = json.loads(path.read_text())
    del scores["model"]["fingerprint"], scores["sha256"]
    path.write_text(json.dumps(scores))
    read = []
    real = Stored.read
    monkeypatch.setattr(Stored, "read", lambda self: (read.append(self.name), real(self))[1])
    assert module.Stored is Stored
    stream(source, tmp_path, progress)
    assert read
    assert all("self_attn" in name for name in read)


@pytest.mark.usefixtures("no_child")
def test_the_proofs_can_fail(tmp_path, progress):
    model = build("llama")
    source = saved(model, tmp_path / "source")
    scored(model, tmp_path)
    removed = stream(source, tmp_path, progress).removed
    out = tmp_path / "out"
    empty, _complaints = load_shapes(find(str(source)))
    before = inspect(empty)
    smaller, _complaints = load_shapes(find(str(source)))
    after = cut(smaller, before, remove=[hp.HeadId.parse(name) for name in removed])
    cuts = find_cuts(empty, stored_tensors(source), before=before, after=after)
    assert files_are_exact(source, out, cuts=cuts).passed
    for name in ("model.embed_tokens.weight", cuts[0].name, cuts[-1].name):
        path = next(p for p in shards(out) if name in load_file(p))
        good = path.read_bytes()
        place = next(stored for stored in stored_tensors(out) if stored.name == name)
        bad = bytearray(good)
        bad[place.stop - 1] ^= 1
        path.write_bytes(bytes(bad))
        proof = files_are_exact(source, out, cuts=cuts)
        assert (proof.passed, proof.measured, proof.detail) == (False, 1, name)
        path.write_bytes(good)
    assert not numbers_add_up(before=10, after=6, removed=4, on_disk=7, expected=6).passed
    assert not numbers_add_up(before=10, after=7, removed=4, on_disk=6, expected=6).passed


def test_every_flipped_bit_is_a_difference(tmp_path):
    """NaN is not equal to itself, and -0 equals 0: bits are compared."""
    tricky = {"a": torch.tensor([float("nan"), 0.0]), "b": torch.zeros(0, 3)}
    save_file(tricky, tmp_path / "model.safetensors")
    (tmp_path / "other").mkdir()
    save_file(
        {**tricky, "a": torch.tensor([float("nan"), -0.0])},
        tmp_path / "other" / "model.safetensors",
    )
    ones = stored_tensors(tmp_path)
    assert differing(ones, {one.name: one for one in ones}) == []
    others = {one.name: one for one in stored_tensors(tmp_path / "other")}
    assert differing(ones, others) == ["a"]
    assert differing(ones, {"a": ones[0]}) == ["b"]


@pytest.mark.usefixtures("no_child")
def test_what_is_written_is_safetensors(tmp_path, progress):
    source = saved(build("bert").to(torch.bfloat16), tmp_path / "source")
    scored(hp.load(source, device="cpu"), tmp_path)
    stream(source, tmp_path, progress, min_heads=0, keep=0.2)
    for path in shards(tmp_path / "out"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = tensors(tmp_path / "out")
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())


def test_a_shard_that_is_missing_is_named(tmp_path, progress):
    model = build("llama")
    source = saved(model, tmp_path / "source")
    gone = shards(source)[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        shards(source)
    scored(model, tmp_path)
    with pytest.raises(ModelError):
        stream(source, tmp_path, progress)
    assert not (tmp_path / "out").exists()


def test_available_memory_is_a_number_of_this_machine():
    free = available_memory()
    assert free is None or free > 0


@pytest.fixture
def headprune(run_here, tokenizer, command_line):
    """Return a function that runs the command line beside a model and its scores: (exit code, stdout, stderr)."""
    model = build("llama")
    saved(model, run_here / "model")
    tokenizer.save_pretrained(run_here / "model")
    scored(model, run_here, method="magnitude")
    return command_line


PRUNE = ("prune", "model", "--scores", "scores.json", "--keep", "0.5", "--out", "out")


def test_the_command_line_streams(headprune, run_here):
    code, out, err = headprune(*PRUNE, "--stream", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["streamed"] is True
    assert made["heads"] == [24, 12]
    assert "quality was not measured: headprune eval out" in err
    names = {path.name for path in (run_here / "out").iterdir()}
    assert names >= {
        *("plan.json", "scores.json", "results.json", "manifest.json", "README.md"),
        *("headprune.yaml", "tokenizer.json", "generation_config.json"),
    }
    card = (run_here / "out" / "README.md").read_text()
    assert "quality was not measured" in card
    assert "12 attention heads fewer" in card
    assert "files are exact: yes" in card
    code, out, err = headprune(*PRUNE, "--stream", "--overwrite")
    assert code == 0, err
    assert "✓ files are exact" in out
    assert "headprune.load" in out


@pytest.mark.parametrize("command", ["prune", "run"])
def test_weights_larger_than_the_memory_are_streamed_by_every_command(
    command, headprune, run_here, monkeypatch
):
    monkeypatch.setattr("headprune.workflows.stream.available_memory", lambda: 1000)
    settings = {"model": "model", "scores": "scores.json", "keep": 0.5, "out": "out"}
    (run_here / "recipe.yaml").write_text(json.dumps(settings))
    words = ("run", "recipe.yaml") if command == "run" else ("prune", "--config", "recipe.yaml")
    code, out, err = headprune(*words, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document.get("results", document)["streamed"] is True


def test_a_dry_run_of_a_stream_reads_no_data_and_writes_nothing(headprune, run_here):
    code, out, err = headprune(*PRUNE, "--stream", "--dry-run", "--json")
    assert code == 0, err
    assert len(json.loads(out)["remove"]) == 12
    assert not (run_here / "out").exists()


@pytest.mark.usefixtures("no_child")
def test_what_does_not_fit_into_memory_is_streamed_unasked(headprune, monkeypatch):
    monkeypatch.setattr("headprune.workflows.stream.available_memory", lambda: 1000)
    code, out, err = headprune(*PRUNE, "--json")
    assert code == 0, err
    assert "pruning from file to file, as --stream does" in err
    assert json.loads(out)["streamed"] is True


def test_what_fits_is_not_streamed_unasked(headprune):
    code, _out, err = headprune(*PRUNE)
    assert code == 2
    assert "no data is named" in err


def test_a_proof_that_says_no_is_exit_1_and_leaves_nothing(headprune, run_here, monkeypatch):
    monkeypatch.setattr(
        "headprune.models.stream.Cut.apply",
        lambda self, tensor: torch.zeros(self.shape, dtype=tensor.dtype),
    )
    code, _out, err = headprune(*PRUNE, "--stream")
    assert code == 1
    assert "'files are exact' failed" in err
    assert not [path for path in run_here.iterdir() if "out" in path.name]


def test_scores_of_another_model_are_refused(headprune, run_here):
    other = build("llama", seed=1)
    shutil.rmtree(run_here / "model")
    saved(other, run_here / "model")
    code, _out, err = headprune(*PRUNE, "--stream")
    assert code == 2
    assert "of another model" in err
    assert not (run_here / "out").exists()


@pytest.mark.usefixtures("no_child")
def test_scores_of_the_model_in_another_dtype_are_its_own(headprune, run_here):
    words = ("score", "model", "--method", "magnitude", "--dtype", "bfloat16", "--run-dir", "run")
    assert headprune(*words)[0] == 0
    code, _out, err = headprune(*PRUNE[:2], "--stream", "--scores", "run/scores.json", *PRUNE[4:])
    assert code == 0, err
    assert tensors(run_here / "out")["lm_head.weight"].dtype == torch.float32


def test_proofs_of_a_changed_plan_stay_with_their_error(tmp_path, progress, monkeypatch):
    model = build("llama")
    source = saved(model, tmp_path / "source")
    scored(model, tmp_path)
    monkeypatch.setattr("headprune.workflows.stream._OnDisk.parameters_removed", 1)
    with pytest.raises(ProofError, match="parameters add up"):
        stream(source, tmp_path, progress)
    assert not (tmp_path / "out").exists()
