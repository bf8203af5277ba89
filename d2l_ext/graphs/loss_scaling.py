"""The loss of float16, multiplied so that small gradients do not vanish, with MXNet's scaler."""


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
