"""Checks of trainers: of this net, with settings by which a step and a checkpoint are whole."""
from ..arguments import refusal
from ..devices import mx
from ..graphs import check_net
from .nets import check_float32

gluon = mx.gluon


def check_trainer(trainer, net, devices=None):
    """Raise a ValueError unless `trainer` can update parameters of `net` only, and on `devices`.

    Each device must update its own copy, from the gradients of one step.
    """
    params = set(check_net(net).collect_params().values())
    if not isinstance(trainer, gluon.Trainer) or not set(trainer._params) <= params:
        raise refusal('trainer', trainer, "a gluon.Trainer of the net's own parameters, made after "
                      'the net')
    check_float32(net)
    if devices is not None and trainer._contexts and set(trainer._contexts) != set(devices):
        raise ValueError(f'ctx must name the devices that trainer updates, {trainer._contexts}, '
                         f'not {devices}: pass the same ctx here as to net.initialize')
    asked = trainer._kvstore_params
    if asked['kvstore'] is None and len(trainer._contexts or ()) > 1:
        raise ValueError("kvstore=None sums up no gradients; make the trainer with kvstore='device'"
                         ' for several devices')
    if asked['update_on_kvstore'] or trainer._update_on_kvstore:
        raise ValueError('the trainer updates parameters in its kvstore, where no checkpoint '
                         'reaches the states; make a new one with update_on_kvstore=False')
    if trainer._compression_params:
        raise ValueError('the trainer has compression_params, which hold back parts of gradients '
                         'where no checkpoint reaches them; make a new one without')
    if all(param.grad_req == 'null' for param in trainer._params):
        raise ValueError("the trainer has nothing to train: every parameter has grad_req='null'")
    for param in trainer._params:
        if param.grad_req == 'add':
            raise ValueError(f"{param.name} has grad_req='add', by which the gradients of all "
                             "steps pile up; set it to 'write', as with "
                             "net.collect_params().setattr('grad_req', 'write')")
        if (param._stype, param._grad_stype) != ('default', 'default'):
            raise ValueError(f"{param.name} or its gradient is sparse; make its layer with stype "
                             "and grad_stype 'default', without sparse_grad=True")
