"""Graphs that compute in bfloat16 or float16 between casts."""
from ..devices import mx


def cast(graph, precision):
    """Return a graph whose layers compute in `precision`, on parameters and images of float32.

    MXNet's automatic mixed precision puts casts before those layers that gain from it and keeps
    the others in float32, as is the result.
    """
    from mxnet.contrib import amp

    graph = amp.convert_symbol(graph, precision, data_names=['data'])
    return mx.sym.amp_cast(graph, dtype='float32')
