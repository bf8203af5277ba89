"""The channels-last layout, NHWC: (batch, height, width, channels).

Tensor cores convolve in it, and cuDNN would have to transpose NCHW around each convolution. See
"Tensor Layouts In Memory" in NVIDIA's *Convolutional Layers User's Guide*:
https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional/index.html
"""
import ast
import json

from .arguments import check_type
from .devices import mx

_NHWC, _NCHW = '(0, 2, 3, 1)', '(0, 3, 1, 2)'  # axes that lead from one layout to the other

# How many of the first inputs are images, or weights with the same axes; by default all are.
_IMAGES = {'Convolution': 2}
_ELEMENTWISE = ('Activation', 'relu', 'Dropout', 'elemwise_add', 'Cast', 'amp_cast')


def channels_last(graph):
    """Return a graph that computes the same with its convolutions in NHWC.

    What follows a convolution, such as a ReLU or a pooling, stays in NHWC as long as it can;
    anything else still computes in NCHW, behind a transpose. Input, output and parameters keep
    their names and shapes: the graph transposes the weights itself. Only the order in which dropout
    draws is another. MXNet 1.9.1 convolves so on a GPU only.

    A graph with batch normalization comes back as it is. In NHWC, MXNet 1.9.1 gives each pixel to
    cuDNN as an image of its own (https://github.com/apache/mxnet/pull/18504), and cuDNN predicts
    for at most 65,535 (https://github.com/pytorch/pytorch/issues/19911); transposes around every
    normalization would take away what the layout gains.

    Parameters
    ----------
    graph : mxnet.symbol.Symbol
        As :func:`d2l_ext.graphs.trace` returns it.

    Returns
    -------
    mxnet.symbol.Symbol

    Raises
    ------
    ValueError
        If `graph` is no symbol.
    """
    check_type('graph', graph, mx.sym.Symbol, 'a symbol, such as graphs.trace(net)')
    old = json.loads(graph.tojson(remove_amp_cast=False))
    if any('BatchNorm' in node['op'] for node in old['nodes']):
        return graph
    nodes, place = [], []  # of the new graph; and where in it each node of the old one is
    nchw, nhwc = {}, {}  # where in the new graph an output of the old one is, by layout

    def transposed(source, old_entry, axes, layout):
        node, output, _ = old_entry
        nodes.append({'op': 'transpose', 'attrs': {'axes': axes}, 'inputs': [source],
                      'name': f"{old['nodes'][node]['name']}_{output}_{layout}"})
        return [len(nodes) - 1, 0, 0]

    def in_nchw(entry):
        key = tuple(entry)
        if key not in nchw:
            nchw[key] = (transposed(nhwc[key], entry, _NCHW, 'nchw') if key in nhwc
                         else [place[entry[0]], *entry[1:]])
        return nchw[key]

    def in_nhwc(entry):
        key = tuple(entry)
        if key not in nhwc:
            nhwc[key] = transposed(in_nchw(entry), entry, _NHWC, 'nhwc')
        return nhwc[key]

    for i, node in enumerate(old['nodes']):
        attrs, inputs = _attrs_in_nhwc(node['op'], node.get('attrs', {})), node['inputs']
        images = inputs[:_IMAGES.get(node['op'], len(inputs))]
        if attrs is not None and (node['op'] == 'Convolution'
                                  or all(tuple(entry) in nhwc for entry in images)):
            inputs = [*map(in_nhwc, images), *map(in_nchw, inputs[len(images):])]
            node = {**node, 'attrs': attrs}
            nhwc[i, 0, 0] = [len(nodes), 0, 0]  # the transposes stand before it
        else:
            inputs = [in_nchw(entry) for entry in inputs]
        place.append(len(nodes))
        nodes.append({**node, 'inputs': inputs})
    heads = [in_nchw(entry) for entry in old['heads']]
    variables = [i for i, node in enumerate(nodes) if node['op'] == 'null']
    return mx.sym.load_json(json.dumps({'nodes': nodes, 'arg_nodes': variables, 'heads': heads,
                                        'attrs': old['attrs']}))


def _attrs_in_nhwc(op, attrs):
    """Return the attributes with which a node computes in NHWC, or None if it is not known to."""
    if op in ('Convolution', 'Pooling'):
        known = (len(ast.literal_eval(attrs.get('kernel', '()'))) == 2
                 and attrs.get('layout', 'None') in ('None', 'NCHW')
                 and attrs.get('cudnn_off', 'False') in ('None', 'False', '0')
                 and attrs.get('num_group', '1') == '1'
                 and attrs.get('pool_type', 'max') in ('max', 'avg'))
        return {**attrs, 'layout': 'NHWC'} if known else None
    if op == 'Concat':
        return {**attrs, 'dim': '3'} if attrs.get('dim', '1') == '1' else None
    # Dropout can draw one number for a whole axis.
    return attrs if op in _ELEMENTWISE and attrs.get('axes', '()') == '()' else None
