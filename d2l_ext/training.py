"""The training loop of section 7.3."""
import math
import os
import random
import time

import numpy as np

from .arguments import check_int
from .checkpoints import load_checkpoint, save_checkpoint
from .devices import mx, resolve_precision
from .nets import check_input
from .progress import progress_bar
from .threads import threads_note

nd, gluon, autograd = mx.nd, mx.gluon, mx.autograd

# How many batches pass between two looks at the running sums. A look waits for the device, so it
# must be rare; it is also how long a collapsed run goes on before anybody says so.
_LOOK_EVERY = 50

_ADVICE = 'Try a smaller learning rate, or go back to the last checkpoint'

DEAD_START = """\
dead start: every logit of the last {batches} batch(es) is exactly 0, so the loss is \
ln {classes} = {loss:.6f} and every gradient is 0. All outputs of the last ReLU went negative at \
once and nothing can bring them back; the rest of this run will not change it. Cures: another \
seed, net.initialize(init.MSRAPrelu(slope=0)), a smaller learning rate, or no ReLU before the \
last pooling."""


def _traceable(block):
    """Return whether one graph can stand for `block`: hybrid blocks in sequence, no hooks."""
    if block._forward_hooks or block._forward_pre_hooks:
        return False
    children = all(_traceable(child) for child in block._children.values())
    return children and (isinstance(block, gluon.HybridBlock) or type(block) is gluon.nn.Sequential)


def compiled(net, precision='float32'):
    """Return a faster function that computes what `net` computes, on the same parameters.

    The layers become one graph with fixed memory; in bfloat16, convolutions and dense layers
    compute in bfloat16 while parameters, gradients and the result stay float32. `net` itself is
    not changed: called directly it still runs layer by layer in float32.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized; shapes may still be deferred. A block that Gluon cannot trace is returned
        as it is.
    precision : {'float32', 'bfloat16'}
        In which the layers compute.
    """
    if not _traceable(net):
        return net
    data = mx.sym.var('data', dtype='float32')
    out = net(data)
    if precision == 'bfloat16':
        from mxnet.contrib import amp
        out = amp.convert_symbol(out, 'bfloat16', data_names=['data'])
        out = mx.sym.amp_cast(out, dtype='float32')
    block = gluon.SymbolBlock(out, data, params=net.collect_params())
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


def _check_batch(net, X, y, batch_size):
    if y.ndim != 1 or X.shape[0] != y.shape[0]:
        raise ValueError(f'X of shape {X.shape} needs labels y of shape ({X.shape[0]},), '
                         f'not {y.shape}')
    if X.dtype != np.float32:
        raise ValueError(f"images must be float32, not {np.dtype(X.dtype).name}: convert them, "
                         "such as with X.astype('float32') / 255")
    if X.shape[0] > batch_size:
        raise ValueError(f'batch_size is {batch_size} but train_iter yields batches of '
                         f'{X.shape[0]} images; pass the size that train_iter was made with')
    if _traceable(net):
        check_input(net, X.shape)


def _sums(X, logits, l, y):
    """Return what an epoch adds up, still on the device.

    Loss, right answers, labels out of range, 1 if every logit is 0, and 0 or, if a pixel is no
    finite number, NaN: a ReLU may hide those from the loss.
    """
    y = y.astype('float32')
    outside = (y < 0) + (y >= logits.shape[1])
    return nd.concat(l.sum(), (logits.argmax(axis=1) == y).sum(), outside.sum(),
                     logits.abs().max() == 0, X.sum() * 0, dim=0).astype('float64')


class _Watch:
    """Looks at an epoch's running sums now and then, and says what is wrong with them."""

    def __init__(self):
        self.explained = False

    def start(self, epoch):
        """Begin an epoch, whose sums start at zero."""
        self.epoch, self.batches, self.zero_batches = epoch, 0, 0

    def look(self, sums, batches, num_classes):
        """Return loss and right answers so far; raise on broken numbers, tell of a dead start."""
        loss, right, outside, zero_batches, pixels = (float(s) for s in sums.asnumpy())
        if outside:
            raise ValueError(f'{int(outside)} labels are outside 0 to {num_classes - 1}, the '
                             f'classes that the {num_classes} outputs of the net stand for')
        if math.isnan(pixels):
            raise FloatingPointError(f'some images of epoch {self.epoch} hold NaN or infinity; '
                                     'look for a division by zero where they are prepared')
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss became {loss} in epoch {self.epoch}. {_ADVICE}')
        new, zero = batches - self.batches, zero_batches - self.zero_batches
        if 0 < new == zero and not self.explained:
            self.explained = True
            print(DEAD_START.format(batches=int(zero), classes=num_classes,
                                    loss=math.log(num_classes)), flush=True)
        self.batches, self.zero_batches = batches, zero_batches
        return loss, right


def _train_epoch(net, forward, train_iter, trainer, ctx, batch_size, watch, bar):
    """Train for one pass; return mean loss and accuracy."""
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    sums, num_images, i = nd.zeros(5, ctx=ctx, dtype='float64'), 0, 0
    for i, (X, y) in enumerate(train_iter, 1):
        X, y = _on(ctx, X, y)
        if i == 1:
            _check_batch(net, X, y, batch_size)
        with autograd.record():
            logits = forward(X)
            if logits.ndim != 2:
                raise ValueError('net must return logits of shape (batch, classes), '
                                 f'not {logits.shape}')
            l = loss_function(logits, y)
        l.backward()
        trainer.step(X.shape[0])
        previous, sums = sums, sums + _sums(X, logits, l, y)
        # One batch computes while the next is prepared; more would only fill the memory.
        previous.wait_to_read()
        num_images += X.shape[0]
        bar.update(X.shape[0])
        if i % _LOOK_EVERY == 0:
            watch.look(sums, i, logits.shape[1])
    if not num_images:
        raise ValueError('train_iter yields no batch. Is it a generator that has been used up? '
                         'Pass something that can be iterated again, such as a list')
    loss, right = watch.look(sums, i, logits.shape[1])
    for name, param in net.collect_params().items():
        # x * 0 is 0 for a number, but NaN for NaN and for infinity.
        if math.isnan((param.data(ctx) * 0).sum().asscalar()):
            raise FloatingPointError(f'{name} holds NaN or infinity after epoch {watch.epoch}. '
                                     + _ADVICE)
    return loss / num_images, right / num_images


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
        If `data_iter` is empty.
    """
    return _predict(compiled(net, resolve_precision(precision, ctx)), data_iter, ctx)


def _predict(forward, data_iter, ctx):
    predicted, true = [], []
    for X, y in data_iter:
        X, y = _on(ctx, X, y)
        if predicted:
            predicted[-1].wait_to_read()  # one batch computes while the next is prepared
        predicted.append(forward(X).argmax(axis=1))
        true.append(y)
    if not predicted:
        raise ValueError('there are no images to predict')
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
    forward = compiled(net, resolve_precision(precision, ctx))
    print('training on', ctx)
    if threads_note():
        print(threads_note())
    history = []
    if resume and os.path.exists(checkpoint):
        history, kept_seed = load_checkpoint(checkpoint, net, trainer, ctx)
        if seed not in (None, kept_seed):
            raise ValueError(f'{checkpoint} was made with seed={kept_seed}, not {seed}; leave '
                             'seed out or pass another checkpoint')
        seed = kept_seed
        print(f'going on after epoch {len(history)}, from {checkpoint}')
    elif seed is None:
        seed = int(np.random.randint(2**31))
    watch = _Watch()
    num_images = len(train_iter) * batch_size if hasattr(train_iter, '__len__') else None
    for epoch in range(len(history) + 1, num_epochs + 1):
        start = time.time()
        _seed_epoch(seed, epoch)
        watch.start(epoch)
        with progress_bar(num_images, ' images', f'epoch {epoch} of {num_epochs}') as bar:
            loss, train_acc = _train_epoch(net, forward, train_iter, trainer, ctx, batch_size,
                                           watch, bar)
        predicted, true = _predict(forward, test_iter, ctx)
        history.append({'epoch': epoch, 'loss': loss, 'train_acc': train_acc,
                        'test_acc': float((predicted == true).mean()),
                        'seconds': time.time() - start})
        if checkpoint is not None:
            save_checkpoint(checkpoint, net, trainer, history, seed)
        report(history[-1])
    return history
