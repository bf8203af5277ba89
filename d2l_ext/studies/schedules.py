"""A trainer from settings: initialization, stochastic gradient descent, warm-up and schedule."""
import math
import numbers

from ..arguments import check_choice, check_int, check_keys, check_number, refusal
from ..devices import check_ctx, mx
from ..graphs import check_net
from .initialization import INITS

SCHEDULES = ('constant', 'cosine')
KEYS = ('lr', 'momentum', 'wd', 'batch_size', 'init', 'schedule', 'warmup')


def make_trainer(net, settings, num_updates, ctx):
    """Initialize `net` as `settings` say and return its trainer, stochastic gradient descent.

    The warm-up is that of Goyal et al., *Accurate, Large Minibatch SGD*, 2017; the cosine that of
    Loshchilov and Hutter, *SGDR*, 2016, without restarts.

    Parameters
    ----------
    net : mxnet.gluon.Block
        What its parameters held before is lost.
    settings : dict
        `lr`, the largest learning rate; `momentum` (0 if left out) and `wd`, the weight decay (0);
        `init`, 'xavier' or 'he' ('xavier'); `schedule`, 'constant' or 'cosine' down to 0
        ('constant'); `warmup`, the share of the updates over which the rate first rises in a
        straight line from 0 (0). `batch_size` may be there; it is for who makes the batches.
    num_updates : int
        Steps of the whole training: ``num_epochs * len(train_iter)``.
    ctx : mxnet.Context
        Device of the parameters.

    Returns
    -------
    mxnet.gluon.Trainer

    Raises
    ------
    ValueError
        If a setting is unknown, missing or out of range.
    """
    check_net(net)
    check_ctx(ctx)
    num_updates = check_int('num_updates', num_updates, 1)
    unknown = check_keys('settings', settings, ('lr',)).keys() - set(KEYS)
    if unknown:
        raise ValueError(f'settings may have {", ".join(KEYS)}, not '
                         f'{", ".join(sorted(map(str, unknown)))}')
    for key, limit in (('momentum', 1), ('wd', math.inf), ('warmup', 1)):
        value = settings.get(key, 0)
        if not isinstance(value, numbers.Real) or not 0 <= value < limit:
            raise refusal(key, value, f'a number of at least 0 and below {limit}')
    init = check_choice('init', settings.get('init', 'xavier'), sorted(INITS))
    schedule = check_choice('schedule', settings.get('schedule', 'constant'), SCHEDULES)
    rates = {'base_lr': check_number('lr', settings['lr'], 0),
             'warmup_steps': round(settings.get('warmup', 0) * num_updates)}
    if schedule == 'cosine':
        scheduler = mx.lr_scheduler.CosineScheduler(num_updates, **rates)
    else:  # MXNet's plainest schedule with a warm-up; its first step down never comes
        scheduler = mx.lr_scheduler.FactorScheduler(num_updates + 1, **rates)
    net.initialize(INITS[init], ctx=ctx, force_reinit=True)
    return mx.gluon.Trainer(net.collect_params(), 'sgd', {
        'lr_scheduler': scheduler, 'momentum': settings.get('momentum', 0),
        'wd': settings.get('wd', 0)})
