"""``losses(masks)``: the one primitive. Leave-one-out, curves, greedy steps and random subsets are all lists of masks.

A head can't change the blocks before it. So each batch runs once and is recorded (:mod:`~headprune.replay.record`), and a mask
runs only what it can change, many masks stacked in one forward (:mod:`~headprune.replay.resume`), in the mode that is exact for
the attention that it starts in: tried first (:mod:`~headprune.replay.modes`).
"""
