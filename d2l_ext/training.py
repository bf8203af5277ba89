"""The training loop of section 7.3.

`train_ch5` goes through epochs, `Run.epoch` through batches, and `Run.step` trains on one: forward,
loss, backward, update. At a first reading skip what checks, watches, or asks the team.
"""
import collections.abc
import time

from .arguments import check_flag, check_int, check_path, check_type, wrapped
from .batches import num_images, seed_epoch
from .checks.batches import check_batches, check_logits, checked_batches, no_batch
from .checks.finite import check_finite
from .checks.trainers import check_trainer
from .checks.watch import Watch
from .devices import check_devices, mx
from .evaluation import classify
from .graphs import choose, scale_losses, set_loss_scaling
from .graphs.numpy_mode import computed_in_nd
from .graphs.state import attach_grads, numbers_of
from .hardware.threads import threads_note
from .progress import print_epoch, progress_bar
from .scale.several_devices import average_statistics, fill_gradients, split, start_alike
from .scale.team import Team, team_of
from .storage.resuming import begin, keep

gluon, autograd = mx.gluon, mx.autograd


class Run:
    """A net in training: all that a step needs, checked once.

    Parameters
    ----------
    net, trainer, ctx, precision
        As for :func:`train_ch5`.
    **batches
        What it will be trained and tested on, as far as known: `train_iter`, `test_iter`.
    """

    def __init__(self, net, trainer, ctx, precision, **batches):
        for name, each in batches.items():
            check_batches(name, each)
        self.net, self.trainer, self.team = net, trainer, Team()
        self.devices = check_devices(ctx)
        check_trainer(trainer, net, self.devices)
        attach_grads(net)
        self.forward, self.precision, self.why = choose(net, self.devices[0], precision,
                                                        list(batches.values()))
        set_loss_scaling(trainer, self.precision == 'float16')
        self.loss, self.numbers = gluon.loss.SoftmaxCrossEntropyLoss(), numbers_of(net)

    def step(self, X, y):
        """Train on a batch; return ``(X, y, logits, l)`` for each device, `l` of shape (batch,)."""
        total, mine = self.team.counts(X)  # images in the whole batch, and for this process
        parts = split(self.devices, X, y) if mine else []
        outputs = []
        with autograd.record():
            for X_, y_ in parts:
                logits = self.forward(X_)
                check_logits(logits)
                outputs.append((X_, y_, logits, self.loss(logits, y_)))
            losses = scale_losses([l for *_, l in outputs], self.trainer)
        for l in losses:
            l.backward()
        fill_gradients(self.trainer)
        self.trainer.step(total)  # gradients are summed over all devices and workers
        return outputs

    def epoch(self, train_iter, batch_size, watch, bar):
        """Train for one pass; return mean loss and accuracy."""
        number = 0
        for X, y in checked_batches(self.net, self.devices[0], 'train_iter',
                                    self.team.part(train_iter)):
            total, _ = self.team.counts(X)
            if total > batch_size:
                raise ValueError(f'batch_size is {batch_size} but train_iter yields a batch of '
                                 f'{total} images; pass the size that train_iter was made with')
            watch.add(self.step(X, y))
            number += total
            bar.update(total)
        if not number:
            raise no_batch('train_iter')
        loss, right = watch.end()
        average_statistics(self)
        check_finite(self.net, self.devices[0], f'after epoch {watch.epoch}')
        return (self.team.sum([loss, right]) / number).tolist()

    def accuracy(self, test_iter):
        """Return the fraction of images in `test_iter` that the net classifies right."""
        accuracy = 0.
        if self.team.rank == 0:
            predicted, true = classify(self.net, self.forward, 'test_iter', test_iter, self.devices)
            accuracy = (predicted == true).mean()
        return float(self.team.from_leader(accuracy))


@computed_in_nd
def train_ch5(net, train_iter, test_iter, batch_size, trainer, ctx, num_epochs, *,
              precision='auto', checkpoint=None, resume=False, seed=None, report=print_epoch):
    """Train a classifier, printing a line for each epoch as section 7.3 does.

    The loop is that of *Dive into Deep Learning*; the loss is the cross-entropy of a softmax.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized on `ctx`; maps `X` to logits of shape (batch, classes).
    train_iter, test_iter : iterable
        Of ``(X, y)``: X float32 of shape (batch, channels, height, width), y whole numbers from
        0 of shape (batch,). Iterated once an epoch (a first batch may be read before, to try the
        net): a list, a Gluon ``DataLoader`` or what ``load_data_fashion_mnist`` returns.
    batch_size : int
        Images in a full batch, of all devices and workers together. Each step divides the
        gradients by the number of images it really had, also in a smaller last batch, where the
        edition of 2019 divides by `batch_size`.
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
        for it and it works with `net` (if not, a line says why), else float32. float16 needs a
        GPU, and its loss is scaled. Parameters, gradients and loss are float32 always.
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
        One for each epoch: `epoch` from 1, `loss` (mean cross-entropy, in nats), `train_acc` and
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
    if check_flag('resume', resume) and checkpoint is None:
        raise ValueError('resume=True needs checkpoint=, the file to go on from, not None')
    check_type('report', report, collections.abc.Callable, 'a function of a row, such as print')
    if hasattr(test_iter, '__len__') and not len(test_iter):
        raise no_batch('test_iter')
    run = Run(net, trainer, ctx, precision, train_iter=train_iter, test_iter=test_iter)
    run.team = team = team_of(trainer)
    team.check_alike(train_iter, batch_size=batch_size, num_epochs=num_epochs)
    say = print if team.rank == 0 else lambda *_, **__: None
    say(f'training on {ctx}' + (f' by {team.number} workers' if team.number > 1 else ''))
    for note in filter(None, (threads_note(), run.why)):
        say(wrapped(note))
    settings = {'batch_size': batch_size, 'precision': run.precision}
    history, seed = begin(run, checkpoint if resume else None, seed, settings, say)
    settings['seed'] = seed
    start_alike(run, train_iter, seed)
    watch = Watch(net, run.devices[0], say)
    total = num_images(train_iter, batch_size)
    try:
        for epoch in range(len(history) + 1, num_epochs + 1):
            start = time.time()
            seed_epoch(seed, epoch, team.rank)
            watch.begin(epoch)
            with progress_bar(total, ' images', f'epoch {epoch} of {num_epochs}') as bar:
                bar.disable = bar.disable or team.rank > 0
                loss, train_acc = run.epoch(train_iter, batch_size, watch, bar)
            row = {'epoch': epoch, 'loss': loss, 'train_acc': train_acc,
                   'test_acc': run.accuracy(test_iter), 'seconds': time.time() - start}
            if checkpoint is not None and team.rank == 0:
                keep(run, checkpoint, [*history, row], settings)
            history.append(row)
            if team.rank == 0:
                report(row)
    except (KeyboardInterrupt, OSError):  # such as a full disk
        if checkpoint is not None and history:
            say(f'\nThe last whole epoch is in {checkpoint}.\nTrain again with resume=True '
                '(--resume on the command line) to go on from there.', flush=True)
        raise
    team.finish()
    return history
