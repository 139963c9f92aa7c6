"""Private parts of transformers and torch that headprune reaches for: here they are; where one is not, that is said once."""

import logging
import subprocess
import sys

import pytest
import torch
import transformers
from families import build, token_inputs
from torch import nn

from headprune import errors
from headprune.anatomy.probe import _asking_for_a_cache
from headprune.anatomy.trace import AttentionCall, LayerCall, record
from headprune.models.stream import names_in_memory


@pytest.fixture(autouse=True)
def _said_anew():
    errors.warn_missing.cache_clear()
    yield
    errors.warn_missing.cache_clear()


def test_a_cache_is_handed_over_by_the_name_that_a_forward_has_for_it():
    """Until transformers 5.24 that is ``past_key_values``, then ``cache``."""
    model = build("gpt2")

    class Later(type(model)):
        def forward(self, input_ids=None, cache=None, use_cache=None):
            return super().forward(input_ids)

    class Earlier(type(model)):
        def forward(self, input_ids=None, past_key_values=None, use_cache=None):
            return super().forward(input_ids)

    for kind, name in ((Later, "cache"), (Earlier, "past_key_values")):
        asked = _asking_for_a_cache(kind(model.config))
        assert asked.keys() == {"use_cache", name}
        assert isinstance(asked[name], transformers.Cache)


class _Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_none_is_missing_here(caplog):
    """Fails with the first transformers or torch that moves one."""
    model = build("llama")
    with caplog.at_level(logging.WARNING, logger="headprune"):
        calls = record(model, token_inputs()).calls
        functional = record(_Functional(), {"x": torch.randn(2, 3, 8)}).calls
        names = names_in_memory(model, model.state_dict())
    assert any(isinstance(call, AttentionCall) for call in calls)
    assert any(isinstance(call, LayerCall) and call.called == "function" for call in functional)
    assert names == {name: name for name in model.state_dict()}
    assert not caplog.records


def test_an_attention_interface_that_moved_is_said_once(monkeypatch, caplog):
    model = build("bert")
    monkeypatch.delattr("transformers.AttentionInterface.get_interface")
    monkeypatch.setattr("transformers.models.bert.modeling_bert.ALL_ATTENTION_FUNCTIONS", _Plain())
    for _ in range(2):
        calls = record(model, token_inputs()).calls
    assert not any(isinstance(call, AttentionCall) for call in calls)
    assert [r.levelname for r in caplog.records if "get_interface" in r.getMessage()] == ["WARNING"]


class _Plain:
    """Looks attention functions up as models do, in another class."""

    @staticmethod
    def get_interface(_name, default):
        return default


def test_torch_without_the_name_that_is_patched_is_said_once_and_runs(monkeypatch, caplog):
    monkeypatch.setattr("headprune.anatomy.trace._ASKS_FOR_MODE", "has_another_name")
    model, inputs = _Functional(), {"x": torch.randn(2, 3, 8)}
    for _ in range(2):
        calls = record(model, inputs).calls
    assert not any(call.called == "function" for call in calls if isinstance(call, LayerCall))
    assert len([r for r in caplog.records if "has_another_name" in r.getMessage()]) == 1


def test_renamings_that_moved_are_said_once_when_streaming(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    model = build("llama")
    for _ in range(2):
        assert len(names_in_memory(model, model.state_dict())) == len(model.state_dict())
    assert len([r for r in caplog.records if "renamed" in r.getMessage()]) == 1


def test_the_file_beside_the_weights_says_what_it_cannot_do():
    script = (
        "import sys, transformers, transformers.models.mixtral.modeling_mixtral\n"
        "sys.modules['transformers.conversion_mapping'] = None\n"
        "from headprune.surgery import modeling_headprune as travels\n"
        "travels._keep_weight_conversions('HeadPrunedMixtralModel', transformers.MixtralModel)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "weights load by their own names alone" in done.stderr
