"""What a model is given: rows that say in a batch what they say alone, no longer than it takes, started as its texts start."""

import itertools
from pathlib import Path

import pytest
import torch
import transformers
from families import WORDS, inspected, sentences
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import headprune as hp
from headprune.batch import forward
from headprune.config import Settings
from headprune.errors import DataError, ModelError
from headprune.models.find import ModelSource
from headprune.replay.losses import losses
from headprune.report.terminal import ConsoleProgress
from headprune.tasks.batches import InputFormat
from headprune.tasks.columns import Columns
from headprune.tasks.model_inputs import filling, longest_row, refuse_reading_ahead
from headprune.tasks.rows import Example
from headprune.tasks.tables import Table
from headprune.tasks.task import get_task
from headprune.workflows.session import Session

_SIZES = {
    "vocab_size": 96,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_RELATIVE = {name: value for name, value in _SIZES.items() if "position" not in name}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_TWO_SIDED = {
    **{name: value for name, value in _SIZES.items() if "hidden" not in name},
    **{f"{side}_{name}": 4 for side in ("encoder", "decoder") for name in ("attention_heads",)},
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 40 for side in ("encoder", "decoder")},
    "d_model": 32,
    "init_std": 0.4,
}
LAST_TOKEN = {
    "GPT2": {**_SIZES, "n_positions": 40},
    "GPTNeo": {**_SIZES, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "GPTNeoX": _SIZES,
    "GPTBigCode": {**_SIZES, "n_positions": 40},
    "Bloom": {**_RELATIVE, "n_layer": 2, "n_head": 4},
    "OPT": {**_SIZES, "ffn_dim": 40, "word_embed_proj_dim": 32, "init_std": 0.4},
    "Falcon": {**_SIZES, "multi_query": False},
    "Phi": _SIZES,
    "Llama": _GROUPED,
    "Mistral": _GROUPED,
    "Qwen3": _GROUPED,
    "Gemma": _GROUPED,
}
ENCODERS = {
    "Bert": _SIZES,
    "Roberta": {**_SIZES, "pad_token_id": 1, "bos_token_id": 0},
    "DistilBert": {**_SIZES, "dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4},
    "Electra": {**_SIZES, "embedding_size": 16},
    "Albert": {**_SIZES, "embedding_size": 16},
    "ConvBert": {**_SIZES, "embedding_size": 32, "conv_kernel_size": 5},  # padding leaks into rows
    "XLNet": {
        **_RELATIVE,
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 40,
    },  # last position
    "Bart": _TWO_SIDED,  # reads where eos is
}
LANGUAGE_MODELS = {
    name: LAST_TOKEN[name] for name in ("GPT2", "OPT", "Llama", "Qwen3")
}  # learned, shifted and rotary positions


def made(family, suffix, settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, f"{family}{suffix}")._from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model.eval()


def toy(*, pad=None, side="right", frame="<s> $A </s>"):
    """Return a tokenizer that frames texts, with a pad token or without."""
    special = ["[PAD]", "<s>", "</s>", "[UNK]"]
    backend = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>", eos_token="</s>",
        padding_side=side, **({"pad_token": pad} if pad else {}),
    )  # fmt: skip


def subject_of(model, tokenizer, *, task="classification", batch_size=None, max_length=40):
    settings = Settings.of(model="m", batch_size=batch_size, max_length=max_length)
    source = ModelSource("m", Path("m"), None, model.config)
    progress = ConsoleProgress(quiet=True)
    return Session(settings, source, model, tokenizer, get_task(task), progress)


@torch.no_grad()
def in_batches(subject, examples):
    """Return what the model says of every example, batch by batch, and how many rows batches have."""
    batches = subject.batches(examples)
    said = torch.empty(len(examples), subject.model.config.num_labels)
    for batch in batches:
        said[batch.indices] = forward(subject.model, batch.inputs).logits
    return said, [batch.num_rows for batch in batches]


@torch.no_grad()
def alone(model, tokenizer, examples):
    rows = [tokenizer(example.texts[0], return_tensors="pt") for example in examples]
    takes = ("input_ids", "attention_mask")
    return torch.cat([model(**{name: row[name] for name in takes}).logits for row in rows])


EXAMPLES = [Example((text,), n % 2) for n, text in enumerate(sentences(8, low=1, high=9))]
LONG = [Example((text,), n % 2) for n, text in enumerate(sentences(6, low=6, high=16))]
SIZES = itertools.cycle([None, 4, 3, 1])
SIDES = itertools.cycle(["left", "right"])


@pytest.mark.parametrize("family", LAST_TOKEN)
def test_a_last_token_classifier_says_of_a_row_in_a_batch_what_it_says_of_it_alone(family):
    model = made(family, "ForSequenceClassification", LAST_TOKEN[family])
    # No id, no token's id, [PAD], </s>, a word.
    cells = [(None, "$A"), (-1, "<s> $A </s>"), (0, "<s> $A </s>"), (2, "$A"), (50, "$A")]
    for of_config, frame in (*cells, (None, "<s> $A </s>"), (2, "<s> $A </s>")):
        model.config.pad_token_id = of_config
        expected = alone(model, toy(frame=frame), EXAMPLES)
        for pad in (None, "[PAD]", "</s>"):
            tokenizer = toy(pad=pad, side=next(SIDES), frame=frame)
            subject = subject_of(model, tokenizer, batch_size=next(SIZES))
            said, rows = in_batches(subject, EXAMPLES)
            torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)
            assert model.config.pad_token_id == of_config
            if of_config in (0, 2, 50) and subject.settings.data.batch_size is None:
                assert rows == [len(EXAMPLES)], "the model's own pad id fills rows up"


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_says_of_a_row_in_a_batch_what_it_says_of_it_alone(family):
    model = made(family, "ForSequenceClassification", ENCODERS[family])
    for pad, size in itertools.product([None, "[PAD]", "</s>"], [None, 4]):
        tokenizer = toy(pad=pad, side=next(SIDES))
        said, rows = in_batches(subject_of(model, tokenizer, batch_size=size), EXAMPLES)
        torch.testing.assert_close(said, alone(model, tokenizer, EXAMPLES), rtol=1e-5, atol=1e-5)
        leaks = family in ("ConvBert", "XLNet")
        assert (len(rows) > -(-len(EXAMPLES) // (size or len(EXAMPLES)))) == leaks


@pytest.mark.parametrize("family", ["Canine", "Perceiver"])
def test_a_model_without_a_table_of_words_is_filled_up_too(family):
    """It reads bytes, or hashes of characters: no id is too high for it."""
    sizes = {**_SIZES, "max_position_embeddings": 64, "num_labels": 2}
    if family == "Canine":
        sizes |= {"downsampling_rate": 2, "num_hash_buckets": 64, "local_transformer_stride": 16}
    else:
        sizes |= {
            **{"d_model": 32, "d_latents": 32, "num_latents": 4, "num_blocks": 1},
            **{"num_self_attends_per_block": 1, "num_self_attention_heads": 4},
            "num_cross_attention_heads": 4,
        }
    model = made(family, "ForSequenceClassification", sizes)
    if family == "Perceiver":
        model.config.pad_token_id = None
    said, _rows = in_batches(subject_of(model, toy(pad="[PAD]"), batch_size=3), LONG)
    torch.testing.assert_close(said, alone(model, toy(pad="[PAD]"), LONG), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "suffix", "task"),
    [
        ("Bert", "ForSequenceClassification", "classification"),
        ("Llama", "ForSequenceClassification", "classification"),
        ("GPT2", "LMHeadModel", "causal-lm"),
    ],
)
def test_ids_for_which_the_model_has_no_embedding_are_refused(family, suffix, task):
    """A tokenizer got tokens, and nobody told the model; or it is another model's."""
    sizes = {**LAST_TOKEN, **ENCODERS}[family]
    model = made(family, suffix, {**sizes, "vocab_size": 60})
    subject = subject_of(model, toy(pad="[PAD]"), task=task)
    known = [Example(("w1 w2",), 0, tokens=(9, 10)), Example(("w3",), 0, tokens=(7, 8, 9))]
    assert len(subject.batches(known)) in (1, 2)
    for size in (1, None):
        subject = subject_of(model, toy(pad="[PAD]"), task=task, batch_size=size)
        with pytest.raises(
            ModelError, match="gives input_ids up to 83, and the model knows 60,"
        ) as caught:
            subject.batches([*known, Example(("w79",), 0, tokens=(7, 83))])
        assert "resize_token_embeddings" in caught.value.hint


@pytest.mark.parametrize("of_config", [None, 2])
def test_losses_under_masks_do_not_depend_on_the_batch_size(of_config):
    model = made("Llama", "ForSequenceClassification", LAST_TOKEN["Llama"])
    model.config.pad_token_id = of_config
    anatomy = inspected(model)
    masks = torch.ones(len(anatomy.heads), len(anatomy.heads)).fill_diagonal_(0)
    found = [
        losses(
            model, anatomy, loss=get_task("classification").loss, masks=masks,
            batches=subject_of(model, toy(pad="[PAD]"), batch_size=size).batches(EXAMPLES),
        )
        for size in (1, None)
    ]  # fmt: skip
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize("frame", ["$A", "<s> $A", "<s> </s> $A", "<s> $A </s>"])
def test_every_token_of_a_text_is_predicted_once_and_none_of_its_start(family, frame):
    suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    model = made(family, suffix, LANGUAGE_MODELS[family])
    tokenizer = toy(pad="[PAD]", side=next(SIDES), frame=frame)
    text = " ".join(sentences(9))
    start = {"$A": (), "<s> </s> $A": (1, 2)}.get(frame, (1,))
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    table = Table("x", None, ("text",), [{"text": text}])
    columns = Columns(("text",), "", "as told")
    subject = subject_of(model, tokenizer, task="causal-lm", batch_size=next(SIZES), max_length=12)
    examples = subject.task.to_examples(table, columns, subject.input_format())
    content = [token for example in examples for token in example.tokens[len(start) :]]
    assert content == plain[: len(content)]
    assert len(plain) - len(content) < 2 - bool(start)
    assert all(e.tokens[: len(start)] == start and len(e.tokens) <= 12 for e in examples)
    predicted = sum(len(example.tokens) - max(1, len(start)) for example in examples)
    for batch in subject.batches(examples):
        with torch.no_grad():
            found, count = subject.task.predict(forward(model, batch.inputs), batch)
        predicted -= int(count.sum())
        for loss, index in zip(found, batch.indices, strict=True):
            ids = torch.tensor([examples[index].tokens])
            labels = ids.clone()
            labels[:, : len(start)] = -100
            with torch.no_grad():
                mean = model(input_ids=ids, labels=labels).loss
            torch.testing.assert_close(loss / count[batch.indices == index][0], mean)
    assert predicted == 0


def test_a_window_that_has_room_for_nothing_but_the_start_of_a_text_is_refused():
    table = Table("x", None, ("text",), [{"text": "w1 w2 w3"}])
    columns, window = Columns(("text",), "", "as told"), InputFormat(toy(frame="<s> </s> $A"), 2)
    with pytest.raises(DataError, match="leave nothing to predict") as caught:
        get_task("causal-lm").to_examples(table, columns, window)
    assert "`max_length`" in caught.value.where
    assert "3 tokens" in caught.value.hint


_OFFSET = {**_SIZES, "pad_token_id": 1, "bos_token_id": 0}
POSITIONS = {
    **{
        name: _OFFSET
        for name in ("Roberta", "XLMRoberta", "Camembert", "MPNet", "Data2VecText", "IBert")
    },
    "Lilt": {**_OFFSET, "hidden_size": 48},
    "Esm": {**_OFFSET, "position_embedding_type": "absolute"},
    "Longformer": {**_OFFSET, "attention_window": 8},
    "Xmod": {**_OFFSET, "languages": ["en_XX"], "default_language": "en_XX"},
    "Luke": {**_OFFSET, "entity_vocab_size": 8, "entity_emb_size": 8},
    **{name: ENCODERS[name] for name in ("Bert", "DistilBert", "Electra", "Bart")},
    **{name: LAST_TOKEN[name] for name in ("GPT2", "OPT", "GPTBigCode")},
}


@pytest.mark.parametrize("family", POSITIONS)
def test_the_longest_row_runs_and_a_longer_one_does_not(family):
    model = made(family, "Model", POSITIONS[family])
    limit = longest_row(model, special=(0, 1, 2))

    def run(length):
        ids = torch.full((1, length), 9)
        with torch.no_grad():
            return forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    run(limit)
    with pytest.raises((IndexError, RuntimeError)):
        run(limit + 1)


@pytest.mark.parametrize("family", ["BigBird", "BigBirdPegasus"])
def test_rows_end_where_a_model_would_read_them_otherwise_from_then_on(family):
    """BigBird reads a short row in full, and every later one too; a long one in blocks, as long as no short one came."""
    sizes = {**(_SIZES if family == "BigBird" else _TWO_SIDED), "max_position_embeddings": 64}
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
    model = made(family, "ForSequenceClassification", {**sizes, **sparse, "num_labels": 2})
    assert longest_row(model) == 28
    texts = [" ".join(sentences(n, seed=n, low=6, high=9)) for n in (1, 9, 2, 9)]
    examples = [Example((text,), 0) for text in texts]
    said, _rows = in_batches(subject_of(model, toy(pad="[PAD]"), max_length=60), examples)
    for example, found in zip(examples, said, strict=True):
        fresh = made(family, "ForSequenceClassification", {**sizes, **sparse, "num_labels": 2})
        row = toy()(example.texts[0], return_tensors="pt", truncation=True, max_length=28)
        with torch.no_grad():
            expected = fresh(**{n: row[n] for n in ("input_ids", "attention_mask")}).logits[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["Model", "ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.parametrize("length", [12, 48])
def test_a_model_that_changes_its_attentions_while_it_runs_has_each_head_once(suffix, length):
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
    sizes = {**_SIZES, **sparse, "max_position_embeddings": 64}
    masked, pruned = (made("BigBird", suffix, sizes) for _ in range(2))
    anatomy = hp.inspect(masked)
    heads = masked.config.num_hidden_layers * masked.config.num_attention_heads
    assert len(anatomy.heads) == heads
    ids = torch.randint(9, 60, (2, length))
    with torch.no_grad():
        with hp.masked(masked, ["L0.H1"]):
            expected = masked(ids)[0]
        assert not torch.allclose(masked(ids)[0], expected, atol=1e-2)
        found = hp.prune(pruned, ["L0.H1"])(ids)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_setting_that_another_family_has_changes_nothing():
    assert longest_row(made("Bert", "Model", {**_SIZES, "attention_type": "block_sparse"})) == 40


def test_rotary_positions_end_where_the_config_says_so_and_relative_ones_nowhere():
    assert longest_row(made("Llama", "Model", LAST_TOKEN["Llama"])) == 40
    assert longest_row(made("Bloom", "Model", LAST_TOKEN["Bloom"])) is None


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra", "XLNet"])
def test_what_reads_ahead_is_no_language_model(family):
    settings = ENCODERS[family]
    suffix = "ForCausalLM" if family in ("Roberta", "Electra") else "LMHeadModel"
    with pytest.raises(ModelError, match="reads tokens ahead") as caught:
        refuse_reading_ahead(made(family, suffix, settings))
    assert "decoder" in caught.value.hint
    if family != "XLNet":
        refuse_reading_ahead(made(family, suffix, {**settings, "is_decoder": True}))
    for name, plain in LANGUAGE_MODELS.items():
        suffix = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
        refuse_reading_ahead(made(name, suffix, plain))


@pytest.mark.parametrize("family", [*ENCODERS, *LANGUAGE_MODELS])
def test_ids_that_no_table_has_are_refused_before_anything_runs(family):
    settings = ENCODERS.get(family) or LANGUAGE_MODELS[family]
    model = made(family, "Model", settings)
    fill = filling(model, lambda outputs, _inputs: outputs[0], _Padless())
    words = model.get_input_embeddings().num_embeddings
    rows = [{"input_ids": [9, words - 1]}, {"input_ids": [9, 10, 11]}]
    fill(rows)
    with pytest.raises(ModelError, match=f"input_ids up to {words}, .*knows {words}"):
        fill([*rows, {"input_ids": [words]}])
    if types := getattr(model.config, "type_vocab_size", 0):
        with pytest.raises(ModelError, match=f"token_type_ids up to {types}"):
            fill([{"input_ids": [9, 9], "token_type_ids": [0, types]}])


class _Padless:
    pad_token_id = None


def test_a_family_that_hashes_what_it_reads_has_no_table_to_fit():
    sizes = {**_SIZES, "num_hash_buckets": 32, "downsampling_rate": 2, "local_attention_window": 4}
    model = made("Canine", "Model", sizes)
    fill = filling(model, lambda outputs, _inputs: outputs[1], _Padless())
    rows = [{"input_ids": [9, 100_000, 7, 8]}, {"input_ids": [9, 10, 11, 12, 13, 14]}]
    assert fill(rows) == fill(rows[::-1]) == fill(rows[:1])
    with pytest.raises(ModelError, match="fails on a row of 1 tokens"):
        filling(model, lambda outputs, _inputs: outputs[1], _Padless())([{"input_ids": [9]}])


def test_a_package_that_a_forward_misses_is_named_and_no_config_blamed():
    model = made("Bert", "Model", _SIZES)

    def forward_of_a_kernel(*_args, **_options):
        raise ImportError(
            "this attention requires the flash_attn library: `pip install flash_attn`"
        )

    model.forward = forward_of_a_kernel
    with pytest.raises(ModelError, match="needs the package flash_attn"):
        filling(model, lambda outputs, _inputs: outputs[0], _Padless())([{"input_ids": [9, 10]}])
