"""Pruned models, made and saved once for all tests of loading."""

import pytest
import reload_cases


@pytest.fixture(scope="session", autouse=True)
def _modules_of_saved_models(tmp_path_factory):
    """Let transformers copy the file beside the weights to a place that goes away."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        yield


@pytest.fixture(scope="session")
def case_of(tmp_path_factory):
    """Return a function from a name of ``reload_cases`` to the pruned model, saved."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = reload_cases.make(name, tmp_path_factory.mktemp(name) / "saved")
        return made[name]

    return get


@pytest.fixture
def case(request, case_of):
    """Return one case; parametrise it indirectly, by name."""
    return case_of(request.param)
