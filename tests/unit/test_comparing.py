"""The permutation test of the pages against enumeration by hand and scipy."""
import itertools

import numpy as np
import pytest
from scipy.stats import permutation_test

from d2l_ext import compare_means


def p_of(a, b):
    """Return the exact two-sided p-value by enumeration."""
    everything, n = [*a, *b], len(a)
    observed = abs(np.mean(a) - np.mean(b))
    ways = list(itertools.combinations(range(len(everything)), n))
    return sum(abs(np.mean([everything[i] for i in way]) - np.mean(
        [x for i, x in enumerate(everything) if i not in way])) >= observed - 1e-9
        for way in ways) / len(ways)


@pytest.mark.parametrize('seed', range(5))
def test_p_is_the_share_of_the_ways(seed):
    a, b = np.random.RandomState(seed).normal(size=(2, 5)).round(1)
    row, = compare_means({'a': a, 'b': b}, [('a', 'b')])
    assert row['p'] == pytest.approx(p_of(a, b))
    assert row['difference'] == pytest.approx(a.mean() - b.mean())


def test_it_is_scipys_where_nothing_is_tied():
    a, b = np.random.RandomState(0).normal(size=(2, 7))
    expected = permutation_test((a, b), lambda a, b, axis: a.mean(axis) - b.mean(axis),
                                n_resamples=np.inf).pvalue
    assert compare_means({'a': a, 'b': b}, [('a', 'b')])[0]['p'] == pytest.approx(expected)


def test_ties_do_not_depend_on_rounding():
    hundredths = [31, 47, 53, 61, 47], [59, 43, 53, 67, 71]
    for unit in (1, .01, 1e-8):
        a, b = (np.array(numbers) * unit for numbers in hundredths)
        row, = compare_means({'a': a, 'b': b}, [('a', 'b')])
        assert row['p'] == pytest.approx(p_of(*hundredths))


def test_the_smallest_p_of_five_against_five():
    row, = compare_means({'a': range(5), 'b': range(10, 15)}, [('a', 'b')])
    assert row['p'] == row['p_holm'] == pytest.approx(2 / 252)


def test_holm_multiplies_from_the_smallest_up():
    random = np.random.RandomState(1)
    groups = {name: random.normal(shift, size=6) for name, shift in zip('abcd', (0, .7, 2, 4))}
    rows = compare_means(groups, [('b', 'a'), ('c', 'a'), ('d', 'a')])
    assert [row['pair'] for row in rows] == [('b', 'a'), ('c', 'a'), ('d', 'a')]
    p = sorted(row['p'] for row in rows)
    corrected = np.maximum.accumulate([min(1, factor * x) for factor, x in zip((3, 2, 1), p)])
    assert sorted(row['p_holm'] for row in rows) == pytest.approx(corrected)


@pytest.mark.parametrize('groups, pairs, message', [
    ({'a': [1, 2, 3], 'b': [4, 5, 6]}, [('a', 'b')], "'a' must be finite numbers of at least five"),
    ({'a': [1, 2, 3, 4, np.nan], 'b': [1] * 5}, [('a', 'b')], 'must be finite'),
    ({'a': [1] * 5}, [('a', 'b')], 'each of pairs must be a pair of names'),
    ({'a': [1] * 5}, ['aa'], 'each of pairs must be a pair of names'),
    ([], [], 'groups must be a dictionary'),
])
def test_refusals(groups, pairs, message):
    with pytest.raises(ValueError, match=message):
        compare_means(groups, pairs)


def test_groups_that_are_all_alike():
    assert compare_means({'a': [1] * 5, 'b': [1] * 5}, [('a', 'b')])[0]['p'] == 1
