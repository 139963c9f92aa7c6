"""A GGUF file holds the model: another reader, with llama.cpp's mathematics, computes the same from it."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from families import build, byte_level_tokenizer, torch_compiles
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from torch.nn.functional import scaled_dot_product_attention, silu

import headprune as hp
from headprune.errors import CheckpointError, ConfigError, ProofError, UnsupportedError
from headprune.export import gguf, vocabulary
from headprune.export.gguf import export_gguf, refuse_unusable_file
from headprune.export.layout import refuse_family
from headprune.export.vocabulary import read_vocabulary

ALL = range(8)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
UNEVEN = {"L0": [0, 1], "L2": [0, 1, 2, 3, 4, 5]}

# name: (settings of the model, heads to remove, heads per layer in the file, key/value heads per layer)
MODELS = {
    "whole": ({}, {}, (8, 8, 8), (4, 4, 4)),
    "uniform": ({}, {f"L{i}": [0, 1] for i in range(3)}, (6, 6, 6), (3, 3, 3)),
    "uneven": ({}, UNEVEN, (6, 8, 2), (3, 4, 1)),
    "evenly from each group": ({}, {"L1": [1, 3, 5, 7]}, (8, 4, 8), (4, 4, 4)),
    "a middle layer without heads": ({}, {"L1": ALL, "L2": [0, 1]}, (8, 0, 6), (4, 0, 3)),
    "a last layer without heads": ({}, {"L2": ALL}, (8, 8, 0), (4, 4, 0)),
    "a first layer without heads": ({}, {"L0": ALL, "L2": ALL}, (1, 8, 0), (1, 4, 0)),
    "no group": ({"num_key_value_heads": 8}, {"L0": [3], "L1": [0, 7]}, (7, 6, 8), (7, 6, 8)),
    "one group": ({"num_key_value_heads": 1}, {"L0": [3], "L1": [0, 7]}, (7, 6, 8), (1, 1, 1)),
    "tied": ({"tie_word_embeddings": True}, UNEVEN, (6, 8, 2), (3, 4, 1)),
    "wide heads": ({"head_dim": 16}, UNEVEN, (6, 8, 2), (3, 4, 1)),
    "llama 3's rotation": (
        {"rope_parameters": LLAMA3, "head_dim": 16},
        UNEVEN,
        (6, 8, 2),
        (3, 4, 1),
    ),
    "a stretched rotation": ({"rope_parameters": LINEAR}, UNEVEN, (6, 8, 2), (3, 4, 1)),
}


def pruned(settings, heads, *, family="llama"):
    model = build(family, **settings)
    return hp.prune(model, heads) if heads else model


def write(model, path, *, tokenizer=None, **options):
    words = tokenizer and read_vocabulary(tokenizer, rows=model.config.vocab_size, where="test")
    return export_gguf(model, path, vocabulary=words, name="test", **options)


def facts(reader):
    """Return what a file says, without the name of its architecture."""
    said = {name: field.contents() for name, field in reader.fields.items()}
    prefix = said["general.architecture"] + "."
    return {name.removeprefix(prefix): value for name, value in said.items()}


def per_layer(value, count):
    return value if isinstance(value, list) else [value] * count


def rotate(x, said, factors):
    """Turn neighbouring numbers, as llama.cpp does: x is [heads, positions, head_dim]."""
    size = x.shape[-1]
    speed = said["rope.freq_base"] ** (-torch.arange(0, size, 2) / size) / factors
    if said.get("rope.scaling.type") == "linear":
        speed = speed / said["rope.scaling.factor"]
    angle = torch.arange(x.shape[1])[:, None] * speed
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.view_as_real(turned).flatten(-2)


def norm(x, weight, said):
    epsilon = said["attention.layer_norm_rms_epsilon"]
    return x * (x.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt() * weight


def run_file(path, ids):
    """Compute the logits of ``ids`` from nothing but the file."""
    reader = GGUFReader(path)
    said = facts(reader)
    w = {t.name.removesuffix(".weight"): torch.from_numpy(np.array(t.data)) for t in reader.tensors}
    count, size = said["block_count"], said["attention.key_length"]
    heads = per_layer(said["attention.head_count"], count)
    groups = per_layer(said["attention.head_count_kv"], count)
    factors = w.pop("rope_freqs", torch.ones(size // 2))
    x = w["token_embd"][ids]
    for i in range(count):
        b = {name.removeprefix(f"blk.{i}."): w[name] for name in w if name.startswith(f"blk.{i}.")}
        assert ("attn_norm" in b) == bool(heads[i]), "llama.cpp refuses tensors it doesn't expect"
        if heads[i]:
            y = norm(x, b["attn_norm"], said)
            q, k, v = (
                (y @ b[f"attn_{n}"].T).unflatten(-1, (-1, size)).transpose(0, 1) for n in "qkv"
            )
            assert (len(q), len(k), len(v)) == (heads[i], groups[i], groups[i])
            q, k = rotate(q, said, factors), rotate(k, said, factors)
            k, v = (z.repeat_interleave(heads[i] // groups[i], 0) for z in (k, v))
            z = scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + z.transpose(0, 1).flatten(1) @ b["attn_output"].T
        y = norm(x, b["ffn_norm"], said)
        x = x + (silu(y @ b["ffn_gate"].T) * (y @ b["ffn_up"].T)) @ b["ffn_down"].T
    return norm(x, w["output_norm"], said) @ w.get("output", w["token_embd"]).T


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_file_computes_what_the_model_computes(tmp_path, name):
    settings, removed, heads, groups = MODELS[name]
    model = pruned(settings, removed)
    made = write(model, tmp_path / "m.gguf")
    assert (made.heads, made.key_value_heads) == (heads, groups)
    assert made.architecture == ("llama" if len({*heads}) == len({*groups}) == 1 else "deci")
    assert [proof.passed for proof in made.proofs] == [True]
    ids = torch.randint(3, 90, (40,))
    expected = model(ids[None]).logits[0]
    torch.testing.assert_close(run_file(tmp_path / "m.gguf", ids), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_keep_their_type_and_norms_are_float32(tmp_path, dtype):
    model = pruned({}, UNEVEN).to(dtype)
    made = write(model, tmp_path / "m.gguf")
    assert made.dtype == str(dtype).removeprefix("torch.")
    kinds = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    for tensor in GGUFReader(tmp_path / "m.gguf").tensors:
        wanted = "F32" if "norm" in tensor.name else kinds[made.dtype]
        assert tensor.tensor_type.name == wanted, tensor.name


def test_a_mistral_without_a_window_is_a_llama(tmp_path):
    model = pruned({"sliding_window": None}, UNEVEN, family="mistral")
    refuse_family(model.config, where="test")
    ids = torch.randint(3, 90, (20,))
    write(model, tmp_path / "m.gguf")
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    torch.testing.assert_close(run_file(tmp_path / "m.gguf", ids), expected, atol=2e-4, rtol=1e-4)


def test_transformers_own_reader_finds_the_same_model_and_tokenizer(tmp_path):
    tokenizer = byte_level_tokenizer()
    settings = {"vocab_size": 320, "head_dim": 4}
    model = pruned(settings, {f"L{i}": [0, 1, 4, 5] for i in range(3)})
    write(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    plain = getattr(transformers, "GgufConfig", None)  # older versions always dequantize
    more = {} if plain is None else {"quantization_config": plain(dequantize=True)}
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="m.gguf",
        dtype=torch.float32,
        **more,
    ).eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert words(text)["input_ids"] == ids[0].tolist(), text
        with torch.no_grad():
            assert torch.equal(again(ids).logits, model(ids).logits)


TEXTS = ("The cat said: 12 hats, and 345!", "Ünïcode — 漢字 \n\n  x", "<s>the</s> cats")
_SPLIT = pre_tokenizers.Split(Regex(vocabulary._LLAMA3), "isolated")
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
RULES = {
    "gpt-2": (_WORDS,),
    "smollm": (pre_tokenizers.Digits(individual_digits=True), _WORDS),
    "smaug-bpe": (_SPLIT, _BYTES),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("starts_with_bos", [False, True])
def test_the_rule_that_splits_words_is_named(rule, starts_with_bos):
    tokenizer = byte_level_tokenizer(*RULES[rule], starts_with_bos=starts_with_bos)
    size = len(tokenizer)
    words = read_vocabulary(tokenizer, rows=size + 2, where="test")
    assert words.pre == rule
    assert (words.add_bos, words.add_eos) == (starts_with_bos, False)
    assert words.special == {"bos": 1, "eos": 2, "pad": 0}
    assert words.tokens[:size] == tuple(tokenizer.convert_ids_to_tokens(range(size)))
    assert words.tokens[size:] == (f"[PAD{size}]", f"[PAD{size + 1}]")
    assert words.types == (3, 3, 3, *[1] * (size - 3), 5, 5)


def test_words_looked_up_before_merging_are_llama_3_s_rule():
    spec = json.loads(byte_level_tokenizer(_SPLIT, _BYTES).backend_tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    backend = Tokenizer.from_str(json.dumps(spec))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    assert read_vocabulary(tokenizer, rows=320, where="test").pre == "llama-bpe"


def normalising():
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


TOKENIZERS = {
    "word level": (lambda: None, "WordLevel"),
    "another rule": (
        lambda: byte_level_tokenizer(pre_tokenizers.Whitespace(), _BYTES),
        "a rule that isn't known",
    ),
    "a normaliser": (normalising, "normalises texts (NFC)"),
    "more tokens than rows": (byte_level_tokenizer, "has 200 rows"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_can_not_be_said_is_refused(name, tokenizer):
    make, reason = TOKENIZERS[name]
    rows = 200 if "rows" in name else 320
    with pytest.raises(UnsupportedError) as caught:
        read_vocabulary(make() or tokenizer, rows=rows, where="test")
    assert reason in caught.value.what
    assert "`tokenizer=False`" in caught.value.hint


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
FOREIGN = {
    "qwen2": ("qwen2", {}, "biases"),
    "qwen3": ("qwen3", {}, "q_norm"),
    "gpt2": ("gpt2", {}, "isn't llama's"),
    "a window": ("mistral", {"sliding_window": 16}, "sliding window"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "gelu"),
    "another rotation": ("llama", {"rope_parameters": YARN}, "'yarn'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_llama_s_mathematics_is_refused(name):
    family, settings, reason = FOREIGN[name]
    with pytest.raises(UnsupportedError) as caught:
        refuse_family(build(family, **settings).config, where="test")
    assert reason in caught.value.what
    assert "headprune.load" in caught.value.hint


@pytest.mark.parametrize("where", ["attention_bias", "mlp_bias"])
def test_a_bias_is_refused(tmp_path, where):
    model = build("llama", **{where: True})
    with pytest.raises(UnsupportedError, match="bias"):
        write(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def halves_apart(tensor, *, heads):
    return tensor


def wrong_counts(real):
    def sizes(writer, model, layout):
        real(writer, model, layout)
        key = "deci.attention.head_count"
        writer.kv_data[0][key].value = [8, 6, 2]

    return sizes


def one_number(real):
    def add(writer, name, tensor):
        tensor = tensor.clone()
        if name == "blk.1.ffn_up.weight":
            tensor[3, 5] += 1e-6
        real(writer, name, tensor)

    return add


def forgotten(real):
    def add(writer, name, tensor):
        if name != "output.weight":
            real(writer, name, tensor)

    return add


SABOTAGE = {
    "rows in the other order": ("_interleave", lambda _real: halves_apart, "attn_q"),
    "head counts swapped": ("_add_sizes", wrong_counts, "head_count"),
    "one number off": ("_add_tensor", one_number, "blk.1.ffn_up.weight is not"),
    "a tensor forgotten": ("_add_tensor", forgotten, "lm_head.weight is not in the file"),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_file_that_is_not_the_model_is_refused_and_removed(tmp_path, monkeypatch, name):
    function, wrong, reason = SABOTAGE[name]
    monkeypatch.setattr(gguf, function, wrong(getattr(gguf, function)))
    with pytest.raises(ProofError) as caught:
        write(pruned({}, UNEVEN), tmp_path / "m.gguf")
    assert reason in caught.value.where
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_only_gguf_files_are_replaced_and_only_when_asked(tmp_path):
    path = tmp_path / "m.gguf"
    write(pruned({}, UNEVEN), path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="there already"):
        write(pruned({}, {}), path)
    assert path.read_bytes() == before
    write(pruned({}, {}), path, overwrite=True)
    assert path.read_bytes() != before
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        refuse_unusable_file(thesis, overwrite=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.gguf", "thesis.tex"]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(
            pruned({"vocab_size": 320}, UNEVEN), tmp_path / name, tokenizer=byte_level_tokenizer()
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_package_is_told_with_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError) as caught:
        refuse_unusable_file(tmp_path / "m.gguf", overwrite=False)
    assert "pip install 'gguf" in caught.value.hint


@torch_compiles
@pytest.mark.parametrize("family", ["llama", "bert"])
@torch.no_grad()
def test_a_pruned_model_goes_through_torch_export(family):
    """docs/serving.md says so."""
    removed = {"L0": [0, 1], "L2": [0, 1, 2, 3]}
    model = pruned({"use_cache": False}, removed, family=family)
    ids = torch.randint(7, 90, (2, 16))
    exported = torch.export.export(model, (ids,), strict=False)
    assert torch.equal(exported.module()(ids)[0], model(ids)[0])
