"""Tiny random models: 3 layers, initializer_range 0.4, because the default hides bugs."""

import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import headprune as hp
from headprune.models.manifest import write_manifest
from headprune.models.save import write_model
from headprune.scoring.request import ScoreRequest
from headprune.scoring.request import score as run_method

torch_compiles = pytest.mark.skipif(
    Version(torch.__version__).release < (2, 7),
    reason="torch 2.6 can't export transformers' models, and compiles few of them, pruned or not",
)
WORDS = [f"w{number}" for number in range(80)]
_PLAIN = {
    "vocab_size": 96,
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_PLAIN, "hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}

# name: (config class, settings, class of the contract)
FAMILIES = {
    "bert": ("BertConfig", _PLAIN, "BertForSequenceClassification"),
    "roberta": ("RobertaConfig", _PLAIN, "RobertaForSequenceClassification"),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": 96,
            "n_layers": 3,
            "dim": 48,
            "n_heads": 6,
            "hidden_dim": 40,
            "initializer_range": 0.4,
            "pad_token_id": 0,
        },
        "DistilBertForSequenceClassification",
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 96,
            "n_layer": 3,
            "n_embd": 48,
            "n_head": 6,
            "initializer_range": 0.4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "GPT2LMHeadModel",
    ),
    "llama": ("LlamaConfig", _GROUPED, "LlamaForCausalLM"),
    "mistral": ("MistralConfig", _GROUPED, "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", _GROUPED, "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}, "Qwen3ForCausalLM"),
}
GROUPED = ("llama", "mistral", "qwen2", "qwen3")
DECODERS = ("gpt2", *GROUPED)


_ANATOMIES = {}


def inspected(model):
    """Return ``hp.inspect(model)``, asked once a make of model: classes, config and shapes are all that it depends on."""
    make = (
        model.config.to_json_string(use_diff=False),
        model.config._attn_implementation,
        tuple((name, type(module)) for name, module in model.named_modules()),
        tuple((name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()),
    )
    if make not in _ANATOMIES:
        _ANATOMIES[make] = hp.inspect(model)
    return _ANATOMIES[make]


def build(family, *, attention="sdpa", cls=None, seed=0, **settings):
    """Return a tiny random model of a family, in eval mode."""
    config_name, plain, class_name = FAMILIES[family]
    config = getattr(transformers, config_name)(**{**plain, **settings})
    torch.manual_seed(seed)
    model = getattr(transformers, cls or class_name)._from_config(
        config, attn_implementation=attention
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they start at zero, and cutting them would not be seen
                parameter.normal_(0, 0.3)
    return model.eval()


def t5(*, seed=0, **settings):
    """Return a tiny random T5: encoder, decoder and cross-attention heads."""
    sizes = {
        "vocab_size": 96,
        "d_model": 48,
        "d_kv": 8,
        "num_heads": 6,
        "d_ff": 40,
        "num_layers": 2,
    }
    starts = {"initializer_factor": 3.0, "decoder_start_token_id": 0}
    config = transformers.T5Config(**{**sizes, **starts, **settings})
    torch.manual_seed(seed)
    return transformers.T5ForConditionalGeneration(config).eval()


def token_inputs(*, rows=4, length=12, seed=0, left=False):
    """Return token ids with padding, on the right or on the left, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, 90, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        pad = row % (length - 3)
        hidden = slice(0, pad) if left else slice(length - pad, length)
        mask[row, hidden] = 0
        ids[row, hidden] = 0
    return {"input_ids": ids, "attention_mask": mask}


def real_outputs(outputs, inputs):
    """Return the logits (or hidden states), those of padding removed: what a pad sees is nobody's business."""
    tensor = outputs[0]
    if tensor.dim() == 3:
        return tensor[inputs["attention_mask"].bool()]
    return tensor


def toy_tokenizer():
    """Return a word-level tokenizer of seven special tokens and ``WORDS``."""
    special = ["[PAD]", "<s>", "</s>", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def byte_level_tokenizer(*steps, starts_with_bos=False):
    """Return a byte-level BPE tokenizer of fewer than 320 tokens that splits words by ``steps`` (GPT-2's rule by default)."""
    backend = Tokenizer(models.BPE())
    steps = steps or (pre_tokenizers.ByteLevel(add_prefix_space=False),)
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["the cat said that there are 12 hats, and 345 cats\n" * 9], trainer
    )
    if starts_with_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def sentences(count, *, seed=0, low=3, high=12):
    """Return sentences of toy words, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(0, 80, (n,), generator=generator).tolist())
        for n in lengths
    ]


def written(model, directory, **settings):
    """Write a model as ``hp.save`` does, without the fresh process that proves it: the test itself loads it again."""
    directory.mkdir(exist_ok=True)
    route = write_model(model, directory, anatomy=hp.inspect(model), **settings)
    write_manifest(directory)
    return route


def score(model, anatomy, *, batches, loss, method, **more):
    """Score a model whose anatomy is known, in batches that are made already."""
    return run_method(ScoreRequest(model, anatomy, batches, loss, **more), method=method)
