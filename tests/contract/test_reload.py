"""What is saved loads: by either route, as any class of the family, in any dtype, on any device map, from any number of files."""

import copy
import shutil

import pytest
import torch
import transformers
from families import toy_tokenizer, written
from law import outputs
from reload_cases import CASES, STOCK, each, identical

import headprune as hp
from headprune.anatomy.clone import stock_class
from headprune.errors import UnsupportedError
from headprune.models.classes import auto_classes

ROUTES = ("transformers", "headprune")
REMOTE = each(*(name for name in CASES if name not in STOCK))


@each()
def test_both_routes_give_the_same_bits(case):
    for by in ROUTES:
        again = case.load(by)
        assert identical(outputs(again, case.inputs), outputs(case.model, case.inputs)), by


@each()
def test_masking_moved_the_model(case):
    """Else all of this file would pass with the whole model."""
    whole, pruned = outputs(case.whole, case.inputs), outputs(case.model, case.inputs)
    assert (whole[0] - pruned[0]).abs().max() > 1e-2


@each()
def test_every_class_of_the_family_gets_the_pruned_attention(case, tmp_path):
    """Each finds and misses what it would of the whole model, and what it finds runs as the pruned model does."""
    folders = [tmp_path / name for name in ("whole", "whole-base", "base")]
    case.whole.save_pretrained(folders[0])
    case.whole.base_model.save_pretrained(folders[1])
    written(case.model.base_model, folders[2])
    agreeing = set()
    for whole, pruned in ((folders[0], case.directory), (folders[1], folders[2])):
        for auto in auto_classes(type(case.whole.config)):
            kind = getattr(transformers, auto)
            stock, expected = kind.from_pretrained(whole, output_loading_info=True)
            model, info = kind.from_pretrained(
                pruned, output_loading_info=True, trust_remote_code=case.route == "remote-code"
            )
            assert info == expected, auto
            assert case.route == "stock" or stock_class(model) is type(stock)
            # Some classes find nothing of their own family's weights, pruned or not: they call the base by another name.
            if agree(stock, case.whole, case.inputs):
                assert agree(model, case.model, case.inputs), auto
                agreeing.add(auto)
    assert agreeing >= {"AutoModel", case.auto}


def agree(model, reference, inputs):
    """Whether what two models share below their heads puts out the same: all of it, or the encoder, or the decoder."""
    base, wanted = model.eval().base_model, reference.base_model
    if stock_class(base) is stock_class(wanted):
        return torch.equal(outputs(base, inputs)[0], outputs(wanted, inputs)[0])
    stacks = {path.rpartition(".")[2]: module for path, module in model.named_modules()}
    text = {n: x for n, x in inputs.items() if n in ("input_ids", "attention_mask")}
    takes = {
        "encoder": {n: x for n, x in inputs.items() if n == "input_features"} or text,
        "decoder": text or {"input_ids": inputs["decoder_input_ids"]},
    }
    return all(
        torch.equal(outputs(stacks[name], given)[0], outputs(getattr(wanted, name), given)[0])
        for name, given in takes.items()
        if name in stacks
    )


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(name, torch.bfloat16) for name in CASES]
    + [(name, torch.float16) for name in ("bert", "t5", "llama-stock")],
    indirect=["case"],
)
def test_half_precision_is_kept(case, dtype, tmp_path):
    """The whole model as transformers loads it in half precision (some tensors stay whole), cut, saved and loaded."""
    copy.deepcopy(case.whole).to(dtype).save_pretrained(tmp_path / "whole")
    half = type(case.whole).from_pretrained(tmp_path / "whole", dtype="auto")
    hp.prune(half, case.removed, anatomy=case.anatomy_of_whole)
    case.save(half, tmp_path / "saved")
    inputs = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in case.inputs.items()
    }
    expected = outputs(half, inputs)
    assert half.dtype == dtype
    for by in ROUTES:
        again = case.load(by, tmp_path / "saved")
        assert [p.dtype for p in again.parameters()] == [p.dtype for p in half.parameters()]
        assert identical(outputs(again, inputs), expected), by


@each("bert", "llama", "llama-stock", "bloom")
def test_a_cast_in_memory_is_kept(case, tmp_path):
    """``to`` tells the config nothing of the new dtype."""
    case.save(case.copy().to(torch.bfloat16), tmp_path / "saved")
    for by in ROUTES:
        again = case.load(by, tmp_path / "saved")
        assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
        assert again.config.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("case", "auto"),
    [
        ("t5", "AutoModelForTextEncoding"),
        ("bart", "AutoModelForCausalLM"),
        ("whisper", "AutoModelForAudioClassification"),
    ],
    indirect=["case"],
)
def test_a_part_alone_runs_but_is_not_pruned_again(case, auto):
    """An encoder's L0 is the whole's encoder.L0, so what was noted can't be told of it."""
    part = case.load_as(auto)
    with pytest.raises(UnsupportedError, match="a part only of the model"):
        hp.prune(part, ["L0.H1"])


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
@each()
def test_device_maps(case, device_map):
    again = case.load(device_map=device_map)
    device = next(again.parameters()).device
    inputs = {n: v.to(device) if torch.is_tensor(v) else v for n, v in case.inputs.items()}
    found = [tensor.cpu() for tensor in outputs(again, inputs)]
    if device.type == "cpu":
        assert identical(found, outputs(case.model, case.inputs))


@each()
def test_shards_give_the_same_bits(case, tmp_path):
    case.save(case.model, tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    for by in ROUTES:
        again = case.load(by, tmp_path / "saved")
        assert identical(outputs(again, case.inputs), outputs(case.model, case.inputs)), by


@each("bert")
def test_the_size_of_shards_is_for_callers_to_choose(case, tmp_path):
    written(case.model, tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert len(list(case.directory.glob("*.safetensors"))) == 1


@REMOTE
def test_headprune_runs_no_file_of_the_directory(case, tmp_path):
    directory = shutil.copytree(case.directory, tmp_path / "copy")
    (directory / "modeling_headprune.py").write_text("raise RuntimeError('it ran')")
    (directory / "manifest.json").unlink()
    again = hp.load(directory, device="cpu")
    assert identical(outputs(again, case.inputs), outputs(case.model, case.inputs))
    with pytest.raises(RuntimeError, match="it ran"):
        case.load(directory=directory)


@REMOTE
def test_without_trust_loading_is_loud(case, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _question: "n")  # should it ask
    auto = {"AutoModel", case.auto}
    for name in auto:
        for settings in ({}, {"trust_remote_code": False}):
            with pytest.raises((RuntimeError, ValueError)):
                getattr(transformers, name).from_pretrained(case.directory, **settings)


@pytest.mark.parametrize(
    ("case", "task"),
    [
        ("bert", "fill-mask"),
        ("llama", "text-generation"),
        ("llama-stock", "text-generation"),
        ("vit", "image-classification"),
    ],
    indirect=["case"],
)
def test_pipelines(case, task, tmp_path):
    """A pipeline that loads says what one says that was given the model in memory."""
    directory = shutil.copytree(case.directory, tmp_path / "copy")
    if task == "image-classification":
        pytest.importorskip("PIL", reason="transformers makes no image pipeline without pillow")
        size = {"height": 32, "width": 32}
        parts = {"image_processor": transformers.ViTImageProcessorPil(size=size)}
    else:
        parts = {"tokenizer": toy_tokenizer()}
    for part in parts.values():
        part.save_pretrained(directory)
    question = {"fill-mask": "w1 w2 [MASK] w4", "text-generation": "w1 w2 w3"}.get(task)
    if question is None:
        from PIL import Image

        question = Image.new("RGB", (32, 32), (10, 200, 30))
    settings = {"max_new_tokens": 5, "do_sample": False} if task == "text-generation" else {}
    loaded = transformers.pipeline(
        task, model=str(directory), trust_remote_code=case.route == "remote-code", device="cpu"
    )
    in_memory = transformers.pipeline(task, model=case.copy(), device="cpu", **parts)
    assert loaded(question, **settings) == in_memory(question, **settings)
    assert loaded(question, **settings) != transformers.pipeline(
        task, model=case.whole, device="cpu", **parts
    )(question, **settings)
