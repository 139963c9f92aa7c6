"""SmolLM2-135M, a real Llama with 9 query heads on 3 key/value heads: cut, saved, reloaded, and still talking."""

import json
import os
import pydoc_data.topics
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

import headprune as hp
from headprune.models.find import find
from headprune.models.load import load_model
from headprune.tasks.batches import InputFormat
from headprune.tasks.rows import Example
from headprune.tasks.task import get_task

pytestmark = pytest.mark.real_model
# Real prose that every Python brings.
PROSE = pydoc_data.topics.topics["exceptions"] + pydoc_data.topics.topics["objects"]


@pytest.fixture(scope="module")
def source():
    return find("demo:smollm2")


@pytest.fixture(scope="module")
def tokenizer(source):
    return AutoTokenizer.from_pretrained(source.directory)


@pytest.fixture(scope="module")
def batches(tokenizer):
    ids = tokenizer(PROSE)["input_ids"]
    examples = [Example(tokens=tuple(ids[start : start + 64])) for start in range(0, 6 * 64, 64)]
    return get_task("causal-lm").to_batches(examples, InputFormat(tokenizer, 64, batch_size=3))


@pytest.fixture(scope="module")
def scores(source, batches):
    model = load_model(source, auto_class="AutoModelForCausalLM", device="cpu")
    return hp.score(model, batches, loss=get_task("causal-lm").loss, method="gradient")


FRESH = """
import json, sys
sys.modules["headprune"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("The capital of France is", return_tensors="pt")
made = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False, use_cache=True)
print(json.dumps({"info": [str(x) for x in info.values() if x], "ids": made[0].tolist(), "text": tokenizer.decode(made[0])}))
"""


@pytest.mark.parametrize("mode", ["group", pytest.param("even", marks=pytest.mark.nightly)])
def test_logits_reload_and_generation(mode, source, tokenizer, batches, scores, tmp_path):
    model = load_model(source, auto_class="AutoModelForCausalLM", device="cpu")
    anatomy = hp.inspect(model)
    plan = hp.plan(scores, hp.Constraints(keep=0.8, gqa=mode), anatomy=anatomy)
    assert (len(anatomy.heads), len(plan.remove)) == (270, 54)
    inputs = batches[0].inputs
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    settings = {"max_new_tokens": 12, "do_sample": False}
    with torch.no_grad():
        with hp.masked(model, plan.remove, anatomy=anatomy):
            masked = model(**inputs).logits
            said = model.generate(**prompt, **settings, use_cache=False)[0].tolist()
        hp.prune(model, plan, anatomy=anatomy)
        assert (model(**inputs).logits - masked).abs().max() <= 1e-4
    assert hp.save(model, tmp_path / "out", tokenizer=tokenizer) == "remote-code"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["info"] == []
    assert found["ids"] == said
    again = hp.load(tmp_path / "out", device="cpu")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_uniform_plan_loads_with_no_extra_file(source, tokenizer, batches, scores, tmp_path):
    """9 heads of 64 on a width of 576: 6 heads keep the divisibility that Llama's config asks for."""
    from transformers import AutoModelForCausalLM

    model = load_model(source, auto_class="AutoModelForCausalLM", device="cpu")
    anatomy = hp.inspect(model)
    plan = hp.plan(scores, hp.Constraints(keep=2 / 3, uniform=True), anatomy=anatomy)
    assert set(plan.kept_per_site.values()) == {6}
    hp.prune(model, plan, anatomy=anatomy)
    assert hp.save(model, tmp_path / "out", tokenizer=tokenizer) == "stock"
    assert not list((tmp_path / "out").glob("*.py"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(plain(**batches[0].inputs).logits, model(**batches[0].inputs).logits)


@pytest.mark.nightly
def test_the_exported_file_is_like_the_one_that_llama_cpp_s_own_converter_made(source, tmp_path):
    from gguf import GGUFReader

    from headprune.demo import SMOLLM2, locate
    from headprune.export.gguf import embedding_rows, export_gguf
    from headprune.export.vocabulary import read_vocabulary

    model = load_model(source, auto_class="AutoModelForCausalLM", device="cpu", dtype="bfloat16")
    words = AutoTokenizer.from_pretrained(source.directory)
    vocabulary = read_vocabulary(words, rows=embedding_rows(model), where="test")
    export_gguf(model, tmp_path / "ours.gguf", vocabulary=vocabulary, name="test")
    ours, theirs = GGUFReader(tmp_path / "ours.gguf"), GGUFReader(locate(SMOLLM2))
    shapes = [{t.name: tuple(t.shape) for t in reader.tensors} for reader in (ours, theirs)]
    assert shapes[0] == shapes[1]
    said = [{n: f.contents() for n, f in r.fields.items()} for r in (ours, theirs)]
    # How the file was made. (transformers, which read the demo's tokenizer from that file, drops the step that splits digits.)
    other = {"general.name", "general.file_type", "tokenizer.ggml.pre", "GGUF.kv_count"}
    for name in said[0].keys() & said[1].keys() - other:
        assert said[0][name] == said[1][name], name
    architecture = {n for n in said[1] if n.startswith(("llama.", "tokenizer."))}
    assert architecture - said[0].keys() == {"tokenizer.ggml.add_space_prefix"}
