"""The page of ``headprune view``: attention of every head on one text, in one file that asks nobody for anything."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from headprune.analysis.catalogue import ROLES
from headprune.analysis.maps import AttentionView
from headprune.heads import COLOURS
from headprune.report.html import generator, source_of_policy

_HERE = Path(__file__).parent


def attention_page(view: AttentionView) -> str:
    """Return the page: its data, style and script inside, and a policy that lets it run these and fetch nothing.

    Args:
        view: What it shows. Texts of tokens are strangers': they only ever become text.
    """
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("view.css", "view.js"))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (_HERE / "view.html.jinja").read_text(encoding="utf-8")
    )
    removed = sum(head.is_removed for head in view.heads)
    return template.render(
        generator=Markup(generator("view")),
        name=view.model.get("name") or "a model",
        view=view,
        num_heads=len(view.heads),
        num_removed=removed,
        style=Markup(style),
        script=Markup(script),
        style_hash=source_of_policy(style),
        script_hash=source_of_policy(script),
        data=_data(view),
    )


def _data(view: AttentionView) -> Markup:
    """Return what the script reads, as JSON in which no ``<`` can end the element that it stands in."""
    shown: dict[str, Any] = view.model_dump(
        mode="json", include={"tokens", "heads", "maps", "scores"}
    )
    shown["signs"] = {
        name: {"sign": row.sign, "help": row.help} for name, row in ROLES.items() if row.sign
    }
    shown["colours"] = COLOURS
    text = json.dumps(shown, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))
