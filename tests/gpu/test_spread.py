"""Weights that wait in CPU memory until their layer runs: counted, read and scored as they are, and never cut."""

import accelerate
import pytest
import torch
import transformers
from families import build, inspected, sentences, token_inputs

import headprune as hp
from gpu.subjects import batches, loss, partly_waiting
from headprune.errors import UnsupportedError
from headprune.placement import count_parameters, describe, fingerprint, is_offloaded, values_of
from headprune.verify import parameters_add_up, reload_is_identical, run


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_waits_elsewhere_is_counted_and_read(family, device, tmp_path):
    settings = {"tie_word_embeddings": True} if family == "llama" else {}
    whole, model = build(family, **settings), build(family, **settings)
    hp.save(whole, tmp_path / "out")
    spread = accelerate.cpu_offload(model, execution_device=device)
    assert is_offloaded(spread)
    assert not is_offloaded(whole)
    assert count_parameters(spread) == count_parameters(whole)
    assert fingerprint(spread) == fingerprint(whole)
    for (name, value), (other, expected) in zip(values_of(spread), values_of(whole), strict=True):
        assert name == other
        assert torch.equal(value.cpu(), expected)
    proof = parameters_add_up(
        before=count_parameters(whole), removed=0, directory=tmp_path / "out", model=spread
    )
    assert proof.passed, proof.detail
    assert str(device) in describe(spread)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_spread_model_is_proven_to_load_again(family, device, tmp_path):
    route = hp.save(build(family), tmp_path / "out")
    auto_class = {"bert": "AutoModelForSequenceClassification", "llama": "AutoModelForCausalLM"}
    load = getattr(transformers, auto_class[family]).from_pretrained
    parts = [
        name for name, _ in getattr(build(family), build(family).base_model_prefix).named_children()
    ]
    prefix = build(family).base_model_prefix
    head = {"bert": "classifier", "llama": "lm_head"}[family]
    places = dict.fromkeys([*(f"{prefix}.{name}" for name in parts), head], str(device))
    places[f"{prefix}.{parts[0]}"] = "disk"
    places[f"{prefix}.{parts[1]}"] = "cpu"
    spread = load(tmp_path / "out", device_map=places, offload_folder=tmp_path / "disk").eval()
    assert is_offloaded(spread)
    proof = reload_is_identical(
        spread, tmp_path / "out", inputs=token_inputs(), auto_class=auto_class[family], route=route
    )
    assert proof.passed, proof.detail


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", ["gradient", "ablation", "unique"])
def test_scores_are_those_of_the_whole_model(method, family, device):
    whole = build(family)
    anatomy = inspected(whole)
    expected = hp.score(whole, batches(), loss=loss, method=method, anatomy=anatomy)
    spread = partly_waiting(build(family), device)
    found = hp.score(spread, batches(), loss=loss, method=method, anatomy=anatomy)
    scale = max(map(abs, expected.values))
    assert found.values == pytest.approx(expected.values, abs=1e-4 * scale)
    assert found.model["fingerprint"] == expected.model["fingerprint"]


def test_a_backward_keeps_nothing_on_the_device_where_weights_wait_elsewhere(device):
    """A graph holds every weight that it multiplied by: kept where they ran, all weights would lie there at once."""
    anatomy, kept = inspected(build("bert")), []

    def noted(tensor):
        kept.extend([tensor.shape] if tensor.is_floating_point() else [])
        return tensor

    whole, spread = build("bert").to(device), partly_waiting(build("bert"), device)
    for model, expected in ((whole, True), (spread, False)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
            hp.score(model, batches(count=1), loss=loss, method="gradient", anatomy=anatomy)
        assert bool(kept) == expected, "what the graph saves goes to CPU memory instead"


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_cutting_is_refused_and_nothing_is_changed(family, device):
    model = partly_waiting(build(family), device)
    anatomy = inspected(build(family))
    before = run(model, token_inputs())
    with pytest.raises(UnsupportedError, match="wait in CPU memory") as refused:
        hp.prune(model, [str(anatomy.heads[0])], anatomy=anatomy)
    assert "`stream`" in refused.value.hint
    assert torch.equal(run(model, token_inputs()), before)


def test_the_command_line_refuses_to_cut_a_spread_model(
    device, on_gpu, tmp_path, monkeypatch, tokenizer, command_line
):
    """Most of the card is taken, so that part of the model has to wait in CPU memory."""
    if not on_gpu:
        pytest.skip("memory of a GPU is what is short here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / ".cache"))
    large = {"hidden_size": 1024, "intermediate_size": 4096}
    large |= {"num_hidden_layers": 24, "num_attention_heads": 16}
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    build("bert", **large, **names).save_pretrained("model")  # 1.2 GB
    tokenizer.save_pretrained("model")
    rows = [f"{text},{('no', 'yes')[index % 2]}" for index, text in enumerate(sentences(40))]
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    ballast = torch.empty(free - 900_000_000, dtype=torch.uint8, device=device)
    data = ("--data", "data.csv", "--device", "spread")
    code, _out, err = command_line("prune", "model", *data, "--keep", "0.5")
    assert code == 2, err
    assert "--stream" in err
    assert not (tmp_path / "headprune-runs").exists(), "no head was scored"
    code, _out, err = command_line("score", "model", *data, "--method", "gradient")
    assert code == 0, err
    del ballast
