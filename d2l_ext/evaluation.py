"""What a net makes of images."""
import numpy as np

from .checks.batches import (
    batch_sums,
    check_batches,
    check_logits,
    check_sums,
    checked_batches,
    no_batch,
)
from .checks.finite import check_finite
from .checks.nets import check_initialized
from .devices import check_devices, mx
from .graphs import choose
from .graphs.fusing import faster_for_few
from .graphs.numpy_mode import computed_in_nd
from .scale.several_devices import split

nd = mx.nd


@computed_in_nd
def predict(net, data_iter, ctx, precision='auto'):
    """Return what `net` takes the images in `data_iter` for, and what they are.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Maps (batch, ...) to logits of shape (batch, classes).
    data_iter : iterable
        Of ``(X, y)``, y of shape (batch,).
    ctx : mxnet.Context or list of mxnet.Context
        Devices of the parameters; several share each batch.
    precision : {'auto', 'float32', 'bfloat16', 'float16'}
        In which the layers compute, as for :func:`~d2l_ext.train_ch5`.

    Returns
    -------
    predicted, true : numpy.ndarray of int, shape (number of images,)

    Raises
    ------
    ValueError
        If `data_iter` is empty, the images do not fit the net, a label is out of range, the net
        has no parameters on `ctx`, or `precision` does not work.
    FloatingPointError
        If an image or a parameter is no finite number.
    """
    devices = check_devices(ctx)
    for device in devices:
        check_initialized(net, device)
    check_batches('data_iter', data_iter)
    check_finite(net, devices[0], 'before predicting', 'Initialize the net anew, or load others')
    choice = choose(net, devices[0], precision, [data_iter])
    one_cpu = len(devices) == 1 and devices[0].device_type == 'cpu'
    forward = faster_for_few(net, choice) if one_cpu else choice.forward
    return classify(net, forward, 'data_iter', data_iter, devices)


def classify(net, forward, name, data_iter, devices):
    """Do the work of :func:`predict`; `forward` computes `net`, errors call the batches `name`."""
    predicted, true, sums = [], [], nd.zeros(3, ctx=devices[0], dtype='float64')
    for X, y in checked_batches(net, devices[0], name, data_iter):
        previous = sums
        for X_, y_ in split(devices, X, y):
            logits = forward(X_)
            check_logits(logits)
            sums = sums + batch_sums(X_, y_, logits).as_in_context(devices[0])
            predicted.append(logits.argmax(axis=1))
        previous.wait_to_read()  # one batch computes while the next is prepared
        true.append(y)
    if not predicted:
        raise no_batch(name)
    check_sums(*sums.asnumpy()[1:], logits.shape[1])
    return tuple(np.concatenate([array.asnumpy() for array in arrays]).astype(int)
                 for arrays in (predicted, true))


def evaluate_accuracy(net, data_iter, ctx, precision='auto'):
    """Return the fraction of images in `data_iter` that `net` classifies right.

    Parameters
    ----------
    net, data_iter, ctx, precision
        As for :func:`predict`. The book of 2019 has `data_iter` before `net`; either order will do.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError, FloatingPointError
        As :func:`predict` does.
    """
    if isinstance(data_iter, mx.gluon.Block):
        net, data_iter = data_iter, net
    predicted, true = predict(net, data_iter, ctx, precision)
    return float((predicted == true).mean())
