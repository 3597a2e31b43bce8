"""The statistics against scipy and against their defining properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from initscope.comparison.statistics import Z95, cohens_h, fisher_exact, newcombe, wilson

RATES = [(k, n) for n in (1, 2, 3, 5, 12, 200) for k in sorted({0, 1, n // 2, n - 1, n})]


@pytest.mark.parametrize(("k", "n"), RATES)
def test_wilson_is_scipys(k, n):
    theirs = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert stats.norm.ppf(0.975) == pytest.approx(Z95, abs=1e-14)


@pytest.mark.parametrize("a", RATES)
def test_fisher_is_scipys(a):
    for b in RATES:
        table = [[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]
        assert fisher_exact(*a, *b) == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-9), table


def test_newcombe_against_the_paper():
    """Newcombe 1998, table II, method 10: intervals of p1 - p2; ours is b - a, so his first rate is our b."""
    for (k1, n1, k2, n2), published in {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (10, 10, 0, 10): (0.6075, 1.0),
        (0, 10, 0, 10): (-0.2775, 0.2775),
        (5, 56, 0, 29): (-0.0381, 0.1926),
    }.items():
        assert newcombe(k2, n2, k1, n1) == pytest.approx(published, abs=5e-5)


counts = st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, counts)
def test_properties(a, b):
    low, high = newcombe(*a, *b)
    assert -1 <= low <= high <= 1
    assert (-high, -low) == pytest.approx(newcombe(*b, *a), abs=1e-12), (
        "swapping the sides mirrors the interval"
    )
    p = fisher_exact(*a, *b)
    assert 0 < p <= 1 and p == fisher_exact(*b, *a)
    assert -math.pi <= cohens_h(*a, *b) <= math.pi and cohens_h(*a, *b) == -cohens_h(*b, *a)
    if a[1] and b[1]:
        difference = b[0] / b[1] - a[0] / a[1]
        assert low - 1e-12 <= difference <= high + 1e-12
        for k, n in (a, b):
            assert 0 <= wilson(k, n)[0] <= k / n <= wilson(k, n)[1] <= 1
    else:
        assert (low, high, p, cohens_h(*a, *b)) == (-1, 1, 1, 0) and wilson(0, 0) == (0, 1)
