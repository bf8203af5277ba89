"""Graphs in the order and the shapes that a CPU computes fastest.

MXNet convolves with oneDNN, whose kernels work on 16 channels at a time
(https://uxlfoundation.github.io/oneDNN/dev_guide_understanding_memory_formats.html). What does not
fit falls back to slower code. NiN has both kinds of misfits: its first convolution reads images of
a single channel, and its last block has ten filters.
"""
import ast
import collections
import json
import math

from .arguments import check_choice, check_shape, check_type, refusal
from .devices import PRECISIONS, mx

_CHANNELS = 16  # at a time: as many float32 numbers as an AVX-512 register holds


def for_cpu(graph, image_shape, precision):
    """Return a graph that computes the same faster, for images of one shape.

    - Maxima are pooled before the ReLU instead of after it: the same, of fewer numbers.
    - Filters are padded with zeros to a multiple of 16 filters; what those compute is cut off.
    - A convolution that reads the images with a stride becomes one without: each block of stride x
      stride pixels turns into the channels of one pixel, and so do the weights, padded with zeros
      to whole blocks ("space to depth").
    - In bfloat16, where another convolution reads images of fewer than 16 channels and feeds a
      batch normalization, channels of zeros make up 16, in the images and in the weights alike.

    Input, output and parameters keep their names and shapes. What changes is the order in which a
    sum is added up.

    Parameters
    ----------
    graph : mxnet.symbol.Symbol
        As :func:`d2l_ext.graphs.trace` returns it.
    image_shape : tuple of int
        Channels, height and width of the images, the latter two in pixels. Only sizes that are
        multiples of the stride are cut into blocks.
    precision : {'float32', 'bfloat16', 'float16'}
        In which the layers will compute. The graph returned has no casts yet.

    Returns
    -------
    mxnet.symbol.Symbol

    Raises
    ------
    ValueError
        If `graph` is no symbol, `image_shape` no such shape, or `precision` none of these.
    """
    check_type('graph', graph, mx.sym.Symbol, 'a symbol, such as graphs.trace(net)')
    channels, *image_size = _check_image(image_shape)
    check_choice('precision', precision, PRECISIONS[1:])
    # As measured, neither float32 nor a convolution that feeds a ReLU gains from more channels.
    few_channels = precision == 'bfloat16' and channels < _CHANNELS
    old = json.loads(graph.tojson(remove_amp_cast=False))
    normalized = {node['inputs'][0][0] for node in old['nodes'] if node['op'] == 'BatchNorm'}
    _pool_before_relu(old)
    nodes, place = [], []  # of the new graph; and where in it each node of the old one is

    def add(op, name, inputs, **attrs):
        nodes.append({'op': op, 'name': name, 'inputs': inputs,
                      'attrs': {key: str(value) for key, value in attrs.items()}})
        return [len(nodes) - 1, 0, 0]

    for i, node in enumerate(old['nodes']):
        inputs = [[place[entry[0]], *entry[1:]] for entry in node['inputs']]
        name, attrs = node['name'], dict(node.get('attrs', {}))
        number = int(attrs.get('num_filter', 0))
        if node['op'] != 'Convolution' or attrs.get('num_group', '1') != '1':
            number = 0
        elif nodes[inputs[0][0]]['op'] == 'null' and len(_pair(attrs, 'kernel', ())) == 2:
            if _fits_blocks(attrs, image_size):
                inputs[:2] = _in_blocks(add, name, attrs, *inputs[:2])
            elif few_channels and i in normalized:
                inputs[:2] = [_padded(add, f'{name}_channels{j}', entry, channels,
                                      _CHANNELS - channels, axis=1)
                              for j, entry in enumerate(inputs[:2])]
        missing = -number % _CHANNELS
        if missing:
            attrs['num_filter'] = str(number + missing)
            inputs[1:] = [_padded(add, f'{name}_{j}', entry, number, missing)
                          for j, entry in enumerate(inputs[1:])]
            wide = [len(nodes), 0, 0]
            nodes.append({**node, 'name': f'{name}_wide', 'attrs': attrs, 'inputs': inputs})
            add('slice_axis', name, [wide], axis=1, begin=0, end=number)
        else:
            nodes.append({**node, 'attrs': attrs, 'inputs': inputs})
        place.append(len(nodes) - 1)
    heads = [[place[entry[0]], *entry[1:]] for entry in old['heads']]
    variables = [i for i, node in enumerate(nodes) if node['op'] == 'null']
    return mx.sym.load_json(json.dumps({'nodes': nodes, 'arg_nodes': variables, 'heads': heads,
                                        'attrs': old['attrs']}))


def _check_image(shape):
    """Return `shape`, or raise a ValueError unless it is that of an image."""
    allowed = '(channels, height, width) of an image, such as (1, 224, 224)'
    shape = check_shape('image_shape', shape, allowed)
    if len(shape) != 3:
        raise refusal('image_shape', shape, allowed)
    return shape


def _pool_before_relu(graph):
    """Let each max pooling and the ReLU that it alone reads change places, where they stand."""
    nodes = graph['nodes']
    readers = collections.Counter(
        entry[0] for node in [*nodes, {'inputs': graph['heads']}] for entry in node['inputs'])
    heads = {entry[0] for entry in graph['heads']}
    for i, pool in enumerate(nodes):
        if (pool['op'] != 'Pooling' or pool['attrs'].get('pool_type', 'max') != 'max'
                or i in heads):
            continue
        before = pool['inputs'][0][0]
        relu = nodes[before]
        if (relu['op'] == 'Activation' and relu['attrs']['act_type'] == 'relu'
                and readers[before] == 1):
            nodes[before] = {**pool, 'inputs': relu['inputs']}
            nodes[i] = {**relu, 'inputs': [[before, 0, 0]]}


def _pair(attrs, key, default):
    return ast.literal_eval(attrs.get(key, '()')) or default


def _fits_blocks(attrs, image_size):
    """Return whether a convolution of images with these attributes can read them in blocks."""
    stride = _pair(attrs, 'stride', (1, 1))
    return (stride[0] == stride[1] > 1
            and _pair(attrs, 'pad', (0, 0)) == (0, 0) and _pair(attrs, 'dilate', (1, 1)) == (1, 1)
            and not any(size % stride[0] for size in image_size))


def _in_blocks(add, name, attrs, images, weights):
    """Add the nodes that rearrange images and weights; change `attrs` to fit; return both."""
    block, kernel = _pair(attrs, 'stride', ())[0], _pair(attrs, 'kernel', ())
    missing = [-size % block for size in kernel]
    attrs.update(stride='(1, 1)', kernel=str(tuple((size + more) // block
                                                   for size, more in zip(kernel, missing))))
    # MXNet's own space_to_depth takes more than twice the time of the transpose.
    images = add('Reshape', f'{name}_cut', [images], shape=(0, 0, -4, -1, block, -4, -1, block))
    images = add('transpose', f'{name}_turned', [images], axes=(0, 3, 5, 1, 2, 4))
    for i in range(2):
        images = add('Reshape', f'{name}_channels{i}', [images], shape=(0, -3, -2))
    weights = add('Pad', f'{name}_whole', [weights], mode='constant',
                  pad_width=(0, 0, 0, 0, 0, missing[0], 0, missing[1]))
    return images, add('space_to_depth', f'{name}_blocks', [weights], block_size=block)


def _padded(add, name, entry, number, missing, axis=0):
    """Add the nodes that put `missing` zeros behind the `number` items on an axis."""
    zeros = add('zeros_like', f'{name}_zeros', [entry])
    copies = math.ceil(missing / number)
    both = add('Concat', f'{name}_padded', [entry] + copies * [zeros], dim=axis,
               num_args=1 + copies)
    return add('slice_axis', f'{name}_wide', [both], axis=axis, begin=0, end=number + missing)
