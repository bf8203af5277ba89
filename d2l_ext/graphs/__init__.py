"""Nets as graphs: traced, checked, rewritten for CPUs and GPUs, compiled."""
from .choosing import Choice, choose
from .compiling import compiled
from .loss_scaling import scale_losses, set_loss_scaling
from .receptive_fields import receptive_field
from .tracing import check_net, trace

__all__ = ['Choice', 'check_net', 'choose', 'compiled', 'receptive_field', 'scale_losses',
           'set_loss_scaling', 'trace']
