"""Healing on a device: a cut model learns from itself as it was, on the GPU, and loads again."""

import json

import pytest
import torch
from families import build, sentences

import headprune as hp


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_command_line_heals_on_the_device(
    family, tmp_path, monkeypatch, tokenizer, command_line, device, on_gpu
):
    if not on_gpu:
        pytest.skip("on the CPU tests/test_heal.py does it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / ".cache"))
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    build(family, **(names if family == "bert" else {})).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [f"{text},{('no', 'yes')[index % 2]}" for index, text in enumerate(sentences(160))]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "prose.txt").write_text("\n".join(sentences(600)))
    data = "rows.csv" if family == "bert" else "prose.txt"
    code, out, err = command_line(
        *("prune", "model", "--data", data, "--keep", "0.5", "--gqa", "group", "--json"),
        *("--num-samples", 32, "--max-length", 16, "--heal", 12, "--device", device),
        *("--out", "out"),
    )
    assert code == 0, err
    found = json.loads(out)
    assert all(proof["passed"] for proof in found["proofs"])
    assert found["heal"]["steps"] == 12
    assert found["heal"]["loss"][1] < found["heal"]["loss"][0]
    assert found["heal"]["share"] > 0
    again = hp.load(tmp_path / "out", device=str(device))
    assert {parameter.device for parameter in again.parameters()} == {torch.device(device)}
