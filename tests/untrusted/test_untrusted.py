"""What comes from strangers: read within bounds, or refused with a name, a place and a way out; never run, never followed out."""

import json
import math
import os
import shutil
import struct
from pathlib import Path

import pytest
import transformers
import yaml
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from transformers import BertTokenizer

from headprune.artefact import read_artefact
from headprune.errors import CheckpointError, HeadpruneError, ModelError, UnsupportedError
from headprune.inspection import inspect
from headprune.models.find import find
from headprune.models.load import empty_model, load_model
from headprune.models.side_files import copy_side_files, drop_foreign_code
from headprune.models.stream import shards
from headprune.models.tokenizer import load_tokenizer
from headprune.placement import weights_bytes
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results, read_result
from headprune.untrusted.directories import refuse_foreign_files
from headprune.untrusted.documents import MOST_DEPTH, parse_json, parse_yaml, read_json
from headprune.untrusted.settings import check_settings
from headprune.untrusted.weights import read_header, weight_names


def damage(path):
    """What is wrong with a safetensors file, judged by its header and size; None where nothing is."""
    try:
        read_header(path)
    except ModelError as error:
        return error.what
    return None


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def saved(request, tmp_path_factory, tokenizer):
    """A directory of each kind: an encoder, one with fused projections, one with grouped heads."""
    directory = tmp_path_factory.mktemp("saved") / request.param
    build(request.param).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def model(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


def three_parts(error):
    text = str(error)
    return text.startswith("error: ") and "\n  in:   " in text and "\n  try:  " in text


def rewrite(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


# --- documents


@given(document=st.dictionaries(st.text(), values))
@settings(max_examples=40)
def test_any_object_is_read_as_it_is_unless_something_in_it_breaks_who_prints_it(document):
    raw = json.dumps(document).encode()
    texts = json.dumps(document, ensure_ascii=False)
    if "\\u0000" in texts:
        with pytest.raises(ValueError, match="not Unicode"):
            parse_json(raw)
    else:
        assert parse_json(raw) == document


@given(
    raw=st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0x1e+nul\\ud8', max_size=60).map(str.encode)
)
@settings(max_examples=300)
def test_whatever_the_bytes_the_end_is_an_object_or_a_value_error(raw):
    try:
        assert isinstance(parse_json(raw), dict)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("depth", [1, MOST_DEPTH - 1, MOST_DEPTH, 5_000, 300_000])
@pytest.mark.parametrize("unit", ['{"a":', "["])
def test_depth_is_bounded_whatever_python_bears(tmp_path, depth, unit):
    path = tmp_path / "deep.json"
    closing = "}" if unit == '{"a":' else "]"
    path.write_text('{"top":' + unit * (depth - 1) + "1" + closing * (depth - 1) + "}")
    if depth < MOST_DEPTH:
        read_json(path)
        return
    for kind in (HeadScores, PruningPlan, Results):
        with pytest.raises(CheckpointError, match="nested too deep") as raised:
            read_artefact(kind, path)
        assert three_parts(raised.value)
    with pytest.raises(CheckpointError, match="nested too deep"):
        read_result(path)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_yaml("a: " + "[" * min(depth, 50_000) + "]" * min(depth, 50_000))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[1]", "a list"),
        (b"null", "null"),
        (b'"x"', "a text"),
        (b"7", "a number"),
        (b'{"a": "\xe9"}', "utf-8"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b'{"a": "\\ud800"}', "Unicode"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "digits"),
        (b'{"a": ' + b"9" * 50 + b"}", "too large"),
        (b'{"a": 1', "delimiter"),
        (b"", "Expecting value"),
    ],
)
def test_a_document_that_is_none_is_named(tmp_path, raw, why):
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=why) as raised:
        read_json(path)
    assert three_parts(raised.value)
    assert "x.json" in str(raised.value)


def test_a_file_that_is_too_large_or_no_file_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": "' + "b" * 100 + '"}')
    with pytest.raises(CheckpointError, match="more than"):
        read_json(path, most_bytes=50)
    os.mkfifo(tmp_path / "pipe.json")
    for name, why in (("pipe.json", "a pipe"), ("", "directory"), ("gone.json", "No such file")):
        with pytest.raises(CheckpointError, match=why):
            read_json(tmp_path / name)
    with pytest.raises(CheckpointError, match="a device"):
        read_json(Path("/dev/zero"))


@given(document=st.dictionaries(st.text(max_size=5), values, max_size=4))
@settings(max_examples=40)
def test_yaml_of_plain_values_reads_as_safe_yaml_does(document):
    text = yaml.safe_dump(document, allow_unicode=True)
    if (
        "\\0" in text
        or "&id" in text
        or "!!" in text
        or max(map(abs, numbers(document)), default=0) > 1e40
    ):
        return
    assert parse_yaml(text) == yaml.safe_load(text)


def numbers(value):
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [value] if type(value) is int else []


def test_yaml_that_grows_or_makes_things_is_refused():
    bomb = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(30))
    for text in (
        bomb,
        "a: &a 1",
        "a: *a",
        "a: !!python/name:os.system x",
        "a: !!int ''",
        "a: !x 1",
    ):
        with pytest.raises(ValueError, match="which recipes don't need"):
            parse_yaml(text)
    for text in (
        "a: [",
        "a: 1\na: [}",
        "\t",
        "a: 2024-99-99",
        "[" * 100_000,
        "a: " + "b" * 300_000,
    ):
        with pytest.raises(ValueError):
            parse_yaml(text)


# --- weights


def header_of(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_weights(path, header, body):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


bad_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "X9", "", None, 5, ["F32"]]),
        "shape": st.sampled_from(
            [[-1], [-2, -2], [2**70], [0], "ab", None, [1.5], [True], {}, [[1]], [1]]
        ),
        "data_offsets": st.sampled_from(
            [[0, 0], [4, 0], [-4, 4], [0, 2**70], [0], [0, 4, 8], None, "ab", [0.0, 4.0], [1, 5]]
        ),
    },
)


@given(changes=bad_entries, which=st.integers(0, 3), keep=st.booleans())
@settings(max_examples=200)
def test_a_header_that_we_pass_is_one_that_the_library_reads(
    tmp_path_factory, changes, which, keep
):
    """Whatever we call whole opens, and what doesn't open was named by us before."""
    path = tmp_path_factory.mktemp("w") / "model.safetensors"
    header = {"__metadata__": {"format": "pt"}}
    for n in range(4):
        header[f"t{n}"] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * n, 24 * n + 24]}
    entry = header[f"t{which}"]
    header[f"t{which}"] = {**entry, **changes} if keep else changes
    write_weights(path, header, bytes(96))
    problem = damage(path)
    try:
        with safe_open(path, "pt") as file:
            opened = all(file.get_tensor(name) is not None for name in file.keys())
    except (SafetensorError, OSError, ValueError, TypeError):
        opened = False
    if opened:
        return
    assert problem is not None, f"{changes} isn't named"


@pytest.mark.parametrize(
    "change",
    [
        lambda h: {**h, "extra": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},  # twice
        lambda h: {name: value for name, value in list(h.items())[:-1]},  # a hole, or bytes left
        lambda h: {**h, "__metadata__": [1]},
        lambda h: {**h, "__metadata__": {"a": {"b": 1}}},
        lambda h: {**h, "x": 5},
        lambda h: [h],
        lambda h: b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        lambda h: b"\xff" * 100,
        lambda h: b"",
    ],
)
def test_a_header_that_the_format_does_not_allow_is_named_before_anything_loads(model, change):
    path = model / "model.safetensors"
    header, body = header_of(path)
    write_weights(path, change(header), body)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged") as raised:
        find(str(model))
    assert three_parts(raised.value)


def test_a_header_may_not_be_longer_than_the_format_says(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert "longer" in damage(path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/hosts", "a/b.safetensors", "..", "", 5, None, ["m"]]
)
def test_an_index_names_files_of_its_own_directory(model, name):
    (model / "model.safetensors").rename(model / "model-00001.safetensors")
    shutil.copy(model / "model-00001.safetensors", model.parent / "x.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    for read in (lambda: find(str(model)), lambda: shards(model)):
        with pytest.raises(ModelError, match="its own directory") as raised:
            read()
        assert three_parts(raised.value)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model-00001.safetensors"}}))
    assert weight_names(model) == ("model-00001.safetensors",)
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{"):
        index.write_text(content)
        with pytest.raises(ModelError):
            find(str(model))


def test_only_files_that_a_load_reads_count(model):
    """Not the copy in another format, or the shard of yesterday that lie beside them, damaged or not."""
    size = (model / "model.safetensors").stat().st_size
    for name in ("consolidated.safetensors", "other.safetensors"):
        (model / name).write_bytes(b"\xff" * 50)
    assert find(str(model)).weight_files == (model / "model.safetensors",)
    assert weights_bytes(model) == size
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    with pytest.raises(ModelError, match="has no weights") as raised:
        find(str(model))
    assert three_parts(raised.value)
    shutil.copy(model / "consolidated.safetensors", model / "model-00002-of-00003.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in find(str(model)).weight_files] == [*index["weight_map"].values()]
    assert weights_bytes(model) == size
    assert shards(model) == find(str(model)).weight_files
    for named in ("model-00001-of-00001.safetensors", "model.safetensors.index.json"):
        settings = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**settings, "transformers_weights": named}))
        shutil.copy(model / "consolidated.safetensors", model / "model.safetensors")
        assert weights_bytes(model) == size
        assert load_model(find(str(model)), auto_class=None, device="cpu", dtype="auto")


def test_layers_with_settings_of_their_own_are_refused_by_name(tmp_path, command_line):
    """Reading such a setting raises; a small copy would have one number for all layers."""
    if not hasattr(transformers, "Gemma4TextConfig"):
        pytest.skip("this transformers has no such configs")
    settings = {
        "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 96,
        "num_key_value_heads": 4, "head_dim": 8, "global_head_dim": 16, "attention_k_eq_v": True,
        "num_global_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": 40, "vocab_size_per_layer_input": 96, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8, "pad_token_id": 0,
    }  # fmt: skip
    gemma = transformers.Gemma4ForCausalLM._from_config(transformers.Gemma4TextConfig(**settings))
    with pytest.raises(UnsupportedError, match="layers differ in num_key_value_heads") as raised:
        inspect(gemma)
    assert three_parts(raised.value)
    build("llama").save_pretrained(tmp_path / "uneven")
    config = json.loads((tmp_path / "uneven" / "config.json").read_text())
    for setting in ("num_key_value_heads", "intermediate_size", "head_dim"):
        uneven = {**config, "per_layer_config": {"1": {setting: 2}}}
        (tmp_path / "uneven" / "config.json").write_text(json.dumps(uneven))
        code, _out, err = command_line("inspect", tmp_path / "uneven")
        assert code == 2, err
        assert "layers settings of their own" in err
        assert "unexpected" not in err
        assert "per_layer_config" in err


# --- files


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("a.safetensors", "model.safetensors.index.json", "README.md", "headprune.yaml"),
        *("manifest.json", "generation_config.json", "modules.json", "1_Pooling/config.json"),
        *("vocab.txt", "chat_template.jinja", "adapter_config.json"),
    ],
)
def test_a_pipe_among_the_files_of_a_model_is_named_before_anything_opens_it(model, name):
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(ModelError, match="a pipe") as raised:
        find(str(model))
    assert path.name in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "tokenizer.json", "README.md", "modules.json"),
        *("1_Pooling", "1_Pooling/config.json", "headprune.yaml", "generation_config.json"),
        *("bpe.codes", "vocab", "2_Dense", "2_Dense/model.safetensors"),
    ],
)
def test_no_file_is_read_or_copied_through_a_link_that_leaves(model, name, tmp_path):
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "config.json").write_text("PRIVATE")
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(secret if name == "1_Pooling" else secret / "config.json")
    with pytest.raises(ModelError, match="a link to something outside") as raised:
        find(str(model))
    assert three_parts(raised.value)
    out = tmp_path / "out"
    out.mkdir()
    try:
        copy_side_files(model, out)
    except CheckpointError as error:
        assert three_parts(error)
    assert "PRIVATE" not in "".join(f.read_text() for f in out.rglob("*") if f.is_file())


def test_links_that_stay_are_followed_and_those_of_the_hubs_cache_stay(model, tmp_path):
    inside = model / "weights.bin"
    (model / "model.safetensors").rename(inside)
    (model / "model.safetensors").symlink_to("weights.bin")
    refuse_foreign_files(model)
    repository = tmp_path / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    find(str(snapshot))
    another = tmp_path / "link"
    another.symlink_to(snapshot)
    find(str(another))
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../../elsewhere.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json is a link"):
        find(str(snapshot))


def test_a_folder_that_is_called_like_a_part_of_the_hubs_cache_opens_nothing(model, tmp_path):
    home, blobs = tmp_path / "snapshots" / "mine", tmp_path / "blobs"
    home.parent.mkdir()
    model.rename(home)
    blobs.mkdir()
    (home / "tokenizer.json").rename(blobs / "0")
    (home / "tokenizer.json").symlink_to(blobs / "0")
    with pytest.raises(ModelError, match=r"tokenizer\.json is a link"):
        find(str(home))


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b", "/" + "y/" * 3_000])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(ModelError) as raised:
        find(name)
    assert three_parts(raised.value)


# --- configs

BAD = ("a", None, [], {}, -1, -(10**9), 0, 10**12, 1.5, True, [1, 2], {"a": 1}, "../../x")
MORE = (
    *("pruned_heads", "headprune", "auto_map", "dtype", "quantization_config", "id2label"),
    *("attn_implementation", "text_config", "label2id", "num_labels", "transformers_weights"),
)


@given(data=st.data())
@settings(max_examples=25)
def test_whatever_a_config_says_the_end_is_a_model_or_three_parts(saved, tmp_path_factory, data):
    """And what is built has the size that the weights have, or they are named as not belonging together."""
    config = json.loads((saved / "config.json").read_text())
    key = data.draw(st.sampled_from([*config, *MORE]))
    directory = Path(shutil.copytree(saved, tmp_path_factory.mktemp("c") / "m"))
    value = data.draw(st.sampled_from(BAD))
    (directory / "config.json").write_text(json.dumps({**config, key: value}))
    for use in (
        lambda: empty_model(find(str(directory), weights=False)),
        lambda: load_model(
            find(str(directory)), auto_class=None, device="cpu", notify=lambda _text: None
        ),
    ):
        try:
            use()
        except HeadpruneError as error:
            assert three_parts(error), error


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**4},
        {"n_layer": 10**9},
        {"vocab_size": 10**12},
        {"num_labels": 10**9},
        {"hidden_size": 10**12},
        {"num_attention_heads": 10**9},
        {"num_experts": 10**9},
        {"text_config": {"num_hidden_layers": 10**6}},
        {"layers": [{"depths": [10**6]}]},
        {"hidden_size": -(10**6)},
        *(
            {name: -1}
            for name in (
                "num_attention_heads",
                "n_layer",
                "d_model",
                "vocab_size",
                "encoder_layers",
            )
        ),
        {"text_config": {"num_key_value_heads": -4}},
        {"architectures": [5]},
        {"architectures": {"a": 1}},
        {"headprune": 5},
        {"headprune": {"removed": 5}},
        {"headprune": {"original": {}}},
        {"headprune": {"sites": {"x": {}}}},
        {"headprune": {"original": {"num_attention_heads": "many"}}},
        {"headprune": {"source": {"name": ["x"]}}},
        {"pruned_heads": {"x": "y"}},
        {"pruned_heads": {"0": 5}},
        {"attn_implementation": "somebody/kernel"},
        {"text_config": {"_attn_implementation_internal": "somebody/kernel"}},
        {"experts_implementation": "somebody/kernel"},
        {"transformers_weights": "../x.safetensors"},
    ],
)
def test_absurd_sizes_wrong_types_and_names_of_code_are_refused_before_anything_is_built(change):
    with pytest.raises(ModelError) as raised:
        check_settings({"model_type": "bert", **change}, where="config.json")
    assert three_parts(raised.value)
    named = raised.value.what.removeprefix("the config's ")
    assert named.split(" ")[0].split(".")[0] in json.dumps(change), "the setting is named"


def test_the_largest_models_that_there_are_pass():
    check_settings(
        {
            "num_hidden_layers": 128,
            "hidden_size": 18_432,
            "vocab_size": 1_000_000,
            "num_attention_heads": 256,
            "num_experts": 16_384,
            "max_position_embeddings": 10_485_760,
            "ngram_vocab_size_base": 20_000_000,
            "image_token_id": 262_145,
            "vision_feature_layer": -2,
            "id2label": {str(n): "x" for n in range(22_000)},
            "attn_implementation": "sdpa",
            "time_step_limit": [0.0, math.inf],
        },
        where="config.json",
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_config_far_larger_than_its_weights_is_refused_before_memory_is_taken(tmp_path, family):
    build(family).save_pretrained(tmp_path)
    rewrite(tmp_path / "config.json", lambda c: {**c, "vocab_size": 50_000_000})
    with pytest.raises(ModelError, match="and the weights hold") as raised:
        load_model(find(str(tmp_path)), auto_class=None, device="cpu")
    assert three_parts(raised.value)


def test_tables_of_positions_by_positions_are_refused_before_memory_is_taken(tmp_path):
    config = transformers.GPTBigCodeConfig(
        n_layer=2, n_embd=48, n_head=6, vocab_size=96, n_positions=64
    )
    transformers.GPTBigCodeForCausalLM(config).save_pretrained(tmp_path)
    rewrite(tmp_path / "config.json", lambda c: {**c, "n_positions": 10**5})
    with pytest.raises(ModelError, match="GB"):
        load_model(find(str(tmp_path)), auto_class=None, device="cpu")
    with pytest.raises(UnsupportedError, match="GB"):
        inspect(empty_model(find(str(tmp_path), weights=False)))


@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file"])
def test_a_tokenizer_is_read_from_its_own_directory(key, tmp_path):
    def directory(name, words):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        BertTokenizer(dict(zip(words, range(99), strict=False))).save_pretrained(tmp_path / name)
        if key == "vocab_file":
            (tmp_path / name / "tokenizer.json").unlink()
            (tmp_path / name / "vocab.txt").write_text("\n".join(words))
        return tmp_path / name

    own, elsewhere = directory("own", ["cat", "dog"]), directory("elsewhere", ["dog", "secret"])
    config = own / "tokenizer_config.json"
    named = {"vocab_file": elsewhere / "vocab.txt", "tokenizer_file": elsewhere / "tokenizer.json"}
    config.write_text(json.dumps({**json.loads(config.read_text()), key: str(named[key])}))
    (own / "config.json").write_text(json.dumps({"model_type": "bert"}))
    found = load_tokenizer(find(str(own), weights=False)).get_vocab()
    assert {"cat", "dog"} < set(found)
    assert "secret" not in found


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "preprocessor_config.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "config_sentence_transformers.json",
    ],
)
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}}', b"\xff"])
def test_settings_that_are_copied_at_the_end_are_read_at_the_start(model, name, content):
    (model / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        find(str(model))


@pytest.mark.parametrize("longest", ["512", [512], {}])
def test_a_tokenizer_whose_longest_text_is_no_number_is_named(model, longest):
    rewrite(model / "tokenizer_config.json", lambda old: {**old, "model_max_length": longest})
    with pytest.raises(ModelError, match="model_max_length of .* not a number"):
        load_tokenizer(find(str(model)))


# --- what is written

names_of_code = st.sampled_from(["auto_map", "custom_pipelines"])


@given(content=st.dictionaries(st.text() | names_of_code, values | names_of_code, max_size=5))
@settings(max_examples=25)
def test_no_settings_that_we_write_name_somebodys_code(tmp_path_factory, content):
    directory = tmp_path_factory.mktemp("d")
    foreign = {"AutoTokenizer": ["somebody/repo--tok.Evil", None]}
    ours = {"AutoModel": "modeling_headprune.HeadPrunedBertModel"}
    kept = {name: value for name, value in content.items() if name not in ("auto_map", "inner")}
    kept.pop("custom_pipelines", None)
    if "\\u0000" in json.dumps(kept):
        return
    (directory / "1_Pooling").mkdir()
    names = (
        "tokenizer_config.json",
        "preprocessor_config.json",
        "config.json",
        "1_Pooling/config.json",
    )
    for name in names:
        nested = {**kept, "auto_map": foreign, "inner": [{"auto_map": foreign, "a": 1}]}
        (directory / name).write_text(json.dumps(nested))
    drop_foreign_code(directory)
    for path in (directory / name for name in names):
        assert "auto_map" not in json.loads(path.read_text()).get("inner", [{}])[0]
        assert json.loads(path.read_text())["inner"] == [{"a": 1}]
        assert "somebody" not in path.read_text()
    (directory / "config.json").write_text(json.dumps({"auto_map": ours}))
    drop_foreign_code(directory)
    assert json.loads((directory / "config.json").read_text()) == {"auto_map": ours}
