"""Checks of arguments that several modules share: each error names argument, range and value.

A wrong type is a ValueError like a wrong value: a reader fixes both in the same place.
"""
import math
import numbers
import os
import pathlib
import textwrap


def quoted(value):
    """Return `value` as an error message shows it, in one line: of an array, its type and shape."""
    shape = getattr(value, 'shape', None)
    if isinstance(shape, tuple) and shape:
        dtype = getattr(value.dtype, 'name', None) or value.dtype.__name__
        return f'an array of {dtype} of shape {shape}'
    if shape == () and hasattr(value, 'item'):  # one number of NumPy 2 would tell its type
        value = value.item()
    text = ' '.join(repr(value).split())
    return text if len(text) <= 100 else f'{text[:97]}...'


def wrapped(text, indent=''):
    """Return `text` in lines of at most 100 columns: JupyterLab would break them inside of words.

    Words are kept whole, and lines that begin with a space as they are: commands to type.
    """
    return '\n'.join(line if line.startswith(' ') else textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in text.split('\n'))


def refusal(name, value, allowed):
    """Return a ValueError that names the argument, what it must be, and what it is."""
    return ValueError(f'{name} must be {allowed}, not {quoted(value)}')


def check_type(name, value, types, allowed):
    """Return `value`, or raise a ValueError unless it is an instance of `types`."""
    if isinstance(value, types):
        return value
    raise refusal(name, value, allowed)


def check_int(name, value, low, high=None):
    """Return `value` as an int, or raise a ValueError that names the argument and its range."""
    if (isinstance(value, numbers.Integral) and not isinstance(value, bool)
            and value >= low and (high is None or value <= high)):
        return int(value)
    limits = f'of at least {low}' if high is None else f'from {low} to {high}'
    raise refusal(name, value, f'a whole number {limits}')


def check_number(name, value, above, up_to=math.inf):
    """Return `value` as a float, or raise a ValueError that names the argument and its range."""
    if (isinstance(value, numbers.Real) and not isinstance(value, bool)
            and above < value <= up_to and math.isfinite(value)):
        return float(value)
    limits = f'above {above:g}' + (f', at most {up_to:g}' if up_to < math.inf else '')
    raise refusal(name, value, f'a finite number {limits}')


def check_pair(name, value, low):
    """Return `value`, one whole number or a pair of them, as a pair, or raise a ValueError."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise refusal(name, value, 'one whole number or a pair of them')
    return tuple(check_int(name, item, low) for item in pair)


def check_shape(name, value, allowed):
    """Return `value`, a shape without unknown sizes, as a tuple, or raise a ValueError."""
    if not isinstance(value, (tuple, list)) or not value:
        raise refusal(name, value, allowed)
    return tuple(check_int(f'each size in {name}', size, 1) for size in value)


def check_flag(name, value):
    """Return `value`, True or False, Python's or NumPy's, as a bool, or raise a ValueError."""
    if type(value).__name__ in ('bool', 'bool_'):
        return bool(value)
    raise refusal(name, value, 'True or False')


def check_choice(name, value, choices):
    """Return `value`, or raise a ValueError unless it is one of the strings in `choices`."""
    if isinstance(value, str) and value in choices:
        return value
    raise refusal(name, value, f'one of {", ".join(choices)}')


def check_path(name, value):
    """Return `value`, a path as a string or an object, as a Path, or raise a ValueError.

    A ``~`` in front stands for the home folder, as in a shell.
    """
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise refusal(name, value, 'the path of a file or folder')
    return pathlib.Path(value).expanduser()


def check_keys(name, value, keys):
    """Return `value`, or raise a ValueError unless it is a dictionary that has all of `keys`."""
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise refusal(name, value, f'a dictionary with the keys {", ".join(keys)}')
    return value
