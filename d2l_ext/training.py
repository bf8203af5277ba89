"""The training loop of section 7.3."""
import math
import os
import random
import time

import numpy as np

from .arguments import check_int
from .checkpoints import load_checkpoint, save_checkpoint
from .devices import mx, resolve_precision
from .nets import check_input, trace
from .progress import progress_bar
from .threads import threads_note

nd, gluon, autograd = mx.nd, mx.gluon, mx.autograd

# How many batches pass between two looks at the running sums. A look waits for the device, so it
# must be rare; it is also how long a collapsed run goes on before anybody says so.
_LOOK_EVERY = 50
# So many batches in a row with no logit other than 0 are no accident.
_DEAD_AFTER = 5

_ADVICE = 'Try a smaller learning rate, or go back to the last checkpoint'

DEAD_START = """\
dead start: every logit of the last {batches} batches is exactly 0, so the loss is \
ln {classes} = {loss:.6f} and every gradient is 0. All outputs of the last ReLU went negative at \
once, and plain SGD cannot bring them back: the rest of this run will stay as it is. Cures: \
another seed, net.initialize(init.MSRAPrelu(slope=0)), a smaller learning rate, or no ReLU before \
the last pooling."""


def compiled(net, precision='float32'):
    """Return a faster function that computes what `net` computes, on the same parameters.

    The layers become one graph with fixed memory; in bfloat16, convolutions and dense layers
    compute in bfloat16 while parameters, gradients and the result stay float32. `net` itself is
    not changed: called directly it still runs layer by layer in float32.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized; shapes may still be deferred. A block that has no graph, such as one with
        hooks or with a `forward` of its own, is returned as it is and computes in float32.
    precision : {'float32', 'bfloat16'}
        In which the layers compute.
    """
    graph = trace(net)
    if graph is None:
        return net
    if precision == 'bfloat16':
        from mxnet.contrib import amp
        graph = amp.convert_symbol(graph, 'bfloat16', data_names=['data'])
        graph = mx.sym.amp_cast(graph, dtype='float32')
    data = mx.sym.var('data', dtype='float32')
    block = gluon.SymbolBlock(graph, data, params=net.collect_params())
    block.hybridize(static_alloc=True, static_shape=True)
    return block


def _seed_epoch(seed, epoch):
    """Seed Python's, NumPy's and MXNet's generators, so that an epoch repeats by itself."""
    nd.waitall()
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    mx.random.seed(state % 2**31)


def _on(ctx, X, y):
    """Return a batch of arrays, NumPy's or MXNet's, as MXNet arrays on `ctx`."""
    return tuple(a.as_in_context(ctx) if isinstance(a, nd.NDArray) else nd.array(a, ctx=ctx)
                 for a in (X, y))


def _check_batch(net, X, y):
    if y.ndim != 1 or X.shape[0] != y.shape[0]:
        raise ValueError(f'X of shape {X.shape} needs labels y of shape ({X.shape[0]},), '
                         f'not {y.shape}')
    if X.dtype != np.float32:
        raise ValueError(f"images must be float32, not {np.dtype(X.dtype).name}: convert them, "
                         "such as with X.astype('float32') / 255")
    check_input(net, X.shape)


def _check_sums(outside, pixels, num_classes):
    """Raise if there were labels out of range or if the sum over pixels times 0 is not 0."""
    if outside:
        raise ValueError(f'{int(outside)} labels are outside 0 to {num_classes - 1}, the '
                         f'classes that the {num_classes} outputs of the net stand for')
    if math.isnan(pixels):
        raise FloatingPointError('some images hold NaN or infinity; look for a division by zero '
                                 'where they are prepared')


def _sums(X, y, logits):
    """Return right answers, labels out of range, and 0 times the sum over all pixels.

    The last is NaN if a pixel is no finite number; a ReLU may hide that from the loss. All stay on
    the device, so that nobody waits.
    """
    y = y.astype('float32')
    outside = (y < 0) + (y >= logits.shape[1])
    return nd.concat((logits.argmax(axis=1) == y).sum(), outside.sum(), X.sum() * 0,
                     dim=0).astype('float64')


class _Watch:
    """Adds up what the batches of an epoch give, and looks now and then whether it makes sense."""

    def __init__(self, ctx):
        self.zero_run = nd.zeros(1, ctx=ctx)  # batches since a logit was other than 0
        self.explained = False

    def start(self, epoch, ctx):
        """Begin an epoch."""
        self.epoch, self.batches = epoch, 0
        self.loss = nd.zeros(1, ctx=ctx, dtype='float64')
        self.sums = nd.zeros(3, ctx=ctx, dtype='float64')

    def add(self, X, y, logits, l):
        """Take in a batch; only now and then wait for the device."""
        previous = self.loss
        self.loss = self.loss + l.sum().astype('float64')
        self.sums = self.sums + _sums(X, y, logits)
        self.zero_run = (self.zero_run + 1) * (logits.abs().max() == 0)
        self.batches += 1
        # One batch computes while the next is prepared; more would only fill the memory.
        previous.wait_to_read()
        if self.batches % _LOOK_EVERY == 0:
            self.look(logits.shape[1], enough=_DEAD_AFTER)

    def look(self, num_classes, enough):
        """Return loss and right answers so far; raise on broken numbers, tell of a dead start."""
        right, outside, pixels = (float(s) for s in self.sums.asnumpy())
        _check_sums(outside, pixels, num_classes)
        loss, zero_run = self.loss.asscalar(), int(self.zero_run.asscalar())
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss became {loss} in epoch {self.epoch}. {_ADVICE}')
        if zero_run >= enough and not self.explained:
            self.explained = True
            print(DEAD_START.format(batches=zero_run, classes=num_classes,
                                    loss=math.log(num_classes)), flush=True)
        return loss, right


def _train_epoch(net, forward, train_iter, trainer, ctx, batch_size, watch, bar):
    """Train for one pass; return mean loss and accuracy."""
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    num_images = 0
    for X, y in train_iter:
        X, y = _on(ctx, X, y)
        if not num_images:
            _check_batch(net, X, y)
        if X.shape[0] > batch_size:
            raise ValueError(f'batch_size is {batch_size} but train_iter yields a batch of '
                             f'{X.shape[0]} images; pass the size that train_iter was made with')
        with autograd.record():
            logits = forward(X)
            _check_logits(logits)
            l = loss_function(logits, y)
        l.backward()
        trainer.step(X.shape[0])
        watch.add(X, y, logits, l)
        num_images += X.shape[0]
        bar.update(X.shape[0])
    if not num_images:
        raise ValueError('train_iter yields no batch. Is it a generator that has been used up? '
                         'Pass something that can be iterated again, such as a list')
    # A single batch of zeros may come from weights that start at zero, and pass.
    loss, right = watch.look(logits.shape[1], enough=max(2, min(_DEAD_AFTER, watch.batches)))
    for name, param in net.collect_params().items():
        # x * 0 is 0 for a number, but NaN for NaN and for infinity.
        if math.isnan((param.data(ctx) * 0).sum().asscalar()):
            raise FloatingPointError(f'{name} holds NaN or infinity after epoch {watch.epoch}. '
                                     + _ADVICE)
    return loss / num_images, right / num_images


def _check_logits(logits):
    if logits.ndim != 2:
        raise ValueError(f'net must return logits of shape (batch, classes), not {logits.shape}')


def predict(net, data_iter, ctx, precision='auto'):
    """Return what `net` takes the images in `data_iter` for, and what they are.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Maps (batch, ...) to logits of shape (batch, classes).
    data_iter : iterable
        Of ``(X, y)``, y of shape (batch,).
    ctx : mxnet.Context
        Device of the parameters.
    precision : {'auto', 'float32', 'bfloat16'}
        In which the layers compute.

    Returns
    -------
    predicted, true : numpy.ndarray of int, shape (number of images,)

    Raises
    ------
    ValueError
        If `data_iter` is empty, the images do not fit the net, or a label is out of range.
    FloatingPointError
        If an image is no finite number.
    """
    return _predict(net, compiled(net, resolve_precision(precision, ctx)), data_iter, ctx)


def _predict(net, forward, data_iter, ctx):
    predicted, true, sums = [], [], nd.zeros(3, ctx=ctx, dtype='float64')
    for X, y in data_iter:
        X, y = _on(ctx, X, y)
        if not predicted:
            _check_batch(net, X, y)
        logits = forward(X)
        _check_logits(logits)
        previous, sums = sums, sums + _sums(X, y, logits)
        previous.wait_to_read()  # one batch computes while the next is prepared
        predicted.append(logits.argmax(axis=1))
        true.append(y)
    if not predicted:
        raise ValueError('there are no images to predict')
    _check_sums(*sums.asnumpy()[1:], logits.shape[1])
    return tuple(np.concatenate([array.asnumpy() for array in arrays]).astype(int)
                 for arrays in (predicted, true))


def evaluate_accuracy(net, data_iter, ctx, precision='auto'):
    """Return the fraction of images in `data_iter` that `net` classifies right.

    Parameters and errors are those of :func:`predict`.
    """
    predicted, true = predict(net, data_iter, ctx, precision)
    return float((predicted == true).mean())


def print_epoch(row):
    """Print a row of a history as the section does."""
    print('epoch %d, loss %.4f, train acc %.3f, test acc %.3f, time %.1f sec'
          % (row['epoch'], row['loss'], row['train_acc'], row['test_acc'], row['seconds']),
          flush=True)


def train_ch5(net, train_iter, test_iter, batch_size, trainer, ctx, num_epochs, *,
              precision='auto', checkpoint=None, resume=False, seed=None, report=print_epoch):
    """Train a classifier, printing a line an epoch as section 7.3 does.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized on `ctx`; maps `X` to logits of shape (batch, classes).
    train_iter, test_iter : iterable
        Of ``(X, y)``: X float32 of shape (batch, channels, height, width), y whole numbers from
        0 of shape (batch,). Iterated once an epoch: a list, a Gluon ``DataLoader`` or what
        ``load_data_fashion_mnist`` returns.
    batch_size : int
        Images in a full batch. Each step divides by the number of images it really had.
    trainer : mxnet.gluon.Trainer
        Of the net's parameters.
    ctx : mxnet.Context
        Device to train on.
    num_epochs : int
        Passes over `train_iter`, those already in a resumed checkpoint included.
    precision : {'auto', 'float32', 'bfloat16'}
        In which the layers compute; 'auto' is bfloat16 where the processor has instructions
        for it. Parameters, gradients and loss are float32 always.
    checkpoint : str or path, optional
        File that receives the whole state after each epoch.
    resume : bool
        Go on from `checkpoint` if that file exists; the numbers are those of a run that was
        never interrupted, on the same machine and number of threads.
    seed : int, optional
        From which every epoch seeds Python's, NumPy's and MXNet's generators (and so order,
        dropout, and parameters whose initialization is deferred). Drawn from NumPy's generator
        if left out.
    report : callable
        Called with the row of each new epoch.

    Returns
    -------
    list of dict
        One an epoch: `epoch` from 1, `loss` (mean cross-entropy, in nats), `train_acc` and
        `test_acc` (fractions; the first measured while training), `seconds`.

    Raises
    ------
    ValueError
        If an argument is out of range, the data do not fit the net, or the checkpoint belongs
        to another network.
    FloatingPointError
        If an image, the loss or a parameter is no finite number.
    OSError
        If the checkpoint cannot be written.
    """
    batch_size = check_int('batch_size', batch_size, 1)
    num_epochs = check_int('num_epochs', num_epochs, 0)
    if seed is not None:
        seed = check_int('seed', seed, 0, 2**32 - 1)
    if resume and checkpoint is None:
        raise ValueError('resume=True needs checkpoint=, the file to go on from')
    if hasattr(test_iter, '__len__') and not len(test_iter):
        raise ValueError('test_iter has no batch')
    resolved = resolve_precision(precision, ctx)
    forward = compiled(net, resolved)
    if forward is net and precision == 'bfloat16':
        raise ValueError("precision='bfloat16' needs a net of hybrid blocks without hooks; this "
                         "one has no graph. Use precision='auto'")
    print('training on', ctx)
    if threads_note():
        print(threads_note())
    settings = {'batch_size': batch_size,
                'precision': 'float32' if forward is net else resolved}
    history = []
    if resume and os.path.exists(checkpoint):
        if seed is not None:
            settings['seed'] = seed
        history, seed = load_checkpoint(checkpoint, net, trainer, ctx, settings)
        print(f'going on after epoch {len(history)}, from {checkpoint}')
    elif seed is None:
        seed = int(np.random.randint(2**31))
    settings['seed'] = seed
    watch = _Watch(ctx)
    num_images = len(train_iter) * batch_size if hasattr(train_iter, '__len__') else None
    for epoch in range(len(history) + 1, num_epochs + 1):
        start = time.time()
        _seed_epoch(seed, epoch)
        watch.start(epoch, ctx)
        with progress_bar(num_images, ' images', f'epoch {epoch} of {num_epochs}') as bar:
            loss, train_acc = _train_epoch(net, forward, train_iter, trainer, ctx, batch_size,
                                           watch, bar)
        predicted, true = _predict(net, forward, test_iter, ctx)
        history.append({'epoch': epoch, 'loss': loss, 'train_acc': train_acc,
                        'test_acc': float((predicted == true).mean()),
                        'seconds': time.time() - start})
        if checkpoint is not None:
            save_checkpoint(checkpoint, net, trainer, ctx, history, settings)
        report(history[-1])
    return history
