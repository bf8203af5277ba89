"""The training loop of section 7.3."""
import collections.abc
import contextlib
import itertools
import os
import time

import numpy as np

from .arguments import check_flag, check_int, check_keys, check_path, check_type
from .batches import Batches, seed_epoch
from .devices import check_devices, mx
from .evaluation import (
    Watch,
    check_batches,
    check_logits,
    check_params,
    checked_batches,
    classify,
    no_batch,
    split,
)
from .graphs import check_initialized, check_trainer, choose, scale_losses, set_loss_scaling
from .graphs.numpy_mode import computed_in_nd
from .graphs.state import arrays_of, attach_grads, numbers_of, set_attributes
from .hardware.threads import threads_note
from .progress import progress_bar
from .storage.checkpoints import load_checkpoint, save_checkpoint

nd, gluon, autograd = mx.nd, mx.gluon, mx.autograd

_ROW_KEYS = ('epoch', 'loss', 'train_acc', 'test_acc', 'seconds')


class Team:
    """Who trains: this process alone. :class:`d2l_ext.scale.workers.Workers` are several."""

    rank, number = 0, 1

    def part(self, batches):
        """Return of each batch what this process trains on."""
        return batches

    def counts(self, X):
        """Return the number of images in the batch that `X` is part of, and of those in `X`."""
        return len(X), len(X)

    def sum(self, values):
        """Return the sum of the numbers that each process passes."""
        return np.asarray(values, 'float64')

    def open_checkpoint(self, path):
        """Give the path of the file `path`, or None if there is none."""
        return contextlib.nullcontext(path if path is not None and path.exists() else None)

    from_leader = sum  # the numbers that rank 0 passes
    check_alike = make_sendable = finish = lambda *_, **__: None


def _team_of(trainer):
    """Return who trains with `trainer`, each updating its own copy of the parameters.

    So rank 0 has all optimizer states, as a checkpoint needs them.
    """
    asked = trainer._kvstore_params
    kvstore = getattr(asked['kvstore'], 'type', asked['kvstore'])
    asked['update_on_kvstore'] = False
    if isinstance(asked['kvstore'], mx.kv.KVStore):
        asked['kvstore'] = kvstore  # its name: a store serves one trainer only
    if not isinstance(kvstore, str) or 'dist' not in kvstore:
        return Team()
    from .scale.workers import connect
    team = connect(kvstore)
    asked['kvstore'] = team.kv
    return team


class Run:
    """A net in training: all that a step needs, checked once.

    Parameters
    ----------
    net, trainer, ctx, precision
        As for :func:`train_ch5`.
    *iterables
        What it will be trained and tested on, as far as known.
    """

    def __init__(self, net, trainer, ctx, precision, *iterables):
        self.net, self.trainer, self.team = net, trainer, Team()
        self.devices = check_devices(ctx)
        check_trainer(trainer, net, self.devices)
        attach_grads(net)
        self.forward, self.precision, self.why = choose(net, self.devices[0], precision, iterables)
        set_loss_scaling(trainer, self.precision == 'float16')
        self.loss, self.start = gluon.loss.SoftmaxCrossEntropyLoss(), numbers_of(net)

    def step(self, X, y):
        """Train on a batch; return ``(X, y, logits, l)`` of each device, `l` the loss an image."""
        total, mine = self.team.counts(X)
        outputs = []
        with autograd.record():
            for X_, y_ in split(self.devices, X, y) if mine else ():
                logits = self.forward(X_)
                check_logits(logits)
                outputs.append((X_, y_, logits, self.loss(logits, y_)))
            losses = scale_losses([l for *_, l in outputs], self.trainer)
        for l in losses:
            l.backward()
        for param in _with_values(self.trainer):
            for data, grad in zip(param.list_data(), param.list_grad()):
                if not data._fresh_grad:  # of a layer or on a device that had nothing to do
                    grad[:] = 0
                    data._fresh_grad = True
        self.trainer.step(total)  # gradients are summed over all devices and workers
        return outputs

    def epoch(self, train_iter, batch_size, watch, bar):
        """Train for one pass; return mean loss and accuracy."""
        num_images = 0
        for X, y in checked_batches(self.net, self.devices[0], 'train_iter',
                                    self.team.part(train_iter)):
            total, _ = self.team.counts(X)
            if total > batch_size:
                raise ValueError(f'batch_size is {batch_size} but train_iter yields a batch of '
                                 f'{total} images; pass the size that train_iter was made with')
            watch.add(self.step(X, y))
            num_images += total
            bar.update(total)
        if not num_images:
            raise no_batch('train_iter')
        loss, right = watch.end()
        self._average_statistics()
        check_params(self.net, self.devices[0], f'after epoch {watch.epoch}')
        return (self.team.sum([loss, right]) / num_images).tolist()

    def accuracy(self, test_iter):
        """Return the fraction of images in `test_iter` that the net classifies right."""
        accuracy = 0.
        if self.team.rank == 0:
            predicted, true = classify(self.net, self.forward, 'test_iter', test_iter, self.devices)
            accuracy = (predicted == true).mean()
        return float(self.team.from_leader(accuracy))

    def start_alike(self, train_iter, seed):
        """Give all devices and workers the parameters of the first; Gluon would after a step."""
        if self.team.number * len(self.devices) == 1:
            return
        if any(param._deferred_init for param in self.net.collect_params().values()):
            seed_epoch(seed, 1)  # as in the first epoch on a single device
            batches = checked_batches(self.net, self.devices[0], 'train_iter', train_iter)
            for X, _ in itertools.islice(batches, 1):
                self.forward(X[:1])
        if not self.trainer._kv_initialized and _with_values(self.trainer):
            self.team.make_sendable(self.trainer._params)
            self.trainer._init_kvstore()
            self.trainer._init_params()

    def _average_statistics(self):
        """Give all devices the mean of what each has seen, such as batch normalization's mean."""
        number = self.team.number * len(self.devices)
        params = [param for _, param in sorted(self.net._collect_params_with_prefix().items())
                  if not param._differentiable and param._data]
        for param in params if number > 1 else ():
            here = sum(array.asnumpy().astype('float64') for array in param.list_data())
            param.set_data(nd.array(self.team.sum(here) / number))
        if self.team.number > 1:  # on several devices, such an array goes from one to the next
            set_attributes(self.net, {
                name: self.team.sum(array) / self.team.number
                for name, array in sorted(arrays_of(self.net).items())
                if array is not None and array.dtype.kind == 'f'}, self.devices[0])


def _with_values(trainer):
    """Return the parameters that train, or raise a ValueError if a batch has not reached one."""
    params = [param for param in trainer._params if param.grad_req != 'null']
    for param in params:
        if param._deferred_init:
            raise ValueError(f'{param.name} has no values after a batch: net never uses its layer. '
                             'Leave that out, or tell it its input, as with in_units=')
    return params


def print_epoch(row):
    """Print a row of a history as the section does.

    Parameters
    ----------
    row : dict
        One epoch, as ``train_ch5`` reports it.

    Raises
    ------
    ValueError
        If `row` lacks a key.
    """
    check_keys('row', row, _ROW_KEYS)
    print('epoch %d, loss %.4f, train acc %.3f, test acc %.3f, time %.1f sec'
          % (row['epoch'], row['loss'], row['train_acc'], row['test_acc'], row['seconds']),
          flush=True)


def _prepare(net, train_iter, test_iter, trainer, ctx, precision, checkpoint, resume, report):
    """Check all that can be known before training and return the :class:`Run`."""
    if check_flag('resume', resume) and checkpoint is None:
        raise ValueError('resume=True needs checkpoint=, the file to go on from, not None')
    check_type('report', report, collections.abc.Callable, 'a function of a row, such as print')
    check_batches('train_iter', train_iter)
    check_batches('test_iter', test_iter)
    if hasattr(test_iter, '__len__') and not len(test_iter):
        raise ValueError('test_iter has no batch; it must have at least one')
    return Run(net, trainer, ctx, precision, train_iter, test_iter)


def _begin(run, checkpoint, seed, settings, say):
    """Return history and seed: those in `checkpoint`, if there is one, or of a new run."""
    history = []
    with run.team.open_checkpoint(checkpoint) as path:
        if path is not None:
            asked = settings if seed is None else {**settings, 'seed': seed}
            history, seed = load_checkpoint(path, run.net, run.trainer, run.devices, asked)
            say(f'going on after epoch {len(history)}, from {checkpoint}')
        elif seed is None:
            seed = int(np.random.randint(2**31))
    for device in run.devices:
        check_initialized(run.net, device)  # a checkpoint may have done it
    check_params(run.net, run.devices[0], 'before training',
                 'Initialize the net anew, or load others')
    return history, int(run.team.from_leader(seed))


def _num_images(train_iter, batch_size):
    """Return the number of images in a pass, or the most that can be, or None if nothing tells."""
    sampler = getattr(train_iter, '_batch_sampler', None)  # of Gluon's DataLoader
    if isinstance(sampler, gluon.data.BatchSampler) and sampler._last_batch == 'keep':
        return len(sampler._sampler)
    most = len(train_iter) * batch_size if hasattr(train_iter, '__len__') else None
    return len(train_iter.images) if isinstance(train_iter, Batches) else most


def _keep(run, checkpoint, history, settings):
    """Write the checkpoint; a file that is there before the first epoch gets another name."""
    if len(history) == 1 and checkpoint.exists():  # of a run that nobody asked to resume
        names = (f'{checkpoint}.previous{i if i > 1 else ""}' for i in itertools.count(1))
        previous = next(name for name in names if not os.path.exists(name))
        os.replace(checkpoint, previous)
        print(f'the checkpoint of an earlier run is now {previous}')
    save_checkpoint(checkpoint, run.net, run.trainer, run.devices, history, settings,
                    run.start)


@computed_in_nd
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
        for it and it works with `net`, else float32; a line says why not. float16 needs a GPU,
        and its loss is scaled. Parameters, gradients and loss are float32 always.
    checkpoint : str or path, optional
        File that receives the whole state after each epoch, arrays and numbers in attributes of
        blocks included. When Ctrl-C or a full disk ends the run, a line says how to go on from
        it. A file that is there without `resume` is kept under the same name with ``.previous``
        after it, or ``.previous2`` and so on: the first that is free.
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
    run = _prepare(net, train_iter, test_iter, trainer, ctx, precision, checkpoint, resume, report)
    run.team = team = _team_of(trainer)
    team.check_alike(train_iter, batch_size=batch_size, num_epochs=num_epochs)
    say = print if team.rank == 0 else lambda *_, **__: None
    say('training on', ctx, *[f'by {team.number} workers'] * (team.number > 1))
    for note in filter(None, (threads_note(), run.why)):
        say(note)
    settings = {'batch_size': batch_size, 'precision': run.precision}
    history, seed = _begin(run, checkpoint if resume else None, seed, settings, say)
    settings['seed'] = seed
    run.start_alike(train_iter, seed)
    watch, kept = Watch(net, run.devices[0], say), bool(history)
    num_images = _num_images(train_iter, batch_size)
    try:
        for epoch in range(len(history) + 1, num_epochs + 1):
            start = time.time()
            seed_epoch(seed, epoch, team.rank)
            watch.start(epoch)
            with progress_bar(num_images, ' images', f'epoch {epoch} of {num_epochs}') as bar:
                bar.disable = bar.disable or team.rank > 0
                loss, train_acc = run.epoch(train_iter, batch_size, watch, bar)
            history.append({'epoch': epoch, 'loss': loss, 'train_acc': train_acc,
                            'test_acc': run.accuracy(test_iter), 'seconds': time.time() - start})
            if team.rank == 0:
                if checkpoint is not None:
                    _keep(run, checkpoint, history, settings)
                    kept = True
                report(history[-1])
    except (KeyboardInterrupt, OSError):  # such as a full disk
        if kept:
            say(f'\nThe last whole epoch is in {checkpoint}. Train again with resume=True '
                '(--resume on the command line) to go on from there.', flush=True)
        raise
    team.finish()
    return history
