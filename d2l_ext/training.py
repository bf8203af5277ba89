"""The training loop of section 7.3."""
import collections.abc
import itertools
import math
import os
import random
import time
import zlib

import numpy as np

from .arguments import check_flag, check_int, check_keys, check_path, check_type
from .checkpoints import load_checkpoint, save_checkpoint
from .devices import check_devices, mx
from .evaluation import (
    ADVICE,
    batch_sums,
    check_batches,
    check_logits,
    check_params,
    check_sums,
    checked_batches,
    classify,
    no_batch,
    split,
)
from .graphs import check_initialized, check_trainer, choose
from .progress import progress_bar
from .threads import threads_note
from .workers import finish, workers_of

nd, gluon, autograd = mx.nd, mx.gluon, mx.autograd

# How many batches pass between two looks at the running sums. A look waits for the device, so it
# must be rare; it is also how long a collapsed run goes on before anybody says so.
_LOOK_EVERY = 50
# So many batches in a row with no logit other than 0 are no accident.
DEAD_AFTER = 5

_ROW_KEYS = ('epoch', 'loss', 'train_acc', 'test_acc', 'seconds')

DEAD_START = """\
dead start: every logit of the last {batches} batches is exactly 0, so the loss is \
ln {classes} = {loss:.6f} and every gradient is 0. All outputs of the last ReLU went negative at \
once, and plain SGD cannot bring them back: the rest of this run will stay as it is. Cures: \
another seed, net.initialize(init.MSRAPrelu(slope=0)), a smaller learning rate, or no ReLU before \
the last pooling."""


def seed_epoch(seed, epoch, rank=0):
    """Seed Python's, NumPy's and MXNet's generators, so that an epoch repeats by itself.

    Workers of one job share the order of the images, NumPy's, but not the dropout, MXNet's.
    """
    nd.waitall()
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    if rank:
        state = int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
    mx.random.seed(state % 2**31)


def _size(train_iter):
    """Return what tells sets of images apart cheaply, as far as it is known."""
    batches = len(train_iter) if hasattr(train_iter, '__len__') else 0
    labels = np.ascontiguousarray(getattr(train_iter, 'labels', ()))
    return {'number of batches': batches, 'check sum of labels': zlib.crc32(labels)}


def _shares(net, devices, train_iter, workers):
    """Yield the images in each batch of the whole job, and what of it each device here gets."""
    part = workers.part(train_iter)
    for X, y in checked_batches(net, devices[0], 'train_iter', part):
        total, mine = part.counts or (len(X), len(X))
        yield total, split(devices, X, y) if mine else []


def _no_gradients(trainer, devices):
    """Set the gradients on devices that got no image to 0, which is their part of the sum."""
    for ctx in devices:
        for param in trainer._params:
            if param.grad_req != 'null':
                param.grad(ctx)[:] = 0
                param.data(ctx)._fresh_grad = True


def set_loss_scaling(trainer, wanted):
    """Give `trainer` MXNet's loss scaler, which float16 needs, or take it away.

    Gradients too small for float16 would become 0, so the loss is multiplied with a large number
    and each step divides by it. A step whose gradients overflow is skipped and the number halved;
    after 2,000 steps without it is doubled (Micikevicius et al., *Mixed Precision Training*, 2018).
    """
    has = hasattr(trainer, '_amp_loss_scaler')
    if wanted and not has:  # as amp.init_trainer, which asks for amp.init's patch of the process
        from mxnet.contrib.amp.loss_scaler import LossScaler
        trainer._amp_loss_scaler = LossScaler()
        trainer._amp_original_scale = trainer._scale
    elif has and not wanted:
        trainer._scale = trainer._amp_original_scale
        del trainer._amp_loss_scaler


def scale_losses(losses, trainer):
    """Return the losses, multiplied for float16, from which gradients are computed."""
    if not hasattr(trainer, '_amp_loss_scaler'):
        return losses
    from mxnet.contrib import amp
    with amp.scale_loss(losses, trainer) as scaled:
        return scaled


def _average_statistics(net, devices, workers):
    """Give all devices the mean of what each has seen, such as batch normalization's mean."""
    params = [param for _, param in sorted(net._collect_params_with_prefix().items())
              if not param._differentiable]
    if not params or workers.number * len(devices) == 1:
        return
    sums = [sum(param.data(ctx).asnumpy().astype('float64') for ctx in devices) for param in params]
    sums = workers.sum(np.concatenate([values.reshape(-1) for values in sums]))
    ends = np.cumsum([np.prod(param.shape) for param in params])
    for param, values in zip(params, np.split(sums, ends[:-1])):
        param.set_data(nd.array(values.reshape(param.shape) / (workers.number * len(devices))))


def _start_alike(net, forward, trainer, devices, workers, train_iter, seed):
    """Give all devices and workers the parameters of the first; Gluon would after a step."""
    if any(param._deferred_init for param in net.collect_params().values()):
        seed_epoch(seed, 1)  # as in the first epoch on a single device
        for X, _ in checked_batches(net, devices[0], 'train_iter', train_iter):
            forward(X[:1])
            break
    if not trainer._kv_initialized:
        workers.make_sendable(trainer._params)
        trainer._init_kvstore()
        trainer._init_params()


class _Watch:
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

    def add(self, shares):
        """Take in a batch, (X, y, logits, l) of each device; only now and then wait for it."""
        previous, zero_run = self.loss, self.zero_run + 1
        for X, y, logits, l in shares:
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
            raise FloatingPointError(f'the loss became {loss} in epoch {self.epoch}. {ADVICE}')
        if zero_run >= enough and not self.explained and self._stuck():
            self.explained = True
            self.say(DEAD_START.format(batches=zero_run, classes=self.num_classes,
                                       loss=math.log(self.num_classes)), flush=True)
        return loss, right

    def _stuck(self):
        """Return whether all gradients of the last batch are 0; logits alone may start at 0."""
        check_params(self.net, self.ctx, f'in epoch {self.epoch}')
        return not any(param.grad(self.ctx).abs().max().asscalar()
                       for param in self.net.collect_params().values() if param.grad_req != 'null')


def _train_epoch(net, forward, train_iter, trainer, devices, workers, batch_size, watch, bar):
    """Train for one pass; return mean loss and accuracy."""
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    num_images = 0
    for total, shares in _shares(net, devices, train_iter, workers):
        if total > batch_size:
            raise ValueError(f'batch_size is {batch_size} but train_iter yields a batch of '
                             f'{total} images; pass the size that train_iter was made with')
        outputs, losses = [], []
        with autograd.record():
            for X, y in shares:
                logits = forward(X)
                check_logits(logits)
                losses.append(loss_function(logits, y))
                outputs.append((X, y, logits, losses[-1]))
            losses = scale_losses(losses, trainer)
        for l in losses:
            l.backward()
        _no_gradients(trainer, devices[len(shares):])
        trainer.step(total)  # gradients are summed over all devices and workers
        if outputs:
            watch.add(outputs)
        num_images += total
        bar.update(total)
    if not num_images:
        raise no_batch('train_iter')
    # A single batch of zeros may come from weights that start at zero, and pass.
    loss, right = watch.look(enough=max(2, min(DEAD_AFTER, watch.batches)))
    _average_statistics(net, devices, workers)
    check_params(net, devices[0], f'after epoch {watch.epoch}')
    loss, right = workers.sum([loss, right]).tolist()
    return loss / num_images, right / num_images


def print_epoch(row):
    """Print a row of a history as the section does."""
    check_keys('row', row, _ROW_KEYS)
    print('epoch %d, loss %.4f, train acc %.3f, test acc %.3f, time %.1f sec'
          % (row['epoch'], row['loss'], row['train_acc'], row['test_acc'], row['seconds']),
          flush=True)


def _check_run(net, train_iter, test_iter, trainer, ctx, precision, checkpoint, resume, report):
    """Return devices and how the net is computed, or raise a ValueError if it cannot be."""
    if check_flag('resume', resume) and checkpoint is None:
        raise ValueError('resume=True needs checkpoint=, the file to go on from, not None')
    check_type('report', report, collections.abc.Callable, 'a function of a row, such as print')
    check_batches('train_iter', train_iter)
    check_batches('test_iter', test_iter)
    if hasattr(test_iter, '__len__') and not len(test_iter):
        raise ValueError('test_iter has no batch; it must have at least one')
    devices = check_devices(ctx)
    check_trainer(trainer, net, devices)
    return devices, choose(net, devices[0], precision, [train_iter, test_iter])


def _begin(net, trainer, devices, workers, checkpoint, seed, settings, say):
    """Return history and seed: those in `checkpoint`, if there is one, or of a new run."""
    history = []
    with workers.open_checkpoint(checkpoint) as path:
        if path is not None:
            asked = settings if seed is None else {**settings, 'seed': seed}
            history, seed = load_checkpoint(path, net, trainer, devices, asked)
            say(f'going on after epoch {len(history)}, from {checkpoint}')
        elif seed is None:
            seed = int(np.random.randint(2**31))
    return history, int(workers.from_leader(seed))


def _keep(checkpoint, kept, net, trainer, devices, history, settings):
    """Write the checkpoint; before this run has `kept` any, one that is there gets another name."""
    if not kept and checkpoint.exists():  # of a run that nobody asked to resume
        names = (f'{checkpoint}.previous{i if i > 1 else ""}' for i in itertools.count(1))
        previous = next(name for name in names if not os.path.exists(name))
        os.replace(checkpoint, previous)
        print(f'the checkpoint of an earlier run is now {previous}')
    save_checkpoint(checkpoint, net, trainer, devices, history, settings)


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
        Images in a full batch, of all devices and workers together. Each step divides by the
        number of images it really had.
    trainer : mxnet.gluon.Trainer
        Of the net's parameters. With ``kvstore='dist_sync'`` several workers train, on as many
        machines (see ``d2l_ext.distributed``): all call this with the same arguments, each takes
        its part of every batch, and rank 0 alone evaluates, prints, reports, and keeps the
        checkpoint. So learning rate and batch size mean what they mean on one machine.
    ctx : mxnet.Context or list of mxnet.Context
        Device to train on, or several of a kind that share each batch. Batch normalization then
        normalizes what each device has; its running statistics are averaged after each epoch.
    num_epochs : int
        Passes over `train_iter`, those already in a resumed checkpoint included.
    precision : {'auto', 'float32', 'bfloat16', 'float16'}
        In which the layers compute; 'auto' is bfloat16 where the processor has instructions
        for it. float16 needs a GPU, and its loss is scaled. Parameters, gradients and loss are
        float32 always.
    checkpoint : str or path, optional
        File that receives the whole state after each epoch. When Ctrl-C or a full disk ends
        the run, a line says how to go on from it. A file that is there without `resume` is kept
        under the same name with ``.previous`` after it, or ``.previous2`` and so on: the first
        that is free.
    resume : bool
        Go on from `checkpoint` if that file exists; the numbers are those of a run that was
        never interrupted, on the same devices and number of threads.
    seed : int, optional
        From which every epoch seeds Python's, NumPy's and MXNet's generators (and so order,
        dropout, and parameters whose initialization is deferred). Drawn from NumPy's generator
        if left out. Workers draw the same order but another dropout, from seed, epoch and rank.
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
    seed = None if seed is None else check_int('seed', seed, 0, 2**32 - 1)
    checkpoint = None if checkpoint is None else check_path('checkpoint', checkpoint)
    devices, (forward, precision, reason) = _check_run(
        net, train_iter, test_iter, trainer, ctx, precision, checkpoint, resume, report)
    set_loss_scaling(trainer, precision == 'float16')
    workers = workers_of(trainer)
    if workers.number > 1:
        workers.check_alike(batch_size=batch_size, num_epochs=num_epochs, **_size(train_iter))
    say = print if workers.rank == 0 else lambda *_, **__: None
    say('training on', ctx, *[f'by {workers.number} workers'] * (workers.number > 1))
    for note in filter(None, (threads_note(), reason)):
        say(note)
    settings = {'batch_size': batch_size, 'precision': precision}
    history, seed = _begin(net, trainer, devices, workers, checkpoint if resume else None, seed,
                           settings, say)
    settings['seed'] = seed
    for device in devices:
        check_initialized(net, device)  # a checkpoint may have done it
    check_params(net, devices[0], 'before training', 'Initialize the net anew, or load others')
    if workers.number * len(devices) > 1:
        _start_alike(net, forward, trainer, devices, workers, train_iter, seed)
    watch = _Watch(net, devices[0], say)
    num_images = len(train_iter) * batch_size if hasattr(train_iter, '__len__') else None
    kept = bool(history)
    try:
        for epoch in range(len(history) + 1, num_epochs + 1):
            start = time.time()
            seed_epoch(seed, epoch, workers.rank)
            watch.start(epoch)
            with progress_bar(num_images, ' images', f'epoch {epoch} of {num_epochs}') as bar:
                bar.disable = bar.disable or workers.rank > 0
                loss, train_acc = _train_epoch(net, forward, train_iter, trainer, devices, workers,
                                               batch_size, watch, bar)
            test_acc = 0.
            if workers.rank == 0:
                predicted, true = classify(net, forward, 'test_iter', test_iter, devices)
                test_acc = (predicted == true).mean()
            history.append({'epoch': epoch, 'loss': loss, 'train_acc': train_acc,
                            'test_acc': float(workers.from_leader(test_acc)),
                            'seconds': time.time() - start})
            if workers.rank == 0:
                if checkpoint is not None:
                    _keep(checkpoint, kept, net, trainer, devices, history, settings)
                    kept = True
                report(history[-1])
    except (KeyboardInterrupt, OSError):  # such as a full disk
        if kept:
            say(f'\nThe last whole epoch is in {checkpoint}. Train again with resume=True '
                '(--resume on the command line) to go on from there.', flush=True)
        raise
    finish()
    return history
