"""Random stacks of layers: `resources.summary` against Gluon, which runs them, and PyTorch."""
import collections
import math
import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_resources_pytorch import torch_counts

from d2l_ext.devices import mx
from d2l_ext.nets import nin_block
from d2l_ext.studies.resources import summary

nd, nn = mx.nd, mx.gluon.nn

# The same stacks every time, and as many of them on a slow machine.
same_cases = settings(derandomize=True, deadline=None, database=None, max_examples=150,
                      suppress_health_check=list(HealthCheck))


def sizes(low, high):
    """Return a strategy for one number, or a pair of them: height and width."""
    one = st.integers(low, high)
    return one | st.tuples(one, one)


def pair(size):
    return size if isinstance(size, tuple) else (size, size)


@st.composite
def poolings(draw):
    window = draw(sizes(1, 4))
    return draw(st.sampled_from(['max', 'mean'])), {
        'pool_size': window, 'strides': draw(st.none() | sizes(1, 3)),
        # More than half a window is an error in PyTorch.
        'padding': tuple(draw(st.integers(0, size // 2)) for size in pair(window)),
        'ceil_mode': draw(st.booleans())}


blocks = st.tuples(st.just('nin_block'), st.fixed_dictionaries({
    'num_channels': st.integers(1, 5), 'kernel_size': sizes(1, 5), 'strides': sizes(1, 3),
    'padding': sizes(0, 2), 'num_one_by_one': st.integers(0, 3)}))
dense = st.tuples(st.just('dense'), st.fixed_dictionaries({
    'units': st.integers(1, 6), 'use_bias': st.booleans()}))
# Layers with windows; then nothing, a global pooling, or dense layers.
stacks = st.builds(list.__add__, st.lists(blocks | poolings(), min_size=1, max_size=4),
                   st.just([]) | st.just([('global', {})]) | st.lists(dense, max_size=3))
shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 24), st.integers(1, 24))

GLUON = {'nin_block': nin_block, 'max': nn.MaxPool2D, 'mean': nn.AvgPool2D, 'dense': nn.Dense,
         'global': nn.GlobalAvgPool2D}


def gluon_net(stack):
    net = nn.HybridSequential()
    for kind, arguments in stack:
        net.add(GLUON[kind](**arguments))
    return net


def places(block, path=''):
    """Yield (path, block) for all blocks without parts, and for convolutions beside their ReLU."""
    for name, child in block._children.items():
        yield from places(child, f'{path}.{name}' if path else name)
    if not isinstance(block, nn.HybridSequential):
        yield path, block


def run(net, shape):
    """Run `net` on zeros; return {path: output shape} and the path that was entered last."""
    found, entered = {}, []

    # Gluon calls blocks with symbols, too, to infer the shapes of their parameters.
    def enter(path):
        return lambda _, inputs: isinstance(inputs[0], nd.NDArray) and entered.append(path)

    def leave(path):
        return lambda _, inputs, out: isinstance(out, nd.NDArray) and found.update(
            {path: out.shape})

    for path, block in places(net):
        block.register_forward_pre_hook(enter(path))
        block.register_forward_hook(leave(path))
    net.initialize()
    try:
        net(nd.zeros(shape))
    except (mx.MXNetError, ValueError):  # ValueError: Gluon's own where shapes are deferred
        return None, entered[-1]
    return found, entered[-1]


def count(net, found):
    """Return weights, biases and multiply-adds of a net that has run, by the arrays it has."""
    weights = biases = mult_adds = 0
    for path, block in places(net):
        if isinstance(block, (nn.Conv2D, nn.Dense)):
            weights += block.weight.data().size
            biases += block.bias.data().size if block.bias is not None else 0
            mult_adds += math.prod(found[path]) * block.weight.data()[0].size
    return weights, biases, mult_adds


def test_summary_agrees_with_what_gluon_runs():
    seen = collections.Counter()

    @same_cases
    @given(stacks, shapes)
    def check(stack, shape):
        net = gluon_net(stack)
        found, last = run(net, shape)
        if found is None:
            seen['too small'] += 1
            with pytest.raises(ValueError, match=f'layer {re.escape(last)} cannot take'):
                summary(gluon_net(stack), shape[1:], shape[0])
            return
        seen['runs'] += 1
        seen['ceil'] += any(arguments.get('ceil_mode') for _, arguments in stack)
        seen['dense'] += stack[-1][0] == 'dense'
        # From a net that nobody has initialized, and from the one that ran, without its hooks.
        for other in (gluon_net(stack), net):
            result = summary(other, shape[1:], shape[0])
            assert {row.layer: row.output_shape for row in result.rows} == found
            assert result.unknown == ()
            assert (result.total_weights, result.total_biases,
                    result.total_mult_adds) == count(net, found)
        assert result.total_params == sum(
            param.data().size for param in net.collect_params().values())

    check()
    assert all(seen[kind] >= 10 for kind in ('runs', 'too small', 'ceil', 'dense')), seen


def torch_net(stack, record):
    """Return the stack in PyTorch; `record` gets the output shape of each layer that runs."""
    from torch import nn as tnn

    layers = []
    for kind, arguments in stack:
        if kind == 'nin_block':
            channels, window, strides, padding, number = (arguments[name] for name in (
                'num_channels', 'kernel_size', 'strides', 'padding', 'num_one_by_one'))
            layers += [tnn.LazyConv2d(channels, window, strides, padding), tnn.ReLU()]
            for _ in range(number):
                layers += [tnn.LazyConv2d(channels, 1), tnn.ReLU()]
        elif kind == 'dense':
            layers += [tnn.Flatten(), tnn.LazyLinear(arguments['units'], arguments['use_bias'])]
        elif kind == 'global':
            layers.append(tnn.AdaptiveAvgPool2d(1))
        else:
            layers.append({'max': tnn.MaxPool2d, 'mean': tnn.AvgPool2d}[kind](
                arguments['pool_size'], arguments['strides'], arguments['padding'],
                ceil_mode=arguments['ceil_mode']))
    for layer in layers:
        if not isinstance(layer, tnn.Flatten):  # part of a dense layer in Gluon
            layer.register_forward_hook(lambda _, inputs, out: record(tuple(out.shape)))
    return tnn.Sequential(*layers)


def starts_inside(arguments):
    """Return whether every window of a pooling starts on the image or in the padding before it.

    With ceil_mode, MXNet keeps a last window that lies in the padding behind; PyTorch drops it.
    """
    window = pair(arguments['pool_size'])
    strides = pair(arguments['strides'] or window)
    return not arguments['ceil_mode'] or all(
        stride <= size - pad for size, stride, pad in zip(window, strides, arguments['padding']))


@pytest.mark.filterwarnings('ignore:Lazy modules')
def test_summary_agrees_with_pytorch():
    pytest.importorskip('torch')
    seen = collections.Counter()

    @same_cases
    @given(stacks, shapes)
    def check(stack, shape):
        assume(all(starts_inside(arguments) for kind, arguments in stack
                   if kind in ('max', 'mean')))
        try:
            result = summary(gluon_net(stack), shape[1:], shape[0])
        except ValueError:  # see the test above
            return
        found = []
        expected = torch_counts(lambda: torch_net(stack, found.append), shape)
        assert (result.total_params, result.total_mult_adds) == expected
        assert [row.output_shape for row in result.rows] == found
        seen['runs'] += 1
        seen['ceil'] += any(arguments.get('ceil_mode') for _, arguments in stack)

    check()
    assert seen['runs'] >= 30 and seen['ceil'] >= 10, seen
