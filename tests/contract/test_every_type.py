"""Every model type that transformers ships, held to one contract; the full run is ``./scripts/support``."""

import subprocess
import sys
from pathlib import Path

import pytest
import support
import transformers
import zoo
from law import examine, outputs
from reload_cases import identical
from zoo import model_types
from zoo_tables import COMMON
from zoo_variants import VARIANTS

import headprune as hp

# Types whose mathematics forbids it are refused by name; those that most people use are not among them.
PAGE = support.PAGE.read_text(encoding="utf-8") if support.PAGE.exists() else ""
PINS = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8").splitlines()
IS_PINNED = f"transformers=={transformers.__version__}" in PINS
IS_OF_THIS_VERSION = f"transformers {transformers.__version__}," in PAGE
"""Rows may differ from one version of transformers to the next; the laws may not."""


# Each second of them; all at night.
EACH_TIME = {*[*COMMON, *VARIANTS][::2]}


@pytest.mark.parametrize(
    "name",
    [
        name if name in EACH_TIME else pytest.param(name, marks=pytest.mark.nightly)
        for name in (*COMMON, *VARIANTS)
    ],
)
def test_the_contract_holds(name):
    model_type, _settings = VARIANTS.get(name, (name, {}))
    if model_type not in model_types():
        assert not IS_PINNED
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    verdict = examine(name)
    assert verdict.found, verdict.reason
    if IS_OF_THIS_VERSION:
        assert support.row(verdict) in PAGE.splitlines(), (
            "docs/support.md is stale: ./scripts/support"
        )


@pytest.mark.skipif(not IS_PINNED, reason="docs/support.md is of the pinned transformers")
def test_the_page_speaks_of_every_type_of_the_installed_transformers():
    assert IS_OF_THIS_VERSION, "docs/support.md is stale: ./scripts/support"
    assert [name for name in model_types() if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("name", ["neomme", "gemma4_text"])
def test_what_layers_differ_in_beside_heads_stays(name, tmp_path):
    """A layer of Gemma 4 has wider heads, one of NeoMME a window, each told in the config of that layer."""

    def told(model):
        layers = model.config.to_dict()["per_layer_config"]
        counts = ("num_attention_heads", "num_key_value_heads")
        kept = {
            int(layer): {key: value for key, value in settings.items() if key not in counts}
            for layer, settings in layers.items()
        }
        return {layer: settings for layer, settings in kept.items() if settings}

    if name not in model_types() or not hasattr(transformers.PreTrainedConfig, "is_heterogeneous"):
        assert not IS_PINNED
        pytest.skip(f"transformers {transformers.__version__} has no {name} whose layers differ")
    model = zoo.build(name)
    before, inputs = told(model), zoo.inputs(model)
    assert before
    anatomy = hp.inspect(model)
    site = anatomy.sites[0]
    hp.prune(model, [head for head in anatomy.heads if head.site == site.id][: site.group_size])
    assert told(model) == before
    hp.save(model, tmp_path / "small")
    again = hp.load(tmp_path / "small", attn_implementation="eager")
    assert told(again) == before
    assert identical(outputs(again, inputs), outputs(model, inputs))


def test_counts_of_an_earlier_cut_stay_at_the_next():
    """Also where layers differed in something else before: reading the number of heads of all layers would raise."""
    sizes = {"hidden_size": 32, "head_dim": 8, "num_hidden_layers": 3, "intermediate_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Qwen3Config(**sizes, **heads, vocab_size=96, initializer_range=0.4)
    if not hasattr(config, "is_heterogeneous"):
        assert not IS_PINNED
        pytest.skip(f"transformers {transformers.__version__} has no layers that differ")
    config.per_layer_config = {2: {"sliding_window": 7}}
    model = transformers.Qwen3ForCausalLM(config).eval()
    for number, gone in enumerate(({"L0": [0, 1]}, {"L1": [2, 3]}, {"L2": [0, 1]}), 1):
        hp.prune(model, gone)
        told = model.config.to_dict()["per_layer_config"]
        counts = {
            int(layer): of_layer.get("num_attention_heads") for layer, of_layer in told.items()
        }
        assert counts == {layer: 2 if layer < number else None for layer in {*range(number), 2}}
        assert {int(layer): of_layer for layer, of_layer in told.items()}[2]["sliding_window"] == 7


def test_a_bias_belongs_to_heads_where_its_weight_does():
    """A norm before CvT's keys: a softmax doesn't see its bias, whose gradients are rounding alone."""
    model = zoo.build("cvt")
    sliced = {item.parameter for site in hp.inspect(model).sites for item in site.slices}
    parameters = dict(model.named_parameters())
    biases = {name for name in sliced if name.endswith(".bias")}
    weights = {name.removesuffix("bias") + "weight" for name in biases}
    assert biases
    assert weights & {*parameters} <= sliced


@pytest.mark.nightly
def test_the_full_run_runs():
    """One type, as ``./scripts/support bert`` does, which writes nothing."""
    script = Path(__file__).with_name("every_type.py")
    ran = subprocess.run(
        [sys.executable, str(script), "bert"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "1 types with attention, 1 found and exact, 0 broke a law" in ran.stdout


def test_at_least_sixty_types_are_in_the_nightly_run_and_half_of_them_in_each():
    assert len(set(COMMON)) >= 60
    assert len(EACH_TIME & set(COMMON)) >= 30
