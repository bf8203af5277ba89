"""Damaged files, drawn with Hypothesis: what the tests of bad data share.

Each test draws files, the same ones in each run. Draw some thirty times as many, other ones each
time, with::

    HYPOTHESIS_PROFILE=long python -m pytest tests/faults/test_fuzz_*.py
"""
import contextlib
import json
import os
import tracemalloc

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

REFUSED = (ValueError, OSError)
MEMORY = 8 << 20  # bytes that reading one of these tiny files may take, with room for buffers

_shared = settings(deadline=None, database=None, print_blob=True, suppress_health_check=[
    HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
settings.register_profile('quick', _shared, max_examples=300, derandomize=True)
settings.register_profile('long', _shared, max_examples=10_000)
drawn = settings.get_profile(os.environ.get('HYPOTHESIS_PROFILE', 'quick'))


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


ACCIDENTS = 'flip', 'overwrite', 'insert', 'delete', 'repeat', 'move', 'cut'


@st.composite
def damaged(draw, original):
    """Draw a damaged copy of some bytes: one to three accidents, each in any place."""
    copy = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(copy)))
        stop = start + draw(st.integers(1, 40))
        kind = draw(st.sampled_from(ACCIDENTS))
        if kind == 'flip' and start < len(copy):
            copy[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == 'overwrite':
            copy[start:stop] = draw(st.sampled_from([b'\0', b'\xff', b'A'])) * len(copy[start:stop])
        elif kind == 'insert':
            copy[start:start] = draw(st.binary(min_size=1, max_size=40))
        elif kind == 'delete':
            del copy[start:stop]
        elif kind == 'repeat':
            copy[start:start] = copy[start:stop]
        elif kind == 'move':
            piece = copy[start:stop]
            del copy[start:stop]
            place = draw(st.integers(0, len(copy)))
            copy[place:place] = piece
        elif kind == 'cut':
            del copy[start:]
    return bytes(copy)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items,
                                                                max_size=3), max_leaves=6)


def places(value):
    """Yield where the parts of a JSON value are: (container, key)."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


@st.composite
def replaced(draw, text):
    """Draw a JSON value with one part lost or replaced by anything."""
    value = json.loads(text)
    container, key = draw(st.sampled_from(list(places(value))))
    if draw(st.booleans()) and isinstance(container, dict):
        del container[key]
    else:
        container[key] = draw(anything)
    return value
