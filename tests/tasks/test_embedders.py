"""Directories of sentence-transformers: embeddings are those of ``SentenceTransformer.encode``, before pruning and after."""

import json
import warnings

import pytest
import torch
from families import build, sentences, toy_tokenizer
from safetensors.torch import save_file
from tokenizers import processors

import headprune as hp
from headprune.config import Settings
from headprune.errors import ModelError
from headprune.tasks.embedder import read_embedder
from headprune.tasks.embedding import POOLING
from headprune.tasks.rows import Example
from headprune.tasks.similarity import embedding_of
from headprune.workflows.session import open_session

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."
BASE = "sentence_transformers.base.modules."
TRANSFORMER = ("", BASE + "transformer.Transformer", None, None)
_MEAN = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
_T5 = {
    **{"vocab_size": 96, "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 40},
    **{"pad_token_id": 0, "eos_token_id": 2, "initializer_factor": 1.0},
}


class Words:
    """A voice that remembers what was said."""

    def __init__(self):
        self.said = []

    def notify(self, text):
        self.said.append(text)

    def track(self, items, description):
        return items


def pooling(folder="1_Pooling", kind=OLD + "Pooling", **settings):
    return folder, kind, settings or _MEAN, None


def dense(folder, size, to, **settings):
    generator = torch.Generator().manual_seed(to)
    weights = {
        "linear.weight": torch.randn(to, size, generator=generator) / size**0.5,
        "linear.bias": torch.randn(to, generator=generator),
    }
    if settings.get("use_residual"):
        weights["residual.weight"] = torch.randn(to, size, generator=generator)
    config = {"in_features": size, "out_features": to, "bias": True, **settings}
    return folder, BASE + "dense.Dense", config, weights


def layer_norm(folder, size):
    weights = {"norm.weight": torch.rand(size) + 0.5, "norm.bias": torch.randn(size)}
    return folder, OLD + "LayerNorm", {"dimension": size}, weights


def t5():
    import transformers

    torch.manual_seed(0)
    return transformers.T5EncoderModel(transformers.T5Config(**_T5)).eval()


# name: (model, modules, sentence_bert_config.json, config_sentence_transformers.json)
LAYOUTS = {
    "dense": (
        lambda: build("bert", cls="BertModel"),
        [
            ("", OLD + "Transformer", None, None),
            pooling(),
            dense("2_Dense", 48, 24, activation_function="torch.nn.modules.activation.Tanh"),
            ("3_Dropout", OLD + "Dropout", {"dropout": 0.5}, None),
            dense("4_Dense", 24, 16, activation_function="torch.nn.modules.linear.Identity"),
            layer_norm("5_LayerNorm", 16),
            ("6_Normalize", OLD + "Normalize", None, None),
        ],
        {"max_seq_length": 64, "do_lower_case": False},
        {},
    ),
    "prompt": (
        lambda: build("bert", cls="BertModel"),
        [
            TRANSFORMER,
            pooling(
                kind=NEW + "pooling.Pooling",
                embedding_dimension=48,
                pooling_mode=list(POOLING),
                include_prompt=False,
            ),
        ],
        {"max_seq_length": 12},
        {"prompts": {"query": "w1 w2 w3 "}, "default_prompt_name": "query"},
    ),
    "folder": (
        lambda: build("roberta", cls="RobertaModel"),
        [
            ("0_Transformer", OLD + "Transformer", None, None),
            pooling(
                word_embedding_dimension=48,
                pooling_mode_cls_token=True,
                pooling_mode_mean_tokens=False,
                pooling_mode_lasttoken=True,
            ),
        ],
        {"max_seq_length": 7},
        {"similarity_fn_name": "dot"},
    ),
    "t5": (
        t5,
        [
            TRANSFORMER,
            pooling(pooling_mode_mean_sqrt_len_tokens=True, word_embedding_dimension=32),
            dense("2_Dense", 32, 12, bias=True, use_residual=True),
        ],
        {},
        {"truncate_dim": 9, "similarity_fn_name": "euclidean"},
    ),
    "generator": (
        lambda: build("qwen3"),
        [
            TRANSFORMER,
            pooling(pooling_mode_lasttoken=True, word_embedding_dimension=32),
            ("2_Normalize", BASE + "normalize.Normalize", None, None),
        ],
        {"max_seq_length": 10},
        {"prompts": {"query": "w5 ", "passage": "w6 w7 "}, "default_prompt_name": "passage"},
    ),
    "lower": (
        lambda: build("distilbert", cls="DistilBertModel"),
        [
            TRANSFORMER,
            pooling(
                pooling_mode_max_tokens=True,
                pooling_mode_weightedmean_tokens=True,
                word_embedding_dimension=48,
            ),
        ],
        {"do_lower_case": True},
        {"similarity_fn_name": "manhattan"},
    ),
    "layers": (
        lambda: build("bert", cls="BertModel", output_hidden_states=True),
        [
            TRANSFORMER,
            (
                "1_WeightedLayerPooling",
                OLD + "WeightedLayerPooling",
                {"word_embedding_dimension": 48, "num_hidden_layers": 3, "layer_start": 1},
                {"layer_weights": torch.tensor([0.5, 2.0, 1.0])},
            ),
            pooling("2_Pooling"),
        ],
        {"max_seq_length": 20},
        {},
    ),
}


@pytest.mark.parametrize("name", [["dot"], {"dot": 1}, 3, None, "dot product"])
def test_a_similarity_that_is_no_name_is_the_cosine(name, tmp_path):
    directory = written(tmp_path / "m", "lower")
    path = directory / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "similarity_fn_name": name}))
    session = opened(directory)
    embedder = read_embedder(directory, config=session.source.config, tokenizer=session.tokenizer)
    assert embedder.similarity == "cosine"


def written(root, layout, *, change=lambda modules: modules):
    """Write a directory of sentence-transformers, file by file."""
    make, modules, settings, model_settings = LAYOUTS[layout]
    modules = change(list(modules))
    inner = root / modules[0][0]
    inner.mkdir(parents=True)
    make().save_pretrained(inner)
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 5), ("[SEP]", 6)]
    )
    tokenizer.padding_side = "left" if layout == "generator" else "right"
    tokenizer.save_pretrained(inner)
    (inner / "sentence_bert_config.json").write_text(json.dumps(settings))
    (root / "config_sentence_transformers.json").write_text(json.dumps(model_settings))
    entries = [
        {"idx": index, "name": str(index), "path": folder, "type": kind}
        for index, (folder, kind, _config, _weights) in enumerate(modules)
    ]
    (root / "modules.json").write_text(json.dumps(entries))
    for folder, _kind, config, weights in modules:
        if config is not None:
            (root / folder).mkdir(exist_ok=True)
            (root / folder / "config.json").write_text(json.dumps(config))
        if weights is not None:
            save_file(weights, root / folder / "model.safetensors")
    return root


@pytest.fixture(autouse=True)
def _own_cache_of_code(tmp_path, monkeypatch):
    cache = str(tmp_path / "code")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)


def theirs(directory, texts):
    """Return what sentence-transformers says: embeddings, and how alike the halves of the texts are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(directory), trust_remote_code=True, device="cpu")
        embeddings = model.encode(texts, batch_size=5, convert_to_tensor=True)
        alike = model.similarity_pairwise(embeddings[::2], embeddings[1::2])
    return embeddings.clone(), alike.clone()


def opened(directory, progress=None):
    settings = Settings.of(model=str(directory), task="similarity", device="cpu")
    return open_session(settings, progress=progress or Words())


def ours(directory, texts):
    """Return the same by headprune."""
    return embedded(opened(directory), texts, batch_size=None)


def embedded(subject, texts, *, batch_size):
    pairs = [Example(pair, 0.5) for pair in zip(texts[::2], texts[1::2], strict=True)]
    embeddings, alike = [None] * len(texts), [None] * len(pairs)
    source = subject.source
    embedder = read_embedder(source.root, config=source.config, tokenizer=subject.tokenizer)
    for batch in subject.batches(pairs, batch_size=batch_size):
        with torch.no_grad():
            outputs = subject.model(**batch.inputs)
        first, second = embedding_of(embedder, outputs, batch.inputs).chunk(2)
        predicted, _ = subject.task.predict(outputs, batch)
        for row, index in enumerate(batch.indices.tolist()):
            embeddings[2 * index : 2 * index + 2] = first[row], second[row]
            alike[index] = predicted[row]
    return torch.stack(embeddings), torch.stack(alike)


def texts_of(layout):
    texts = sentences(12, low=2, high=16)
    return [text.upper() for text in texts] if layout == "lower" else texts


def close(found, expected):
    return all(
        torch.allclose(a, b, rtol=0, atol=1e-5 * float(b.abs().max().clamp(min=1)))
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_embeddings_are_those_of_sentence_transformers_in_any_batch(tmp_path, layout):
    """Before pruning and after: ``hp.save`` writes a directory that the library loads, every module with it."""
    directory = written(tmp_path / "m", layout)
    texts, progress = texts_of(layout), Words()
    expected = theirs(directory, texts)
    subject = opened(directory, progress)
    for batch_size in (1, 3, None):
        assert close(embedded(subject, texts, batch_size=batch_size), expected)
    told = [text for text in progress.said if text.startswith("embeddings: ")]
    assert told
    assert "pooling" in told[0]
    model = hp.load(directory, device="cpu")
    anatomy = hp.inspect(model)
    # One head of every layer: a stock config says so where the family's can.
    remove = [str(site.id) + ".H0" for site in anatomy.sites]
    if layout == "generator":
        remove += [str(site.id) + ".H1" for site in anatomy.sites]
    hp.prune(model, remove, anatomy=anatomy)
    inner = directory if layout != "folder" else directory / "0_Transformer"
    tokenizer = toy_tokenizer().from_pretrained(inner)
    hp.save(model, tmp_path / "small", tokenizer=tokenizer)
    found = ours(tmp_path / "small", texts)
    assert not close(found, expected)
    if layout == "t5":
        # The library builds this encoder whole, whatever its config says: before any work, that is said.
        assert "sentence-transformers builds encoders of this family whole" in told[0]
    else:
        assert close(found, theirs(tmp_path / "small", texts))


@pytest.mark.parametrize("mode", sorted(POOLING))
def test_padding_is_no_part_of_a_pooling(mode):
    from headprune.tasks.pooling import MASK, SENTENCE, TOKENS, pooled

    tokens = torch.randn(1, 4, 6)
    alone = {TOKENS: tokens, MASK: torch.ones(1, 4, dtype=torch.long)}
    for prompt in (0, 2):
        expected = pooled(alone, modes=(mode,), prompt_length=prompt)[SENTENCE]
        for left, right in ((0, 3), (3, 0), (2, 2)):
            filled = torch.full((1, 4 + left + right, 6), 1e4)
            filled[:, left : left + 4] = tokens
            mask = torch.zeros(1, 4 + left + right, dtype=torch.long)
            mask[:, left : left + 4] = 1
            found = pooled({TOKENS: filled, MASK: mask}, modes=(mode,), prompt_length=prompt)
            assert torch.allclose(found[SENTENCE], expected, atol=1e-5)


def _with(index, **changes):
    """Return a change of one module: its folder, kind, config or weights."""

    def change(modules):
        names = ("folder", "kind", "config", "weights")
        old = dict(zip(names, modules[index], strict=True))
        modules[index] = tuple({**old, **changes}[name] for name in names)
        return modules

    return change


_DENSE = {"in_features": 48, "out_features": 24, "bias": True}
REFUSED = {
    "somebody's code": (_with(2, kind="modeling_custom.Dense"), "modeling_custom.Dense"),
    "a module that isn't computed": (_with(2, kind=OLD + "LSTM"), "is a LSTM"),
    "a folder elsewhere": (_with(2, folder="../m2"), "no folder"),
    "an unknown pooling": (_with(1, config={"pooling_mode": "median"}), "median"),
    "an unknown key": (_with(1, config={**_MEAN, "pooling_mode_best": True}), "pooling_mode_best"),
    "no pooling": (lambda modules: modules[:1], "no Pooling"),
    "no transformer": (_with(0, kind=OLD + "BoW"), "begins with BoW"),
    "an activation of somebody's": (
        _with(2, config={**_DENSE, "activation_function": "os.system"}),
        "os.system",
    ),
    "a size that doesn't fit": (_with(2, config={**_DENSE, "in_features": 32}), "takes 32"),
    "a size that the weights haven't": (_with(2, config={**_DENSE, "bias": False}), "linear.bias"),
    "no weights": (_with(2, weights=None), "no weights"),
    "no config": (_with(1, config=None), "no config.json"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_can_t_be_computed_exactly_is_refused_by_name(tmp_path, case):
    change, word = REFUSED[case]
    directory = written(tmp_path / "m", "dense", change=change)
    with pytest.raises(ModelError, match=word) as caught:
        open_session(Settings.of(model=str(directory), device="cpu"), progress=Words())
    assert caught.value.where
    assert caught.value.hint


SETTINGS = {
    "sentence_bert_config.json": [
        ({"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs"),
        ({"tokenizer_args": {"padding_side": "left"}}, "padding_side"),
        ({"model_kwargs": {"dtype": "bfloat16"}}, "dtype"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config"),
        ({"transformer_task": "fill-mask"}, "fill-mask"),
        ({"max_seq_length": "long"}, "max_seq_length"),
    ],
    "config_sentence_transformers.json": [
        ({"model_type": "SparseEncoder"}, "SparseEncoder"),
        ({"default_prompt_name": "nobody"}, "nobody"),
        ({"truncate_dim": 0}, "truncate_dim"),
        ({"prompts": "query: "}, "prompts"),
    ],
}


def test_what_has_no_transformer_is_told_what_it_is(tmp_path):
    entry = {"idx": 0, "name": "0", "path": "", "type": OLD + "StaticEmbedding"}
    (tmp_path / "modules.json").write_text(json.dumps([entry]))
    with pytest.raises(ModelError, match="is made of StaticEmbedding: it has no transformer"):
        opened(tmp_path)


def test_settings_that_aren_t_computed_are_refused_by_name(tmp_path):
    directory = written(tmp_path / "m", "dense")
    for name, cases in SETTINGS.items():
        before = (directory / name).read_text()
        for content, word in cases:
            (directory / name).write_text(json.dumps(content))
            with pytest.raises(ModelError, match=word):
                ours(directory, sentences(2))
        (directory / name).write_text(before)


def test_pooling_that_nothing_says_is_assumed_aloud_and_loose_modules_are_asked_about(tmp_path):
    directory, texts = written(tmp_path / "m", "dense"), sentences(6)
    (directory / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"modules\.json"):
        ours(directory, texts)
    for folder in directory.glob("[0-9]_*"):
        for file in folder.iterdir():
            file.unlink()
    progress = Words()
    found = embedded(opened(directory, progress), texts, batch_size=None)
    assert close(found, theirs(directory, texts))
    assert any("mean pooling is assumed" in text for text in progress.said)


def test_a_run_of_prune_writes_what_it_measured(run_here, command_line):
    """Scored, pruned, reconstructed and proven with the modules after the transformer; nothing longer than the model reads."""
    directory = written(run_here / "m", "dense")
    texts = sentences(80)
    rows = [
        f"{a},{b},{n % 7 / 6}" for n, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]
    (run_here / "d.csv").write_text("sentence1,sentence2,score\n" + "\n".join(rows) + "\n")
    words = ("--data", "d.csv", "--keep", "0.8", "--steps", "1", "--num-samples", "16")
    code, _out, err = command_line(
        "prune", directory, *words, "--max-length", "999", "--out", "small"
    )
    assert code == 0, err
    assert "Dense 48 to 24 (Tanh)" in err
    assert "texts are cut at 64 tokens" in err
    assert close(ours(run_here / "small", texts), theirs(run_here / "small", texts))
