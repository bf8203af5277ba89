"""What a net makes of images, and the checks of batches and numbers that training shares."""
import collections.abc
import math

import numpy as np

from .arguments import check_type, refusal
from .devices import check_devices, mx
from .graphs import check_initialized, check_input, choose
from .graphs.numpy_mode import as_iterated, computed_in_nd

nd, gluon = mx.nd, mx.gluon

_ADVICE = 'Try a smaller learning rate, or go back to the last checkpoint'

# How many batches pass between two looks at the running sums. A look waits for the device, so it
# must be rare; it is also how long a collapsed run goes on before anybody says so.
_LOOK_EVERY = 50
# So many batches in a row with no logit other than 0 are no accident.
DEAD_AFTER = 5

DEAD_START = """\
dead start: every logit of the last {batches} batches is exactly 0, so the loss is \
ln {classes} = {loss:.6f} and every gradient is 0. All outputs of the last ReLU went negative at \
once, and plain SGD cannot bring them back: the rest of this run will stay as it is. Cures: \
another seed, net.initialize(init.MSRAPrelu(slope=0)), a smaller learning rate, or no ReLU before \
the last pooling."""


def check_batches(name, batches):
    """Raise a ValueError unless `batches` can be iterated over."""
    check_type(name, batches, collections.abc.Iterable, 'batches, pairs (X, y), such as a list')


def no_batch(name):
    """Return the ValueError for batches that hold none."""
    return ValueError(f'{name} yields no batch. Is it a generator that has been used up? Pass '
                      'something that can be iterated again, such as a list')


def checked_batches(net, ctx, name, batches):
    """Yield pairs of arrays, NumPy's or MXNet's, that fit `net` as MXNet arrays on `ctx`."""
    shape = None
    for batch in as_iterated(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(map(np.ndim, batch)):
            raise refusal(f'each batch of {name}', batch, 'a pair (X, y) of arrays')
        if not all(map(len, batch)):  # MXNet's arrays cannot be empty
            raise ValueError(f'{name} yields a batch of 0 images; leave it out')
        X, y = (a.as_nd_ndarray().as_in_context(ctx) if isinstance(a, nd.NDArray)
                else nd.array(a, ctx=ctx) for a in batch)
        if y.ndim != 1 or X.shape[0] != y.shape[0]:
            raise ValueError(f'X of shape {X.shape} needs labels y of shape ({X.shape[0]},), '
                             f'not {y.shape}')
        if X.dtype != np.float32:
            raise ValueError(f'images must be float32, not {np.dtype(X.dtype).name}: convert '
                             "them, such as with X.astype('float32') / 255")
        if X.shape[1:] != shape:
            check_input(net, X.shape)
            shape = X.shape[1:]
        yield X, y


def check_sums(outside, broken, num_classes):
    """Raise if there were labels out of range or batches with pixels that are no numbers."""
    if outside:
        raise ValueError(f'{int(outside)} labels are outside 0 to {num_classes - 1}, the whole '
                         f'numbers that the {num_classes} outputs of the net stand for')
    if broken:
        raise FloatingPointError('some images hold NaN or infinity; look for a division by zero '
                                 'where they are prepared')


def batch_sums(X, y, logits):
    """Return right answers, labels that stand for no class, and 1 if a pixel is NaN or infinite.

    A ReLU may hide such a pixel from the loss. All stay on the device, so that nobody waits.
    """
    y = y.astype('float32')
    outside = ((y >= 0) * (y < logits.shape[1]) * (y == y.floor())) == 0  # so is NaN
    # X.sum() would tell, too, but takes as long as a layer.
    return nd.concat((logits.argmax(axis=1) == y).sum(), outside.sum(), 1 - nd.all_finite(X),
                     dim=0).astype('float64')


def check_params(net, ctx, when, advice=_ADVICE):
    """Raise if a parameter is no finite number; a ReLU may hide that from the loss."""
    for name, param in net.collect_params().items():
        # x * 0 is 0 for a number, but NaN for NaN and for infinity. What is deferred has no data.
        if param._data and math.isnan((param.data(ctx) * 0).sum().asscalar()):
            raise FloatingPointError(f'{name} holds NaN or infinity {when}. {advice}')


class Watch:
    """Adds up what the batches of an epoch give, and looks now and then whether it makes sense."""

    def __init__(self, net, ctx, say):
        self.net, self.ctx, self.say = net, ctx, say
        self.zero_run = nd.zeros(1, ctx=ctx)  # batches since a logit was other than 0
        self.explained, self.num_classes = False, None  # a worker may never get an image

    def start(self, epoch):
        """Begin an epoch."""
        self.epoch, self.batches = epoch, 0
        self.loss = nd.zeros(1, ctx=self.ctx, dtype='float64')
        self.sums = nd.zeros(3, ctx=self.ctx, dtype='float64')

    def add(self, outputs):
        """Take in what a step returns; only now and then wait for it."""
        if not outputs:
            return
        previous, zero_run = self.loss, self.zero_run + 1
        for X, y, logits, l in outputs:
            self.loss = self.loss + l.sum().astype('float64').as_in_context(self.ctx)
            self.sums = self.sums + batch_sums(X, y, logits).as_in_context(self.ctx)
            zero_run = zero_run * (logits.abs().max() == 0).as_in_context(self.ctx)
        self.zero_run = zero_run
        self.num_classes = logits.shape[1]
        self.batches += 1
        # One batch computes while the next is prepared; more would only fill the memory.
        previous.wait_to_read()
        if self.batches % _LOOK_EVERY == 0:
            self.look(enough=DEAD_AFTER)

    def look(self, enough):
        """Return loss and right answers so far; raise on broken numbers, tell of a dead start."""
        right, outside, broken = (float(s) for s in self.sums.asnumpy())
        check_sums(outside, broken, self.num_classes)
        loss, zero_run = self.loss.asscalar(), int(self.zero_run.asscalar())
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss became {loss} in epoch {self.epoch}. {_ADVICE}')
        if zero_run >= enough and not self.explained and self._stuck():
            self.explained = True
            self.say(DEAD_START.format(batches=zero_run, classes=self.num_classes,
                                       loss=math.log(self.num_classes)), flush=True)
        return loss, right

    def end(self):
        """Return loss and right answers of the whole epoch, as :meth:`look` does."""
        # A single batch of zeros may come from weights that start at zero, and pass.
        return self.look(enough=max(2, min(DEAD_AFTER, self.batches)))

    def _stuck(self):
        """Return whether all gradients of the last batch are 0; logits alone may start at 0."""
        check_params(self.net, self.ctx, f'in epoch {self.epoch}')
        return not any(param.grad(self.ctx).abs().max().asscalar()
                       for param in self.net.collect_params().values() if param._grad)


def check_logits(logits):
    """Raise a ValueError unless `logits` have the shape (batch, classes)."""
    if not isinstance(logits, nd.NDArray) or logits.ndim != 2:
        found = getattr(logits, 'shape', f'a {type(logits).__name__}')
        raise ValueError(f'net must return logits of shape (batch, classes), not {found}')


def split(devices, X, y):
    """Return a pair (X, y) for each device; fewer where there are fewer images than devices."""
    return list(zip(*(gluon.utils.split_and_load(a, devices[:len(X)], even_split=False)
                      for a in (X, y))))


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
        In which the layers compute.

    Returns
    -------
    predicted, true : numpy.ndarray of int, shape (number of images,)

    Raises
    ------
    ValueError
        If `data_iter` is empty, the images do not fit the net, or a label is out of range.
    FloatingPointError
        If an image or a parameter is no finite number.
    """
    devices = check_devices(ctx)
    for device in devices:
        check_initialized(net, device)
    check_batches('data_iter', data_iter)
    check_params(net, devices[0], 'before predicting', 'Initialize the net anew, or load others')
    forward = choose(net, devices[0], precision, [data_iter]).forward
    return classify(net, forward, 'data_iter', data_iter, devices)


def classify(net, forward, name, data_iter, devices):
    """Return what :func:`predict` returns, of the compiled `net`; `name` is that of the batches."""
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
        raise ValueError(f'there are no images to predict: {name} must yield a batch, not none')
    check_sums(*sums.asnumpy()[1:], logits.shape[1])
    return tuple(np.concatenate([array.asnumpy() for array in arrays]).astype(int)
                 for arrays in (predicted, true))


def evaluate_accuracy(net, data_iter, ctx, precision='auto'):
    """Return the fraction of images in `data_iter` that `net` classifies right.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Maps (batch, ...) to logits of shape (batch, classes).
    data_iter : iterable
        Of ``(X, y)``, y of shape (batch,).
    ctx : mxnet.Context or list of mxnet.Context
        Devices of the parameters; several share each batch.
    precision : {'auto', 'float32', 'bfloat16', 'float16'}
        In which the layers compute.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError, FloatingPointError
        As :func:`predict` does.
    """
    predicted, true = predict(net, data_iter, ctx, precision)
    return float((predicted == true).mean())
