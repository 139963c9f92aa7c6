"""Pruning on a device: cut, saved, loaded again and proven there, with no room for a second copy of the model."""

import json
import time
from contextlib import nullcontext

import pytest
import torch
from families import build, inspected, sentences, token_inputs

import headprune as hp
from gpu.conftest import synchronising
from gpu.subjects import batches
from headprune.batch import as_batches
from headprune.errors import UnprovenError
from headprune.footprint import latency_ms, sizes
from headprune.models.save import write_model
from headprune.placement import moved_away, staged
from headprune.verify import masked_equals_pruned, parameters_add_up, reload_is_identical, run


def _removed(anatomy):
    heads = [site.heads for site in anatomy.sites]
    groups = list(anatomy.sites[0].groups(heads[0]).values())
    return [f"L0.H{head}" for head in groups[0]]


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_cut_saved_and_loaded_again_on_the_device(family, device, tmp_path):
    model = build(family).to(device)
    anatomy = inspected(model)
    inputs = token_inputs()
    before = sum(parameter.numel() for parameter in model.parameters())
    removed = _removed(anatomy)
    with hp.masked(model, removed, anatomy=anatomy):
        masked = run(model, inputs)
    hp.prune(model, removed, anatomy=anatomy)
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert masked_equals_pruned(masked, run(model, inputs), rows=4).passed
    hp.save(model, tmp_path / "out")
    after = sum(parameter.numel() for parameter in model.parameters())
    assert parameters_add_up(
        before=before, removed=before - after, directory=tmp_path / "out", model=model
    ).passed
    again = hp.load(tmp_path / "out", device=str(device))
    assert torch.equal(run(again, inputs), run(model, inputs))


def test_the_command_line_prunes_and_proves_on_the_device(
    tmp_path, monkeypatch, tokenizer, command_line, device
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / ".cache"))
    names = {0: "no", 1: "yes"}
    model = build("bert", id2label=names, label2id={"no": 0, "yes": 1})
    model.save_pretrained("classifier")
    tokenizer.save_pretrained("classifier")
    rows = [f"{text},{('no', 'yes')[index % 2]}" for index, text in enumerate(sentences(40))]
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    code, out, err = command_line(
        *("prune", "classifier", "--data", "data.csv", "--keep", "0.5", "--json"),
        *("--device", device),
    )
    assert code == 0, err
    results = json.loads(out)
    assert [proof["passed"] for proof in results["proofs"]] == [True, True, True]
    assert f"on {device}" in err


def _billion(device):
    """Return a Llama of a billion parameters in half precision: 2 GB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with device:
        return LlamaForCausalLM._from_config(
            LlamaConfig(
                hidden_size=2048, intermediate_size=8192, num_hidden_layers=14,
                num_attention_heads=32, num_key_value_heads=8, vocab_size=32_000,
            ),
            dtype=torch.bfloat16,
        ).eval()  # fmt: skip


def test_the_reload_proof_needs_no_room_for_a_second_copy(device, on_gpu, tmp_path):
    """All of the device's memory is taken but for a third of the model's size (and what a process takes for itself)."""
    if not on_gpu:
        pytest.skip("memory of a GPU is what is short here")
    model = _billion(device)
    anatomy = inspected(model)
    (tmp_path / "out").mkdir()
    route = write_model(model, tmp_path / "out", anatomy=anatomy)
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    run(model, inputs)
    torch.cuda.empty_cache()
    size = sum(parameter.nbytes for parameter in model.parameters())
    for_itself = 1_500_000_000  # context, libraries, workspaces
    free = torch.cuda.mem_get_info(device)[0]
    ballast = torch.empty(free - for_itself - size // 3, dtype=torch.uint8, device=device)
    ask = {"inputs": inputs, "auto_class": "AutoModelForCausalLM", "route": route}
    proof = reload_is_identical(model, tmp_path / "out", **ask)
    assert proof.passed, proof.detail
    assert next(model.parameters()).device == device
    # With the model out of the way there is less than a copy left now, and that is no verdict about the files.
    more = torch.empty(for_itself + size // 4, dtype=torch.uint8, device=device)
    with pytest.raises(UnprovenError, match="memory"):
        reload_is_identical(model, tmp_path / "out", **ask)
    del ballast, more


def test_weights_come_back_to_where_they_were(device, on_gpu):
    if not on_gpu:
        pytest.skip("on the CPU nothing is moved")
    model = build("llama", tie_word_embeddings=True).to(device)
    before = dict(model.named_parameters())
    expected = run(model, token_inputs())
    with moved_away(model):
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert all(after is before[name] for name, after in model.named_parameters())
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert torch.equal(run(model, token_inputs()), expected)


def test_latency_is_what_the_device_takes(device, on_gpu):
    """A host that doesn't wait would measure how long it takes to give the orders."""
    model = build("bert").to(device)

    def linger(*_args):
        torch.cuda._sleep(200_000_000) if on_gpu else time.sleep(0.1)

    model.register_forward_hook(linger)
    (found,) = latency_ms([model], sizes=sizes(batches(rows=8)), seconds=0.2)
    assert 60 < found["batch_1"].ms < 400


def test_staging_doesnt_wait(device, on_gpu):
    tensors = [torch.arange(1000.0), torch.arange(5.0).expand(3, -1), torch.ones(0)]
    with synchronising("error") if on_gpu else nullcontext():
        moved = [staged(tensor, device) for tensor in tensors]
    for tensor, there in zip(tensors, moved, strict=True):
        assert there.device == device
        assert torch.equal(there.cpu(), tensor)


def test_a_batch_whose_rows_share_memory_goes_there(device):
    inputs = {"input_ids": torch.arange(7, 12).expand(3, -1), "labels": torch.ones(3)}
    (batch,) = as_batches([inputs])
    assert torch.equal(batch.to(device).inputs["input_ids"].cpu(), inputs["input_ids"])
