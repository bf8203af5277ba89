"""Checks of arguments: what passes, and errors that name argument, range and value."""
import math
import re

import numpy as np
import pytest

from d2l_ext.arguments import check_int, check_number, check_pair


@pytest.mark.parametrize('value', [0, 3, np.int64(3), np.uint8(3)])
def test_whole_numbers_pass_as_int(value):
    checked = check_int('n', value, 0, 3)
    assert checked == value and type(checked) is int


@pytest.mark.parametrize('value', [-1, 4, 2.0, np.float32(2), True, '2', None, math.nan, [2]])
def test_other_values_are_named(value):
    with pytest.raises(ValueError, match=re.escape(
            f'n must be a whole number from 0 to 3, not {value!r}')):
        check_int('n', value, 0, 3)


def test_a_range_without_an_end():
    assert check_int('n', 10**9, 1) == 10**9
    with pytest.raises(ValueError, match='n must be a whole number of at least 1, not 0'):
        check_int('n', 0, 1)


@pytest.mark.parametrize('value, pair', [(3, (3, 3)), ((2, 5), (2, 5)), ([2, 5], (2, 5))])
def test_pairs(value, pair):
    assert check_pair('size', value, 1) == pair


@pytest.mark.parametrize('value, message', [
    ((1, 2, 3), 'size must be one whole number or a pair of them, not (1, 2, 3)'),
    ((), 'size must be one whole number or a pair of them, not ()'),
    ((1, 0), 'size must be a whole number of at least 1, not 0'),
    ('33', "size must be a whole number of at least 1, not '33'"),
])
def test_wrong_pairs(value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_pair('size', value, 1)


@pytest.mark.parametrize('value', [0.5, 1, 2, np.float64(2)])
def test_numbers_pass_as_float(value):
    checked = check_number('lr', value, 0, 2)
    assert checked == value and type(checked) is float


@pytest.mark.parametrize('value', [0, -1, 2.5, math.nan, math.inf, True, '1', None])
def test_other_numbers_are_named(value):
    with pytest.raises(ValueError, match=re.escape(
            f'lr must be a finite number above 0, at most 2, not {value!r}')):
        check_number('lr', value, 0, 2)
    with pytest.raises(ValueError, match=re.escape('lr must be a finite number above 0, not -1')):
        check_number('lr', -1, 0)
