"""Several devices: each gets a part of a batch, and all copies of the parameters stay alike."""
import itertools

from ..batches import seed_epoch
from ..checks.batches import checked_batches
from ..devices import mx
from ..graphs.state import arrays_of, set_attributes


def split(devices, X, y):
    """Return a pair (X, y) for each device; fewer where there are fewer images than devices."""
    return list(zip(*(mx.gluon.utils.split_and_load(a, devices[:len(X)], even_split=False)
                      for a in (X, y))))


def _trained(trainer):
    """Return the parameters that train, or raise a ValueError if a batch has not reached one."""
    params = [param for param in trainer._params if param.grad_req != 'null']
    for param in params:
        if param._deferred_init:
            raise ValueError(f'{param.name} has no values after a batch: net never uses its layer. '
                             'Leave that out, or tell it its input, as with in_units=')
    return params


def start_alike(run, train_iter, seed):
    """Give all devices and workers the parameters of the first; Gluon would after a step."""
    if run.team.number * len(run.devices) == 1:
        return
    if any(param._deferred_init for param in run.net.collect_params().values()):
        seed_epoch(seed, 1)  # as in the first epoch on a single device
        batches = checked_batches(run.net, run.devices[0], 'train_iter', train_iter)
        for X, _ in itertools.islice(batches, 1):
            run.forward(X[:1])
    if not run.trainer._kv_initialized and _trained(run.trainer):
        run.team.make_sendable(run.trainer._params)
        run.trainer._init_kvstore()
        run.trainer._init_params()


def fill_gradients(trainer):
    """Make the gradients 0 of a layer, or on a device, that had nothing to do in this step."""
    for param in _trained(trainer):
        for data, grad in zip(param.list_data(), param.list_grad()):
            if not data._fresh_grad:
                grad[:] = 0
                data._fresh_grad = True


def average_statistics(run):
    """Give all devices the mean of what each has seen, such as batch normalization's mean."""
    number = run.team.number * len(run.devices)
    params = [param for _, param in sorted(run.net._collect_params_with_prefix().items())
              if not param._differentiable and param._data]
    for param in params if number > 1 else ():
        here = sum(array.asnumpy().astype('float64') for array in param.list_data())
        param.set_data(mx.nd.array(run.team.sum(here) / number))
    if run.team.number > 1:  # on several devices, such an array goes from one to the next
        set_attributes(run.net, {
            name: run.team.sum(array) / run.team.number
            for name, array in sorted(arrays_of(run.net).items())
            if array is not None and array.dtype.kind == 'f'}, run.devices[0])
