"""Checks of arguments: what passes, and errors that name argument, range and value."""
import math
import pathlib
import re

import numpy as np
import pytest

from d2l_ext.arguments import (
    check_choice,
    check_flag,
    check_int,
    check_keys,
    check_number,
    check_pair,
    check_path,
    check_shape,
    check_type,
    quoted,
    wrapped,
)
from d2l_ext.devices import mx


@pytest.mark.parametrize('value', [0, 3, np.int64(3), np.uint8(3)])
def test_whole_numbers_pass_as_int(value):
    checked = check_int('n', value, 0, 3)
    assert checked == value and type(checked) is int


@pytest.mark.parametrize('value', [-1, 4, 2.0, np.float32(2), True, '2', None, math.nan, [2]])
def test_other_values_are_named(value):
    with pytest.raises(ValueError, match=re.escape(
            f'n must be a whole number from 0 to 3, not {quoted(value)}')):
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


@pytest.mark.parametrize('check, value, result', [
    (lambda name, value: check_type(name, value, str, 'a string'), 'x', 'x'),
    (lambda name, value: check_shape(name, value, 'a shape'), [1, np.int32(28)], (1, 28)),
    (check_flag, np.bool_(True), True), (check_flag, False, False),
    (lambda name, value: check_choice(name, value, ('a', 'b')), 'b', 'b'),
    (check_path, 'a/b', pathlib.Path('a/b')), (check_path, pathlib.Path('a'), pathlib.Path('a')),
    (check_path, '~/a', pathlib.Path.home() / 'a'),
    (lambda name, value: check_keys(name, value, ('a', 'b')), {'a': 1, 'b': 2, 'c': 3},
     {'a': 1, 'b': 2, 'c': 3}),
])
def test_what_passes(check, value, result):
    checked = check('it', value)
    assert checked == result and type(checked) is type(result)


@pytest.mark.parametrize('check, value, message', [
    (lambda name, value: check_type(name, value, str, 'a string'), 3, 'a string, not 3'),
    (lambda name, value: check_shape(name, value, 'a shape'), 28, 'a shape, not 28'),
    (lambda name, value: check_shape(name, value, 'a shape'), (), 'a shape, not ()'),
    (check_flag, 1, 'True or False, not 1'), (check_flag, 'no', "True or False, not 'no'"),
    (lambda name, value: check_choice(name, value, ('a', 'b')), 'c', "one of a, b, not 'c'"),
    (lambda name, value: check_choice(name, value, 'ab'), ['a'], "one of a, b, not ['a']"),
    (check_path, 3, 'the path of a file or folder, not 3'),
    (check_path, '', "the path of a file or folder, not ''"),
    (lambda name, value: check_keys(name, value, ('a', 'b')), {'a': 1},
     "a dictionary with the keys a, b, not {'a': 1}"),
])
def test_what_does_not(check, value, message):
    with pytest.raises(ValueError, match=re.escape(f'it must be {message}')):
        check('it', value)


def test_a_size_in_a_shape_is_named():
    with pytest.raises(ValueError, match='each size in shape must be a whole number of at least 1'):
        check_shape('shape', (1, 0), 'a shape')


def test_how_values_are_quoted():
    assert quoted('a\nb') == r"'a\nb'"
    assert quoted(np.zeros((2, 3), np.uint8)) == 'an array of uint8 of shape (2, 3)'
    assert quoted(mx.nd.zeros((2, 3))) == 'an array of float32 of shape (2, 3)'
    assert quoted(np.float64(2)) == '2.0'
    assert quoted('x' * 200) == "'" + 'x' * 96 + '...'
    assert '\n' not in quoted(mx.gluon.nn.HybridSequential())


def test_messages_are_broken_between_words():
    words, command = 'some-long words ' * 20, f'    python -m {"long " * 30}'
    lines = wrapped(f'{words}\n{command}\n\n{"x" * 120}', '  ').split('\n')
    assert max(map(len, lines[:4])) <= 100 and lines[1].startswith('  some-long words ')
    assert ' '.join(line.strip() for line in lines[:4]) == words.strip()
    assert lines[4:] == [command, '', 'x' * 120]
