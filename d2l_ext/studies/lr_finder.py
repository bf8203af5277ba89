"""Which learning rate? A range test: train for a few steps, each at a larger rate than the last.

The test is from L. N. Smith, *Cyclical Learning Rates for Training Neural Networks* (2017, section
3.3). As is usual since, the rate grows exponentially rather than linearly, the curve that is looked
at is the loss rather than the accuracy, its running mean is corrected for its start as that of Adam
is (Kingma and Ba, *Adam*, 2015, section 3), and the test stops at four times the lowest loss (S.
Gugger, *How Do You Find A Good Learning Rate*, 2018). The suggestion is the more careful one of the
two in use: where the loss falls fastest, and a tenth of where it is lowest (Gugger).
"""
import copy
import dataclasses
import itertools
import math

import numpy as np

from ..arguments import check_int, check_number
from ..batches import seed_epoch
from ..checks.batches import batch_sums, check_sums, checked_batches, no_batch
from ..checks.dead_starts import DEAD_AFTER
from ..checks.nets import check_initialized
from ..checks.trainers import check_trainer
from ..devices import mx
from ..graphs import set_loss_scaling
from ..graphs.numpy_mode import computed_in_nd
from ..graphs.state import untouched
from ..progress import progress_bar
from ..training import Run
from .plotting import COLORS, check_axes, plt

nd = mx.nd


@dataclasses.dataclass(repr=False)
class RangeTest:
    """What :func:`range_test` saw; ``dataclasses.asdict`` makes plain data of it.

    Attributes
    ----------
    lrs : list of float
        Learning rate of each step.
    losses : list of float
        Mean cross-entropy of each step's batch, in nats, before the step changes the parameters.
    smoothed : list of float
        Their exponential running mean, bias-corrected; it trails behind `losses` by about
        ``1 / smoothing - 1`` steps.
    suggestion : float or None
        A learning rate to try first; None if the curve does not tell.
    how : str
        How the suggestion was chosen, or why there is none: one sentence.
    stopped : {'end', 'divergence', 'not finite', 'dead'}
        Why the test ended, at ``lrs[-1]``: all steps done; the smoothed loss rose too far; the
        next loss was NaN or infinite; every logit was 0 for several batches.
    dead_from : float or None
        Learning rate of the first step from which on every logit was exactly 0 and so the loss
        ln(classes): not a plateau but a network that cannot learn any more. None if it lived.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    how: str
    stopped: str
    dead_from: float | None

    def __repr__(self):
        why = 'all of them' if self.stopped == 'end' else f'ended by {self.stopped}'
        lines = [f'{len(self.lrs)} steps from {self.lrs[0]:.2g} to {self.lrs[-1]:.2g}, {why}'
                 if self.lrs else f'no step, {why}',
                 f'suggestion: {self.suggestion and format(self.suggestion, ".2g")}; {self.how}']
        if self.dead_from is not None:
            lines.append(f'dead from {self.dead_from:.2g} on: every logit is 0')
        return '\n'.join(lines)

    def plot(self, axes=None):
        """Draw the losses over the learning rates and mark the suggestion and a dead net.

        The curve is the means that the suggestion is read from.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ValueError
            If `axes` is no Axes.
        """
        if axes is None:
            _, axes = plt.subplots(figsize=(5, 3.2), layout='constrained')
        check_axes(axes)
        axes.plot(self.lrs, self.losses, '.', color=COLORS[5], markersize=4, label='batches')
        alive = [lr for lr in self.lrs if self.dead_from is None or lr < self.dead_from]
        half, means = _running_means(self.losses[:len(alive)])
        axes.plot(alive[half:half + len(means)], means, '-', color=COLORS[0],
                  label=f'mean of {2 * half + 1}')
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color=COLORS[1], linestyle='--',
                         label=f'suggestion {self.suggestion:.2g}')
        if self.dead_from is not None:
            axes.axvspan(self.dead_from, self.lrs[-1], color=COLORS[6], alpha=0.15,
                         label='dead: every logit is 0')
        if self.losses:
            # A loss that explodes would leave the rest of the curve a flat line.
            low, high = min(self.losses), max(self.losses[:np.argmin(self.smoothed) + 1])
            margin = 0.25 * (high - low) or 0.1
            axes.set_ylim(low - margin, min(max(self.losses), 2 * high) + margin)
        axes.set(xscale='log', xlabel='learning rate', ylabel='cross-entropy loss')
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
        return axes


def _stand_in(trainer):
    """Return a trainer of the same parameters, with copies of the optimizer and its states."""
    optimizer = copy.copy(trainer._optimizer)
    optimizer.lr_scheduler = None  # the test sets the rate; and a schedule need not be copyable
    optimizer = copy.deepcopy(optimizer)
    optimizer.param_dict = trainer._optimizer.param_dict  # which deepcopy leaves out
    stand_in = copy.copy(trainer)
    stand_in._optimizer = optimizer
    stand_in._updaters = [mx.optimizer.get_updater(optimizer) for _ in trainer._updaters]
    for updater, old in zip(stand_in._updaters, trainer._updaters):
        updater.set_states(old.get_states())
    # No store of parameters that others read takes part.
    stand_in._kv_initialized, stand_in._kvstore, stand_in._params_to_init = True, None, []
    set_loss_scaling(stand_in, False)  # never that of `trainer`
    return stand_in


def _cycle(train_iter, seed):
    """Yield batches for ever; each pass is seeded as the epochs of train_ch5 are."""
    for epoch in itertools.count(1):
        seed_epoch(seed, epoch)
        batch = None
        for batch in train_iter:
            yield batch
        if batch is None:
            raise no_batch('train_iter')


def _running_means(losses):
    """Return `half`, and the mean of each loss and the `half` on either side: nothing trails."""
    half = max(2, round(len(losses) / 20))
    width = 2 * half + 1
    if len(losses) < width:
        return half, np.array([])
    return half, np.convolve(losses, np.full(width, 1 / width), 'valid')


def _suggest(lrs, losses):
    """Return a learning rate, or None, and a sentence on where it comes from."""
    half, means = _running_means(losses)
    width = 2 * half + 1
    if len(lrs) < 2 * width:
        return None, (f'the test ended after {len(lrs)} useful steps, too few to tell; try a '
                      'smaller lr_min or more steps')
    x, y = np.log10(lrs), np.array(losses)
    lowest = int(np.argmin(means))
    fall = means[0] - means[lowest]
    # What such a mean is off by, from how much neighbouring batches differ.
    noise = np.diff(y[:lowest + width]).std() / math.sqrt(2 * width)
    if fall <= max(0.01 * means[0], 4 * noise):
        return None, (f'the loss did not fall clearly (by {fall:.2g}, where {noise:.2g} is noise); '
                      'try other limits, more steps or another initialization')
    slopes = [np.polyfit(x[i:i + width], y[i:i + width], 1)[0] for i in range(lowest + 1)]
    fastest, best = lrs[half + int(np.argmin(slopes))], lrs[half + lowest]
    how = (f'the smaller one of where the loss falls fastest ({fastest:.2g}, by the slopes of '
           f'straight lines through {width} batches) and a tenth of where it is lowest '
           f'({best:.2g})')
    if lowest == len(means) - 1:
        how += ', but it still fell at the end, so try a larger lr_max'
    return max(lrs[0], min(fastest, best / 10)), how


@computed_in_nd
def range_test(net, train_iter, trainer, ctx, lr_min=1e-5, lr_max=1.0, num_steps=100, *,
               smoothing=0.1, divergence=4.0, precision='auto', seed=0):
    """Train for a few steps at growing learning rates, take them back, and suggest a rate.

    Afterwards everything is as before: parameters, running statistics of batch normalization and
    gradients; `trainer`, which takes no part (a copy does, that starts from its momentum and counts
    and has no schedule); Python's and NumPy's generators. The state of MXNet's generator cannot be
    read, so it is reseeded with a number that it drew before. A net whose initialization is
    deferred is initialized by the first batch of the test, with a draw that `seed` decides, and is
    deferred again afterwards; so `train_ch5` goes on as if there had been no test, and with the
    same `seed` starts from the very parameters that the test started from. All this holds too when
    an exception or Ctrl-C ends the test. Smith, *Cyclical Learning Rates for Training Neural
    Networks*, 2017, and Gugger, 2018: see the top of this module.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized on `ctx`; maps `X` to logits of shape (batch, classes).
    train_iter : iterable
        Of ``(X, y)`` as for ``train_ch5``; iterated again as often as `num_steps` batches need.
    trainer : mxnet.gluon.Trainer
        Of the net's parameters, or of some of them. Its own learning rate plays no role.
    ctx : mxnet.Context
        Device to train on, the one that `trainer` updates.
    lr_min, lr_max : float
        Learning rates of the first and of the last step.
    num_steps : int
        Batches, at least 10. The rate grows by the same factor from each to the next.
    smoothing : float
        Weight of the newest loss in the running mean, above 0; 1 does not smooth.
    divergence : float
        The test stops when the smoothed loss is more than so many times its lowest value.
    precision : {'auto', 'float32', 'bfloat16', 'float16'}
        In which the layers compute, as for ``train_ch5``.
    seed : int
        Of the order of the batches, dropout and a deferred initialization.

    Returns
    -------
    RangeTest
        With `lrs`, `losses`, `smoothed`, `suggestion`, `how`, `stopped`, `dead_from`, and
        ``plot()``.

    Raises
    ------
    ValueError
        If an argument is out of range, or the data do not fit the net.
    FloatingPointError
        If a pixel is no finite number. A loss that is none ends the test instead.

    Examples
    --------
    >>> from mxnet import cpu, gluon, nd, random
    >>> random.seed(0)
    >>> y = nd.arange(100) % 2
    >>> X = nd.random.normal(shape=(100, 3)) + y.reshape((-1, 1))
    >>> net = gluon.nn.Dense(2)
    >>> net.initialize()
    >>> trainer = gluon.Trainer(net.collect_params(), 'sgd')
    >>> test = range_test(net, [(X, y)], trainer, cpu(), lr_min=1e-3, lr_max=100)
    >>> 0.01 < test.suggestion < 10
    True
    """
    lr_min = check_number('lr_min', lr_min, 0)
    lr_max = check_number('lr_max', lr_max, lr_min)
    num_steps = check_int('num_steps', num_steps, 10)
    smoothing = check_number('smoothing', smoothing, 0, 1)
    divergence = check_number('divergence', divergence, 1)
    seed = check_int('seed', seed, 0, 2**32 - 1)
    check_initialized(net, ctx)
    check_trainer(trainer, net, [ctx])
    lrs, losses, smoothed = [], [], []
    mean, zeros, stopped = 0., 0, 'end'
    with untouched(net), progress_bar(num_steps, ' steps', 'learning rate range test') as bar:
        run = Run(net, _stand_in(trainer), ctx, precision, train_iter=train_iter)
        rates = np.geomspace(lr_min, lr_max, num_steps).tolist()
        batches = checked_batches(net, ctx, 'train_iter', _cycle(train_iter, seed))
        for i, (lr, batch) in enumerate(zip(rates, batches), 1):
            run.trainer.set_learning_rate(lr)
            (X, y, logits, l), = run.step(*batch)
            check_sums(*batch_sums(X, y, logits).asnumpy()[1:], logits.shape[1])
            loss = float(l.mean().asscalar())
            if not math.isfinite(loss):
                stopped = 'not finite'
                break
            lrs.append(lr)
            losses.append(loss)
            mean += smoothing * (losses[-1] - mean)
            smoothed.append(mean / (1 - (1 - smoothing)**i))  # the mean started at 0, not a loss
            zeros = 0 if logits.abs().max().asscalar() else zeros + 1
            if smoothed[-1] > divergence * min(smoothed):
                stopped = 'divergence'
                break
            if zeros == DEAD_AFTER:
                stopped = 'dead'
                break
            bar.update(1)
    alive = len(lrs) - zeros
    suggestion, how = _suggest(lrs[:alive], losses[:alive])
    if not alive and lrs:
        how = ('every logit is 0 from the first step on, so no learning rate changes anything; '
               'try another seed or another initialization')
    return RangeTest(lrs, losses, smoothed, suggestion, how, stopped,
                     lrs[alive] if zeros else None)
