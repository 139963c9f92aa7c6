"""Where to stop on a curve of quality against heads kept: pure, on numbers."""

from collections.abc import Sequence

# A straight line has no knee, and equal heights are equal, whatever their last bits say.
_ROUNDING = 1e-9


def knee(shares: Sequence[float], values: Sequence[float]) -> int | None:
    """Return the index of the point that lies highest above the chord through the curve's ends.

    With ``a`` the end with the most heads and ``b`` that with the fewest, it is the largest

        ``d_i = v_i - v_b - (v_a - v_b) (s_i - s_b) / (s_a - s_b)``,

    of equal ones that with the fewest heads. On axes scaled to 0..1 that is the point farthest from the chord (after "Kneedle",
    Satopää et al. 2011). It describes the curve; it is no test, and moves with the ends.

    Args:
        shares: Shares of heads kept, [points], falling.
        values: The quality there, [points]; higher is better.

    Returns:
        None where the curve doesn't fall from end to end, or lies nowhere above its chord.

    >>> knee([1.0, 0.75, 0.5, 0.25], [0.9, 0.88, 0.85, 0.1])
    2
    """
    span, fall = shares[0] - shares[-1], values[0] - values[-1]
    if span <= 0 or fall <= 0:
        return None
    above = [
        value - values[-1] - fall * (share - shares[-1]) / span
        for share, value in zip(shares, values, strict=True)
    ]
    highest = max(above)
    if highest <= _ROUNDING * fall:
        return None
    return max(index for index, height in enumerate(above) if height >= highest - _ROUNDING * fall)


def last_within(worst: Sequence[float], limit: float) -> int | None:
    """Return the last index up to which, from the first on, no drop goes beyond ``limit``.

    Looking from the whole model on, and no further than the first point that fails, keeps the error of each interval for the
    point that comes out, however many points there are (testing in a fixed sequence: Maurer et al. 1995).

    Args:
        worst: Upper ends of the drops' intervals, [points], from the most heads to the fewest.
        limit: The largest drop that is allowed.

    >>> last_within([0.0, 0.004, 0.02, 0.009], 0.01)
    1
    """
    within = None
    for index, drop in enumerate(worst):
        if drop > limit:
            break
        within = index
    return within
