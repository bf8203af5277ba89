"""The channels-last layout, NHWC: (batch, height, width, channels).

Tensor cores convolve in it, and cuDNN would have to transpose NCHW around each convolution. See
"Tensor Layouts In Memory" in NVIDIA's *Convolutional Layers User's Guide*:
https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional/index.html
"""
import ast

from .rewriting import nodes_of, rewrite

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
    """
    if any('BatchNorm' in node['op'] for node in nodes_of(graph)):
        return graph
    nhwc, other = set(), {}  # entries in NHWC; and where each one is in the other layout

    def turned(new, entry):
        if entry not in other:
            layout, axes = ('nchw', _NCHW) if entry in nhwc else ('nhwc', _NHWC)
            name = f"{new.nodes[entry[0]]['name']}_{entry[1]}_{layout}"
            other[entry] = new.add('transpose', name, [entry], axes=axes)
        return other[entry]

    def in_nchw(new, entry):
        return turned(new, entry) if entry in nhwc else entry

    def change(new, node):
        attrs, inputs = _attrs_in_nhwc(node['op'], node['attrs']), node['inputs']
        number = _IMAGES.get(node['op'], len(inputs))
        if attrs is None or (node['op'] != 'Convolution' and not all(
                entry in nhwc or entry in other for entry in inputs[:number])):
            return new.copy({**node, 'inputs': [in_nchw(new, entry) for entry in inputs]})
        inputs = [*(entry if entry in nhwc else turned(new, entry) for entry in inputs[:number]),
                  *(in_nchw(new, entry) for entry in inputs[number:])]
        result = new.copy({**node, 'inputs': inputs}, **attrs)
        nhwc.add(result)
        return result

    return rewrite(graph, change, in_nchw)


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
