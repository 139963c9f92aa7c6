"""``headprune score``."""

from headprune.cli.options import Call


def score(call: Call) -> None:
    """Score every attention head on your data, and show a heatmap."""
    from headprune.report.heads import agreement_table, heatmap, score_table
    from headprune.runtime.distributed import join_world, leave_world
    from headprune.workflows.score import score as score_model

    world = join_world(cpu=call.settings.model.device == "cpu")
    by_method, paths = score_model(call.settings, progress=call.progress, world=world)
    leave_world(world)
    if not paths:
        return
    if call.own.as_json:
        documents = ",\n".join(scores.to_json().rstrip() for scores in by_method)
        call.write(documents + "\n" if len(by_method) == 1 else f"[\n{documents}\n]\n")
    else:
        tables = [table for scores in by_method for table in (heatmap(scores), score_table(scores))]
        tables += [agreement_table(by_method)] if len(by_method) > 1 else []
        for number, table in enumerate(tables):
            if number:
                call.show("")
            call.show(table)
    call.progress.notify(f"written: {', '.join(map(str, paths))}")
