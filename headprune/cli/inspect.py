"""``headprune inspect``."""

from typing import Any

from headprune.cli.options import Call, Model

OPTIONS: dict[str, Any] = {"model": Model}


def command(call: Call) -> None:
    """Show where a model's heads are, and what can't be pruned and why."""
    from headprune import pipeline
    from headprune.heads import dump_json
    from headprune.report.terminal import key_value_table

    anatomy = pipeline.look(call.recipe, voice=call.talk)
    sites: list[dict[str, Any]] = [
        {
            "name": str(site.id),
            "path": site.path,
            "heads": [f"{site.id}.H{head}" for head in site.heads],
            "key_value_heads": len(site.groups(site.heads)),
            "head_dim": site.head_dim,
            "min_heads": site.min_heads,
        }
        for site in anatomy.sites
    ]
    if call.json:
        document = {
            "format": 1,
            "model_type": anatomy.model_type,
            "num_heads": len(anatomy.heads),
            "sites": sites,
            "refused": dict(anatomy.refused),
        }
        call.write(dump_json(document))
        return
    rows: dict[str, Any] = {
        site["name"]: f"{len(site['heads'])} heads, {site['key_value_heads']} key/value heads, "
        f"width {site['head_dim']}   {site['path']}"
        for site in sites
    }
    summary = {"model type": anatomy.model_type, "heads": len(anatomy.heads)}
    call.show(key_value_table({**summary, **rows, **anatomy.refused}))
