"""Graphs in the order and the shapes that a CPU computes fastest.

MXNet convolves with oneDNN, whose kernels work on 16 channels at a time
(https://uxlfoundation.github.io/oneDNN/dev_guide_understanding_memory_formats.html). What does not
fit falls back to slower code. NiN has both kinds of misfits: its first convolution reads images of
a single channel, and its last block has ten filters.
"""
import math

from .rewriting import maps_of, rewrite, sizes

_CHANNELS = 16  # at a time: as many float32 numbers as an AVX-512 register holds


def for_cpu(graph, image_shape, precision):
    """Return a graph that computes the same faster, for images of one shape.

    1. In bfloat16, for right gradients rather than speed: margins of windows that see nothing but
       padding are cut off, see :func:`window_in_use`.
    2. Max pooling comes before a ReLU instead of after it: the same, and the ReLU has fewer numbers
       to compute.
    3. A convolution that reads the images with a stride becomes one without: each block of stride x
       stride pixels turns into the channels of one pixel, and so do the weights, padded with zeros
       to whole blocks ("space to depth"). Height and width must be multiples of the stride.
    4. In bfloat16, where a convolution still reads the images and feeds a batch normalization,
       channels of zeros make up 16, in the images and in the weights alike.
    5. Filters of zeros make up a multiple of 16; what they compute is cut off.

    `graph` has the input ``data``, images of (channels, height, width); the layers will compute in
    `precision`, but the casts come later. Input, output and parameters keep their names and shapes.
    What changes is the order in which a sum is added up.
    """
    channels, *image_size = image_shape
    if precision == 'bfloat16':
        graph = crop_windows(graph, image_shape)
    graph = rewrite(graph, _pool_before_relu)
    graph = rewrite(graph, lambda new, node: _read_blocks(new, node, channels, image_size))
    # As measured, neither float32 nor a convolution that feeds a ReLU gains from more channels.
    if precision == 'bfloat16' and channels < _CHANNELS:
        graph = rewrite(graph, lambda new, node: _pad_channels(new, node, channels))
    return rewrite(graph, _pad_filters)


def _is_convolution(node):
    return node['op'] == 'Convolution' and node['attrs'].get('num_group', '1') == '1'


def _reads_images(new, node):
    """Return whether this is a convolution in two dimensions of what the graph is given."""
    return (_is_convolution(node) and len(sizes(node, 'kernel')) == 2
            and new.nodes[node['inputs'][0][0]]['op'] == 'null')


def _pool_before_relu(new, node):
    """Let a max pooling and the ReLU that it alone reads change places."""
    if (node['op'] != 'Pooling' or node['attrs'].get('pool_type', 'max') != 'max'
            or 'output' in node['readers']):
        return None
    relu = new.nodes[node['inputs'][0][0]]
    if (relu['op'] != 'Activation' or relu['attrs']['act_type'] != 'relu'
            or len(relu['readers']) > 1):
        return None
    pooled = new.copy({**node, 'inputs': relu['inputs']})
    return new.copy({**relu, 'inputs': [pooled], 'readers': node['readers']})


def _read_blocks(new, node, channels, image_size):
    """Let a convolution of the images read blocks of stride x stride pixels without a stride."""
    stride = sizes(node, 'stride', (1, 1))
    if (not _reads_images(new, node) or stride[0] != stride[1] or stride[0] == 1
            or sizes(node, 'pad', (0, 0)) != (0, 0) or sizes(node, 'dilate', (1, 1)) != (1, 1)
            or any(size % stride[0] for size in image_size)):
        return None
    (images, weights, *bias), name, block = node['inputs'], node['name'], stride[0]
    kernel = sizes(node, 'kernel')
    missing = [-size % block for size in kernel]
    # A convolution with ones and zeros cuts them, faster than any operator that moves pixels.
    ones = new.add('_eye', f'{name}_ones', [], N=channels * block**2)
    ones = new.add('Reshape', f'{name}_pixels', [ones], shape=(0, block, block, channels))
    ones = new.add('transpose', f'{name}_picked', [ones], axes=(0, 3, 1, 2))
    images = new.add('Convolution', f'{name}_cut', [images, ones], no_bias=True,
                     kernel=stride, stride=stride, num_filter=channels * block**2)
    weights = new.add('Pad', f'{name}_whole', [weights], mode='constant',
                      pad_width=(0, 0, 0, 0, 0, missing[0], 0, missing[1]))
    weights = new.add('space_to_depth', f'{name}_blocks', [weights], block_size=block)
    return new.copy({**node, 'inputs': [images, weights, *bias]}, stride=(1, 1), kernel=tuple(
        (size + more) // block for size, more in zip(kernel, missing)))


def window_in_use(node, shape):
    """Return for each axis the first and the last position of a window that ever sees its maps.

    The others, in maps smaller than the window, see nothing but padding. In bfloat16 oneDNN does
    not write the gradients of their weights: they are what the memory held before.
    """
    found = []
    pads, strides, dilations = (sizes(node, key, 3 * (default,)) for key, default in (
        ('pad', 0), ('stride', 1), ('dilate', 1)))
    for size, kernel, pad, stride, dilation in zip(shape[2:], sizes(node, 'kernel'), pads, strides,
                                                   dilations):
        starts = range(-pad, size + pad - dilation * (kernel - 1), stride)
        used = [i for i in range(kernel)
                if any(0 <= start + dilation * i < size for start in starts)]
        found.append((used[0], used[-1]) if used else (0, kernel - 1))
    return found


def crop_windows(graph, image_shape):
    """Cut off what :func:`window_in_use` leaves, where it is as much on both sides."""
    maps = maps_of(graph, (1, *image_shape))

    def crop(new, node):
        shape = node['op'] == 'Convolution' and maps.get(new.nodes[node['inputs'][0][0]]['name'])
        if not shape or sizes(node, 'dilate', (1, 1)) != (1, 1):
            return None
        kernel, pad = sizes(node, 'kernel'), sizes(node, 'pad', (0, 0))
        cut = [first if first == size - 1 - last else 0
               for size, (first, last) in zip(kernel, window_in_use(node, shape))]
        if not any(cut):
            return None
        (X, weights, *bias), name = node['inputs'], node['name']
        for i, margin in enumerate(cut):
            weights = new.add('slice_axis', f'{name}_cropped{i}', [weights], axis=2 + i,
                              begin=margin, end=kernel[i] - margin)
        return new.copy({**node, 'inputs': [X, weights, *bias]},
                        kernel=tuple(size - 2 * margin for size, margin in zip(kernel, cut)),
                        pad=tuple(size - margin for size, margin in zip(pad, cut)))

    return rewrite(graph, crop)


def _pad_channels(new, node, channels):
    """Give a convolution of the images that feeds a batch normalization 16 channels to read."""
    if not _reads_images(new, node) or 'BatchNorm' not in node['readers']:
        return None
    padded = [_padded(new, f"{node['name']}_channels{i}", entry, channels, _CHANNELS - channels, 1)
              for i, entry in enumerate(node['inputs'][:2])]
    return new.copy({**node, 'inputs': padded + node['inputs'][2:]})


def _pad_filters(new, node):
    """Give a convolution a multiple of 16 filters and cut off what the others compute."""
    number = int(node['attrs'].get('num_filter', 0))
    missing = -number % _CHANNELS
    if not _is_convolution(node) or not missing or node['name'].endswith('_cut'):
        return None
    name, (images, *weights) = node['name'], node['inputs']
    weights = [_padded(new, f'{name}_{i}', entry, number, missing)
               for i, entry in enumerate(weights)]
    wide = new.copy({**node, 'name': f'{name}_wide', 'inputs': [images, *weights]},
                    num_filter=number + missing)
    return new.add('slice_axis', name, [wide], axis=1, begin=0, end=number)


def _padded(new, name, entry, number, missing, axis=0):
    """Add the nodes that put `missing` zeros behind the `number` items on an axis."""
    zeros = new.add('zeros_like', f'{name}_zeros', [entry])
    copies = math.ceil(missing / number)
    both = new.add('Concat', f'{name}_padded', [entry] + copies * [zeros], dim=axis,
                   num_args=1 + copies)
    return new.add('slice_axis', f'{name}_wide', [both], axis=axis, begin=0, end=number + missing)
