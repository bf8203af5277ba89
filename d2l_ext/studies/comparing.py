"""One statistical test for all pages: are two groups of runs further apart than luck puts them?"""
import collections.abc

import numpy as np

from ..arguments import check_type, refusal

_PAIR = 'a pair of names of groups, such as ("a", "b")'


def _numbers(name, values):
    """Return the numbers of a group as an array, or raise a ValueError."""
    array = np.asarray(values, 'float64') if np.ndim(values) == 1 else np.empty(0)
    if len(array) < 5 or not np.isfinite(array).all():
        raise refusal(f'the group {name!r}', values, 'finite numbers of at least five runs')
    return array


def _difference(a, b, axis=-1):
    # Rounded, so that ways of dealing out that differ by nothing but rounding are ties.
    return np.round(np.mean(a, axis=axis) - np.mean(b, axis=axis), 12)


def compare_means(groups, pairs):
    """Compare means of groups of independent runs by exact permutation tests.

    All runs of two groups are dealt out to them again in every possible way. `p` is the share of
    the ways in which the means lie at least as far apart as they really do (two-sided). Several
    comparisons have several chances to look good by luck, which Holm's correction makes up for:
    where ``p_holm`` is below 0.05 call the difference significant.

    Parameters
    ----------
    groups : dict
        Of each group, by name, a number for each run, such as its test accuracy. Five runs at
        least: three against three could not get below p = 0.1.
    pairs : sequence of tuple
        The names of the groups to compare, ``(a, b)``: all comparisons that are made.

    Returns
    -------
    list of dict
        One a pair: `pair`, `difference` (the mean of a minus that of b), `p` and `p_holm`.

    Raises
    ------
    ValueError
        If a group has fewer than five runs or is unknown.

    Examples
    --------
    >>> row, = compare_means({'a': [6, 7, 8, 9, 10], 'b': [1, 2, 3, 4, 5]}, [('a', 'b')])
    >>> print(f"{row['difference']:.0f} higher, p = {row['p']:.3f}")
    5 higher, p = 0.008
    """
    from scipy.stats import permutation_test  # a second's import, needed here only

    check_type('groups', groups, dict, 'a dictionary of the numbers of each group')
    check_type('pairs', pairs, collections.abc.Sequence, 'a sequence of pairs of names')
    rows = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not set(pair) <= set(groups):
            raise refusal('each of pairs', pair, _PAIR)
        a, b = (_numbers(name, groups[name]) for name in pair)
        scale = max(np.abs(a).max(), np.abs(b).max()) or 1
        test = permutation_test((a / scale, b / scale), _difference, n_resamples=np.inf)
        rows.append({'pair': tuple(pair), 'difference': float(a.mean() - b.mean()),
                     'p': float(test.pvalue)})
    least = 0.
    for i, row in enumerate(sorted(rows, key=lambda row: row['p'])):
        least = row['p_holm'] = max(least, min(1., (len(rows) - i) * row['p']))
    return rows
