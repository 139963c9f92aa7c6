"""Every model type that transformers ships, held to one contract; the full run is ``./scripts/support``."""

import pytest
import support
import transformers
from law import examine
from zoo import model_types
from zoo_tables import COMMON
from zoo_variants import VARIANTS

# Types whose mathematics forbids it are refused by name; those that most people use are not among them.
PAGE = support.PAGE.read_text(encoding="utf-8") if support.PAGE.exists() else ""


@pytest.mark.parametrize("name", [*COMMON, *VARIANTS])
def test_the_contract_holds(name):
    verdict = examine(name)
    assert verdict.found, verdict.reason
    if PAGE:
        assert support.row(verdict) in PAGE.splitlines(), (
            "docs/support.md is stale: ./scripts/support"
        )


@pytest.mark.skipif(not PAGE, reason="docs/support.md is not written yet: ./scripts/support")
def test_the_page_speaks_of_every_type_of_the_installed_transformers():
    assert f"transformers {transformers.__version__}," in PAGE, "stale: ./scripts/support"
    assert [name for name in model_types() if f"`{name}`" not in PAGE] == []


def test_at_least_sixty_types_are_in_the_default_run():
    assert len(set(COMMON)) >= 60
