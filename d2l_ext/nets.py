"""Section 7.3's networks."""
from .arguments import check_int, check_pair
from .devices import mx

nn = mx.gluon.nn


def nin_block(num_channels, kernel_size, strides, padding, num_one_by_one=2):
    """Return a NiN block: a convolution followed by 1x1 convolutions, a ReLU after each.

    Parameters
    ----------
    num_channels : int
        Output channels of every convolution in the block.
    kernel_size, strides, padding : int or pair of int
        Of the first convolution, in pixels (height and width).
    num_one_by_one : int
        How many 1x1 convolutions follow. The section uses two; exercise 2 varies them.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_channels, height', width') with
        ``height' = (height + 2 * padding - kernel_size) // strides + 1``; width likewise.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> block = nin_block(96, kernel_size=11, strides=4, padding=0)
    >>> block.initialize()
    >>> block(mx.nd.zeros((1, 1, 224, 224))).shape
    (1, 96, 54, 54)
    """
    num_channels = check_int('num_channels', num_channels, 1)
    kernel_size = check_pair('kernel_size', kernel_size, 1)
    strides = check_pair('strides', strides, 1)
    padding = check_pair('padding', padding, 0)
    num_one_by_one = check_int('num_one_by_one', num_one_by_one, 0)
    block = nn.HybridSequential()
    block.add(nn.Conv2D(num_channels, kernel_size, strides, padding, activation='relu'))
    for _ in range(num_one_by_one):
        block.add(nn.Conv2D(num_channels, kernel_size=1, activation='relu'))
    return block


def nin(num_classes=10, num_one_by_one=2):
    """Return the Network in Network of section 7.3, ten children in sequence.

    Lin, Chen and Yan, *Network In Network*, 2013, with the widths and windows that section 7.3 of
    *Dive into Deep Learning* takes from AlexNet. Ten classes: 1,992,166 parameters.

    Parameters
    ----------
    num_classes : int
        Channels of the last block, which global average pooling turns into the logits.
    num_one_by_one : int
        1x1 convolutions in each block.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_classes); height and width of at
        least 67 pixels.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    num_classes = check_int('num_classes', num_classes, 1)
    net = nn.HybridSequential()
    net.add(nin_block(96, 11, 4, 0, num_one_by_one),
            nn.MaxPool2D(pool_size=3, strides=2),
            nin_block(256, 5, 1, 2, num_one_by_one),
            nn.MaxPool2D(pool_size=3, strides=2),
            nin_block(384, 3, 1, 1, num_one_by_one),
            nn.MaxPool2D(pool_size=3, strides=2),
            nn.Dropout(0.5),
            nin_block(num_classes, 3, 1, 1, num_one_by_one),
            nn.GlobalAvgPool2D(),
            nn.Flatten())
    return net


def _is_hybrid(block):
    """Return whether `block` is made of hybrid blocks and plain sequences, without hooks."""
    if block._forward_hooks or block._forward_pre_hooks:
        return False
    children = all(_is_hybrid(child) for child in block._children.values())
    return children and (isinstance(block, mx.gluon.HybridBlock) or type(block) is nn.Sequential)


def trace(net):
    """Return the graph that `net` computes, with the one input `data`, or None if it has none.

    Only hybrid blocks, and plain sequences of them, have one. A hook must run with real numbers.
    """
    if not _is_hybrid(net):
        return None
    try:
        return net(mx.sym.var('data', dtype='float32'))
    except Exception:  # a block that asks for shapes or numbers can raise anything
        return None


def check_input(net, shape):
    """Make sure that `net` accepts images of `shape`, without computing anything.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized or not; it stays as it is. Nothing is checked if it has no graph.
    shape : tuple of int
        Of a batch: (batch, channels, height, width), or (batch, features) for a dense net.

    Raises
    ------
    ValueError
        Naming the first layer that cannot take what reaches it.
    """
    graph = trace(net)
    if graph is None:
        return
    settled = {name: param.shape for name, param in net.collect_params().items()
               if param.shape and all(param.shape)}  # zeros are still to be inferred
    reached = tuple(shape)
    for node in graph.get_internals():
        if node.get_children() is None:  # an input or a parameter
            continue
        try:
            _, (output,), _ = node.infer_shape_partial(data=shape, **{
                name: settled[name] for name in node.list_arguments() if name in settled})
        except mx.MXNetError as error:
            reason = str(error).split('Check failed: ')[-1].strip().splitlines()[0]
            raise ValueError(
                f'layer {node.name} cannot take the shape {reached} that reaches it when the '
                f'images have the shape {tuple(shape)}. Use images of (batch, channels, height, '
                f'width) that are large enough, or pass resize=. MXNet says: {reason}') from None
        reached = output
