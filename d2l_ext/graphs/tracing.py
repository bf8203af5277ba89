"""From a net to its graph, and whether that stands for it."""
from ..arguments import check_type
from ..devices import mx
from .numpy_mode import as_called
from .state import attributes_kept

gluon, nn = mx.gluon, mx.gluon.nn

_TRUSTED = ('mxnet.gluon.nn.', 'mxnet.gluon.contrib.nn.', 'mxnet.gluon.model_zoo.',
            'mxnet.gluon.block', 'd2l_ext.')


def _is_hybrid(block):
    """Return whether `block` is made of hybrid blocks and plain sequences, without hooks."""
    if block._forward_hooks or block._forward_pre_hooks:
        return False
    children = all(_is_hybrid(child) for child in block._children.values())
    return children and (isinstance(block, gluon.HybridBlock) or type(block) is nn.Sequential)


def check_net(net):
    """Return `net`, or raise a ValueError unless it is a Gluon block."""
    return check_type('net', net, gluon.Block, 'a Gluon block such as nin()')


def trace(net):
    """Return the graph that `net` computes, with the one input `data`, or None if it has none.

    Only hybrid blocks, and plain sequences of them, have one. A hook must run with real numbers.
    """
    check_net(net)
    if not _is_hybrid(net):
        return None
    try:
        with attributes_kept(net):  # a block may count its calls
            graph = as_called(net)(mx.sym.var('data', dtype='float32'))
        return graph if isinstance(graph, mx.sym.Symbol) else None  # two outputs have none
    except Exception:  # a block that asks for shapes or numbers can raise anything
        return None


def is_trusted(net):
    """Return whether the graph of `net` surely computes what calling it does.

    So it does if Gluon itself computes by the graph, after ``hybridize()``; and for Gluon's own
    layers and this package's. Anybody else's may ask whether it trains, or count its calls.
    """
    if getattr(net, '_active', False):
        return True
    code = net._func if isinstance(net, nn.HybridLambda) else type(net)
    return (code.__module__.startswith(_TRUSTED)
            and not {'forward', 'hybrid_forward'}.intersection(vars(net))
            and all(map(is_trusted, net._children.values())))
