"""Checks of arguments that several modules share."""
import math
import numbers


def check_int(name, value, low, high=None):
    """Return `value` as an int, or raise a ValueError that names the argument and its range."""
    if (isinstance(value, numbers.Integral) and not isinstance(value, bool)
            and value >= low and (high is None or value <= high)):
        return int(value)
    limits = f'of at least {low}' if high is None else f'from {low} to {high}'
    raise ValueError(f'{name} must be a whole number {limits}, not {value!r}')


def check_number(name, value, above, up_to=math.inf):
    """Return `value` as a float, or raise a ValueError that names the argument and its range."""
    if (isinstance(value, numbers.Real) and not isinstance(value, bool)
            and above < value <= up_to and math.isfinite(value)):
        return float(value)
    limits = f'above {above:g}' + (f', at most {up_to:g}' if up_to < math.inf else '')
    raise ValueError(f'{name} must be a finite number {limits}, not {value!r}')


def check_pair(name, value, low):
    """Return `value`, one whole number or a pair of them, as a pair; raise ValueError else."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f'{name} must be one whole number or a pair of them, not {value!r}')
    return tuple(check_int(name, item, low) for item in pair)
