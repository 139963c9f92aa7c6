"""A model is what was given, or it is refused before any work, in words that name the true cause."""

import json
import shutil
import warnings
from inspect import unwrap
from pathlib import Path

import pytest
import torch
import transformers
from families import build, token_inputs, toy_tokenizer
from safetensors.torch import load_file, save_file

import headprune as hp
from headprune.errors import HeadpruneError, ModelError, missing_package
from headprune.models.find import find
from headprune.models.load import load_model
from headprune.models.tokenizer import load_tokenizer

FAMILIES = ("bert", "gpt2", "llama")
TASK_CLASS = {
    "bert": "AutoModelForSequenceClassification",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("saved") / request.param
    build(request.param).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def model(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename(directory, change):
    """Give every tensor another name; those that have none are left out."""
    path = directory / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(path).items()}
    tensors.pop(None, None)
    save_file(tensors, path, {"format": "pt"})


def refused(use):
    """Return the error, which must have three parts, none of them transformers' own words."""
    with pytest.raises(HeadpruneError) as raised:
        use()
    text = str(raised.value)
    assert text.startswith("error: ")
    assert "\n  in:   " in text
    assert "\n  try:  " in text
    for word in ("ignore_mismatched_sizes", "above report", "unexpected", "choose the --task"):
        assert word not in text
    return raised.value


def loaded(directory, **options):
    return load_model(find(str(directory)), **{"auto_class": None, "device": "cpu", **options})


# --- code of its own


def _own_code(key, value, **more):
    return lambda directory: edit(
        directory / "config.json",
        **{key: {"AutoModel": value} if key == "auto_map" else value},
        **more,
    )


OWN_CODE = {
    "auto_map": (_own_code("auto_map", "modeling_own.OwnModel"), "modeling_own.OwnModel"),
    "of another repository": (_own_code("auto_map", "a/b--modeling.M"), "a/b--modeling.M"),
    "that calls itself ours": (_own_code("auto_map", "modeling_headprune_x.M"), "headprune_x"),
    "an unknown class": (_own_code("architectures", ["JinaModel"]), "JinaModel"),
    "a class of another type": (_own_code("architectures", ["T5Model"]), "T5Model"),
    "a name that is no model": (_own_code("architectures", ["pipeline"]), "pipeline"),
    "a config alone": (
        lambda d: edit(d / "config.json", auto_map={"AutoConfig": "configuration_own.C"}),
        "configuration_own.C",
    ),
}


@pytest.mark.parametrize(("make", "words"), OWN_CODE.values(), ids=OWN_CODE)
def test_code_of_its_own_is_refused_unless_the_stock_class_is_asked_for(model, make, words):
    (model / "modeling_own.py").write_text("raise SystemExit('it ran')\n")
    plain = loaded(model)
    make(model)
    offered = f"transformers' own {plain.config.model_type} model"
    for weights in (True, False):
        error = refused(lambda weights=weights: find(str(model), weights=weights))
        assert words in error.what
        assert "`stock_class=True`" in error.hint
        assert offered in error.hint
    refused(lambda: hp.load(model, device="cpu"))
    source = find(str(model), stock_class=True)
    assert words in source.own_code
    said = []
    auto_class = TASK_CLASS[model.name]
    taken = load_model(source, auto_class=auto_class, device="cpu", notify=said.append)
    assert any(words in text and "isn't run" in text for text in said)
    inputs = token_inputs()
    assert type(taken) is type(plain)
    assert torch.equal(taken(**inputs)[0], plain(**inputs)[0])


def test_names_of_our_own_code_or_of_a_tokenizer_need_no_word_of_the_user(model):
    edit(
        model / "config.json",
        auto_map={
            "AutoModel": "modeling_headprune.HeadPrunedX",
            "AutoConfig": "me/mine--modeling_headprune.HeadPrunedY",
            "AutoTokenizer": ["somebody--tokenization.T", None],
            "AutoImageProcessor": "somebody--processing.P",
        },
    )
    assert find(str(model)).own_code is None
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", None]})
    assert any("tokenization.T" in note for note in find(str(model)).notes), "it is said"


def test_a_type_that_transformers_lacks_has_no_stock_class_to_offer(model):
    edit(model / "config.json", model_type="own", auto_map={"AutoModel": "m.M"})
    error = refused(lambda: find(str(model), stock_class=True))
    assert "m.M" in error.what
    assert "`stock_class=True`" not in error.hint


COMMANDS = {
    "inspect": (),
    "eval": ("--data", "d.csv"),
    "score": ("--data", "d.csv"),
    "sweep": ("--data", "d.csv"),
    "prune": ("--data", "d.csv", "--keep", "0.5", "--out", "o"),
    "convert": ("--out", "o"),
    "export": ("--gguf", "o.gguf"),
}
CAUSES = {
    "own code": ({"auto_map": {"AutoModel": "own.M"}}, "own.M"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised (gptq)"),
    "no method": ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
    "older key": ({"compression_config": {"format": "x"}}, "quantised"),
    "inside": (
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
        "quantised (awq)",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_alike_before_loading(command, here, command_line):
    plain = json.loads(Path("m/config.json").read_text())
    for name, (change, words) in CAUSES.items():
        Path("m/config.json").write_text(json.dumps({**plain, **change}))
        code, out, err = command_line(command, "m", *COMMANDS[command])
        assert (code, out) == (2, ""), name
        assert words in err, name
        assert "unexpected" not in err, name
        assert not [path for path in Path().iterdir() if path.name.startswith("o")]


def test_what_was_chosen_is_said_recorded_and_no_code_comes_along(here, command_line):
    edit(Path("m/config.json"), auto_map={"AutoModel": "own.M"})
    words = (
        "--data",
        "d.csv",
        "--keep",
        "0.5",
        "--steps",
        "1",
        "--reconstruct",
        "none",
        "--max-length",
        "16",
    )
    code, _out, err = command_line("prune", "m", "--stock-class", *words, "--out", "o")
    assert code == 0, err
    assert "careful: m names code of its own (AutoModel: own.M), which isn't run" in err
    config = json.loads(Path("o/config.json").read_text())
    assert config["headprune"]["source"]["own_code"] == "AutoModel: own.M"
    assert "own.M" not in json.dumps(config.get("auto_map", {}))
    assert "stock_class: true" in Path("o/headprune.yaml").read_text()
    assert find("o").own_code is None, "what was pruned loads without being asked again"
    code, _out, err = command_line("eval", "o", "--data", "d.csv", "--json")
    assert code == 0, err


# --- adapters


def adapter(folder, base="some/base"):
    folder.mkdir(exist_ok=True)
    content = {"peft_type": "LORA", "base_model_name_or_path": base, "target_modules": ["x"]}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file(
        {"base_model.model.x.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors"
    )


def test_adapters_beside_a_model_or_alone_are_named_before_any_work(model, tmp_path):
    adapter(tmp_path / "alone")
    adapter(tmp_path / "nested")
    shutil.move(tmp_path / "nested", tmp_path / "run")
    (tmp_path / "trained").mkdir()
    adapter(tmp_path / "trained" / "checkpoint-5")
    adapter(tmp_path / "nameless", base=None)
    adapter(tmp_path / "described")
    shutil.copy(model / "config.json", tmp_path / "described")
    for name in ("alone", "run", "trained", "nameless", "described"):
        for weights in (True, False):
            error = refused(lambda n=name, w=weights: find(str(tmp_path / n), weights=w))
            assert "adapters alone" in error.what
            assert "merge_and_unload" in error.hint
            assert ("some/base" in error.what) == (name != "nameless")
    adapter(model)
    error = refused(lambda: find(str(model), weights=False))
    assert "a model and adapters beside it" in error.what
    assert "merge_and_unload" in error.hint
    (model / "adapter_config.json").unlink()
    (model / "adapter_model.safetensors").rename(tmp_path / "aside")
    adapter(model / "speech")
    assert any("speech/" in note for note in find(str(model)).notes)
    adapter(model / "0_Transformer")
    assert "adapters" in refused(lambda: find(str(model))).what


def test_a_damaged_adapter_config_is_named(model):
    (model / "adapter_config.json").write_text("{")
    assert "adapter_config.json is damaged" in refused(lambda: find(str(model))).what


# --- weights that aren't those of the model

NAMES = {
    "compiled": (lambda n: f"_orig_mod.{n}", "torch.compile", "model._orig_mod.save_pretrained"),
    "a compiled part": (lambda n: n.replace(".0.", ".0._orig_mod.", 1), "torch.compile", "names"),
    "parallel": (lambda n: f"module.{n}", "DataParallel", "model.module.save_pretrained"),
    "both": (lambda n: f"_orig_mod.module.{n}", "torch.compile", "names"),
    "sharded": (lambda n: f"_fsdp_wrapped_module.{n}", "FSDP", "names"),
    "in a trainer": (lambda n: f"student.net.{n}", "every name in the weights", "'student.net.'"),
    "adapters": (lambda n: n.replace(".weight", ".base_layer.weight"), "adapters", "merge_and_unload"),
    "lora": (lambda n: n.replace(".weight", ".lora_A.default.weight"), "adapters", "merge_and_unload"),
    "packed": (lambda n: n.replace(".weight", ".qweight"), "quantised", "dequantise"),
    "another model's": (lambda n: f"x{hash(n)}.y", "none of the weights' names", "model_type"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "what", "hint"), NAMES.values(), ids=NAMES)
def test_names_in_the_weights_say_what_was_saved(model, change, what, hint):
    rename(model, change)
    error = refused(lambda: loaded(model))
    assert what in error.what
    assert hint in error.hint
    assert "--task" not in error.hint


def test_what_a_class_reads_must_be_in_the_weights_and_the_hint_fits(model):
    names = sorted(load_file(model / "model.safetensors"))
    inside = next(name for name in names if "1" in name.split(".") and name.endswith("weight"))
    rename(model, lambda name: None if name == inside else name)
    error = refused(lambda: loaded(model))
    assert inside in error.what
    assert "every file" in error.hint


@pytest.mark.parametrize(("family", "reads"), [("bert", "bert.pooler"), ("roberta", None)])
def test_a_pooler_is_random_numbers_where_it_is_missing_and_read(tmp_path, family, reads):
    build(family).save_pretrained(tmp_path)
    rename(tmp_path, lambda name: None if "pooler" in name else name)
    if reads is None:
        loaded(tmp_path)
        return
    error = refused(lambda: loaded(tmp_path))
    assert reads in error.what
    assert "random" in error.what
    said = []
    loaded(tmp_path, auto_class="AutoModel", notify=said.append)
    assert any("pooler" in text and "random" in text for text in said)


@pytest.mark.parametrize(
    ("family", "cls"),
    [("bert", "BertModel"), ("llama", "LlamaModel"), ("gpt2", "GPT2Model"), ("roberta", "RobertaForMaskedLM")],
)  # fmt: skip
def test_a_head_that_was_never_trained_is_named(tmp_path, family, cls):
    build(family, cls=cls).save_pretrained(tmp_path)
    error = refused(lambda: loaded(tmp_path, auto_class="AutoModelForSequenceClassification"))
    assert cls in error.what
    assert "train" in error.hint


@pytest.mark.parametrize(
    ("family", "cls"),
    [("llama", "LlamaForTokenClassification"), ("bert", "BertForMultipleChoice"), ("qwen2", "Qwen2ForQuestionAnswering")],
)  # fmt: skip
def test_a_head_that_classifies_something_else_is_no_head_for_texts(tmp_path, family, cls):
    build(family, cls=cls, num_labels=1).save_pretrained(tmp_path)
    error = refused(lambda: loaded(tmp_path, auto_class="AutoModelForSequenceClassification"))
    assert cls in error.what


@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", "classifier"), ("roberta", "classifier"), ("gpt2", "score"), ("llama", "score")],
)
def test_a_head_that_a_task_drops_is_said(tmp_path, family, head):
    cls = {"gpt2": "GPT2ForSequenceClassification", "llama": "LlamaForSequenceClassification"}
    build(family, cls=cls.get(family)).save_pretrained(tmp_path)
    said = []
    plain = loaded(tmp_path, notify=said.append)
    assert said == []
    bare = loaded(tmp_path, auto_class="AutoModel", notify=said.append)
    assert type(bare) is not type(plain)
    assert any(head in text and "doesn't read" in text for text in said)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        hp.load(tmp_path, auto_class="AutoModel", device="cpu")
    assert any("doesn't read" in str(warning.message) for warning in heard)


def test_another_size_is_said_with_both_sizes(model):
    config = json.loads((model / "config.json").read_text())
    edit(model / "config.json", vocab_size=config["vocab_size"] + 4)
    error = refused(lambda: loaded(model))
    assert "96 x" in error.what
    assert "100 x" in error.what
    assert "vocab_size" in error.hint


# --- packages that aren't there


@pytest.mark.parametrize(
    ("key", "kernel"),
    [("attn_implementation", "flash_attention_2"), ("_attn_implementation", "flash_attention_3")],
)
def test_an_attention_kernel_of_the_config_falls_back_with_a_word(model, key, kernel):
    plain = loaded(model)
    edit(model / "config.json", **{key: kernel})
    said = []
    taken = loaded(model, notify=said.append)
    assert any(kernel in text for text in said)
    inputs = token_inputs()
    assert taken.config._attn_implementation == plain.config._attn_implementation
    assert torch.equal(taken(**inputs)[0], plain(**inputs)[0])
    edit(model / "config.json", **{key: "eager"})
    assert loaded(model, notify=said.append).config._attn_implementation == "eager"
    error = refused(lambda: loaded(model, attn_implementation=kernel))
    assert "flash" in error.what
    assert "pip install" in error.hint


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("\nX requires the timm library but it was not found. You can install it with pip:\n`pip install timm`", "timm"),
        ("X requires the SentencePiece library but it was not found. Check out", "sentencepiece"),
        ("the package flash_attn seems to be not installed.", "flash_attn"),
        ("This needs extras: `pip install -U 'mamba-ssm>=2'`", "mamba-ssm"),
        ("cannot import name 'a' from 'b'", None),
        ("No such file", None),
    ],
)  # fmt: skip
def test_a_package_is_named_only_where_it_is_missing(text, package):
    assert missing_package(ImportError(text)) == package


def test_a_module_that_is_missing_is_named_through_what_is_raised_of_it():
    with pytest.raises(RuntimeError) as raised:
        try:
            import no_such_package_here  # noqa: F401
        except ImportError as error:
            raise RuntimeError("could not import X") from error
    assert missing_package(raised.value) == "no_such_package_here"


TOKENIZERS = {
    "none": (lambda d: None, "has no tokenizer", "beside the weights"),
    "damaged": (lambda d: (d / "tokenizer.json").write_text("{}"), "can't be loaded", "again"),
    "no vocabulary": (
        lambda d: (d / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}'),
        "has no vocabulary",
        "vocabulary",
    ),
}


@pytest.mark.parametrize(("make", "what", "hint"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_what_is_wrong_with_a_tokenizer_is_named(model, make, what, hint):
    for path in model.glob("*token*"):
        path.unlink()
    make(model)
    error = refused(lambda: load_tokenizer(find(str(model))))
    assert what in error.what
    assert hint in error.hint


# --- objects in memory


class _WithHead(torch.nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.pretrained_model = inside


def _with_compiled_part(model):
    model.encoder.layer[1] = torch.compile(model.encoder.layer[1], backend="eager")
    return model


def _with_adapters(model):
    import peft

    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    return model


def _peft(model):
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))


WRAPPED = {
    "in another module": (_WithHead, "model.pretrained_model"),
    "in a list": (lambda m: torch.nn.Sequential(m), "model[0]"),
    "a part": (_with_compiled_part, "model.encoder.layer.1._orig_mod"),
    "peft": (_peft, "merge_and_unload"),
    "adapters inside": (_with_adapters, "merge"),
    "tensors": (lambda m: m.state_dict(), "the model inside"),
    "something else": (lambda m: "model", "PreTrainedModel"),
}  # fmt: skip


@pytest.mark.parametrize(("wrap", "words"), WRAPPED.values(), ids=WRAPPED)
def test_what_is_around_a_model_is_refused_by_every_function_and_the_model_inside_is_named(
    wrap, words, tmp_path
):
    inside = build("bert", cls="BertModel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = wrap(inside)
    batch = token_inputs()
    # As users call them: the tests' own checks of types stand before the functions.
    for use in (
        lambda: unwrap(hp.inspect)(given),
        lambda: unwrap(hp.score)(given, [batch], loss=lambda out, b: out[0].sum((1, 2))),
        lambda: next(unwrap(hp.masked)(given, ["L0.H0"])),
        lambda: unwrap(hp.prune)(given, ["L0.H0"]),
        lambda: unwrap(hp.save)(given, tmp_path / "out"),
    ):
        error = refused(use)
        assert isinstance(error, ModelError)
        assert words in error.hint
    assert not (tmp_path / "out").exists()


def test_a_class_from_a_models_directory_is_proven_as_itself_and_not_saved(tmp_path):
    made = type("OwnModel", (transformers.BertModel,), {"__module__": "transformers_modules.x.own"})
    own = build("bert", cls="BertModel")
    own.__class__ = made
    assert "own" in refused(lambda: hp.save(own, tmp_path / "out")).where
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["text_config", "vision_config"])
def test_code_named_for_a_part_is_refused_and_never_asked_for(field, tmp_path):
    """transformers would ask on the terminal whether to run it; with the stock class no part names any."""
    settings = transformers.LlavaConfig().to_dict()
    settings[field]["auto_map"] = {"AutoModel": "somebody/repo--model.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert "somebody/repo" in str(refused(lambda: find(str(tmp_path), weights=False)))
    config = find(str(tmp_path), weights=False, stock_class=True).config
    assert "auto_map" not in vars(getattr(config, field))
    assert "auto_map" not in json.dumps(config.to_dict())


def test_a_pointer_that_stands_for_the_weights_is_named(model):
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    with pytest.raises(ModelError, match="a pointer of git-lfs") as caught:
        find(str(model))
    assert caught.value.hint == "git lfs pull"


def test_code_of_a_model_that_fails_on_a_row_is_told_from_ours(run_here, command_line):
    """BART reads where its end tokens are, and takes rows of one number of them alone."""
    config = transformers.BartConfig(
        **{"vocab_size": 96, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 4},
        **{"decoder_ffn_dim": 4, "num_labels": 3, "eos_token_id": 8, "pad_token_id": 0},
    )
    transformers.BartForSequenceClassification(config).save_pretrained("m")
    toy_tokenizer().save_pretrained("m")
    rows = [f"w{n + 9} w{1 + n % 2} w1,{n % 2}\n" for n in range(12)]  # w1 has the id 8
    Path("d.csv").write_text("text,label\n" + "".join(rows))
    words = ("eval", "m", "--data", "d.csv", "--no-latency")
    code, _out, err = command_line(*words)
    assert code == 2, err
    assert "model's own code fails on what it was given: ValueError: All examples must" in err
    assert "transformers (modeling_bart)" in err
    assert "--batch-size 1" in err
    assert command_line(*words, "--batch-size", "1")[0] == 0
