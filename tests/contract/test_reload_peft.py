"""Adapters (LoRA, by PEFT) fit the cut projections, whether these run natively or spread their activations."""

import peft
import pytest
import torch
from law import distance, outputs
from reload_cases import each, identical

# PEFT still asks for what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ADAPTED = ("bert", "llama", "gpt2", "whisper", "llama-stock", "t5", "bloom", "olmo2", "mpnet")


def adapter_config(case):
    """Return LoRA on all projections of every attention that has heads."""
    targets = {
        item.parameter.removesuffix(".weight")
        for site in case.anatomy.sites
        if site.heads
        for item in site.slices
        if item.side is not None and item.parameter.endswith(".weight")
    }
    return peft.LoraConfig(
        r=2, target_modules=sorted(targets), fan_in_fan_out=case.model.config.model_type == "gpt2"
    )


@each(*ADAPTED)
def test_adapters_are_trained_saved_loaded_and_merged(case, tmp_path):
    model = peft.get_peft_model(case.load(), adapter_config(case))
    assert identical(outputs(model, case.inputs), outputs(case.model, case.inputs))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(2):  # in the first step, only B has a gradient
        optimiser.zero_grad()
        model(**case.inputs)[0].float().pow(2).mean().backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
    expected = outputs(model, case.inputs)
    assert distance(expected, outputs(case.model, case.inputs)) > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    for by in ("transformers", "headprune"):
        again = peft.PeftModel.from_pretrained(case.load(by), tmp_path / "adapter").eval()
        assert identical(outputs(again, case.inputs), expected)
        merged = again.merge_and_unload()
        assert distance(outputs(merged, case.inputs), expected) <= 1e-4
        case.save(merged, tmp_path / by)
        assert identical(
            outputs(case.load(by, tmp_path / by), case.inputs), outputs(merged, case.inputs)
        )
