"""`inspect` counts what a file stores, also where a config ties it."""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

VOCABULARY, WIDTH = 96, 32


def test_weights_that_a_file_stores_apart_are_counted(run_here, command_line):
    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, num_heads=4, num_layers=2, d_ff=40
    )
    T5ForConditionalGeneration(config).save_pretrained("m")
    weights = load_file("m/model.safetensors")

    def counted(**more):
        save_file({**weights, **more}, "m/model.safetensors", metadata={"format": "pt"})
        code, out, err = command_line("inspect", "m", "--json")
        assert code == 0, err
        return json.loads(out)["parameters"]

    tied = counted()
    assert tied == sum(tensor.numel() for tensor in weights.values())
    assert counted(**{"lm_head.weight": weights["shared.weight"].clone()}) == tied
    assert counted(**{"lm_head.weight": torch.ones(VOCABULARY, WIDTH)}) == tied + VOCABULARY * WIDTH
    (run_here / "m" / "model.safetensors").unlink()
    assert json.loads(command_line("inspect", "m", "--json")[1])["parameters"] == tied
