"""How sure a few seeds make us: intervals and a test for k of n. Pure Python, exact where exact is
possible.
"""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


def wilson(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a rate (Wilson 1927); (0, 1) for no trials. Right also at 0 of n and n of
    n. Of an estimated rate the trials are an effective number, whole or not.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, z * z
    centre = rate + z2 / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return (0.0 if successes == 0 else max(0.0, low)), (1.0 if successes == trials else min(1.0, high))


def newcombe(successes_a: int, trials_a: int, successes_b: int, trials_b: int) -> tuple[float, float]:
    """95 % interval of the difference of rates b - a, from two Wilson intervals (Newcombe 1998, method
    10).
    """
    if not trials_a or not trials_b:
        return -1.0, 1.0
    a, b = successes_a / trials_a, successes_b / trials_b
    (low_a, high_a), (low_b, high_b) = wilson(successes_a, trials_a), wilson(successes_b, trials_b)
    low = b - a - math.hypot(b - low_b, high_a - a)
    high = b - a + math.hypot(high_b - b, a - low_a)
    return max(-1.0, low), min(1.0, high)


def fisher_exact(successes_a: int, trials_a: int, successes_b: int, trials_b: int) -> float:
    """Two-sided p-value of Fisher's exact test that two rates are equal (Fisher 1935): the probability, at
    fixed margins, of every table at most as likely as the one seen.
    """
    total, successes = trials_a + trials_b, successes_a + successes_b
    if not trials_a or not trials_b:
        return 1.0

    def ways(k: int) -> int:
        return math.comb(trials_a, k) * math.comb(trials_b, successes - k)

    seen = ways(successes_a)
    possible = range(max(0, successes - trials_b), min(trials_a, successes) + 1)
    return min(1.0, sum(ways(k) for k in possible if ways(k) <= seen) / math.comb(total, successes))


def cohens_h(successes_a: int, trials_a: int, successes_b: int, trials_b: int) -> float:
    """Effect size of b against a: 2 asin sqrt(b) - 2 asin sqrt(a), from -pi to pi (Cohen 1988); 0.8 is
    large.
    """
    if not trials_a or not trials_b:
        return 0.0
    return 2 * math.asin(math.sqrt(successes_b / trials_b)) - 2 * math.asin(math.sqrt(successes_a / trials_a))


def p_text(p_value: float) -> str:
    """A p-value for a sentence: three decimals ('p = 0.008'), one significant digit below a thousandth."""
    return "p = " + (f"{p_value:.3f}".rstrip("0").rstrip(".") if p_value >= 0.001 else f"{p_value:.0e}")
