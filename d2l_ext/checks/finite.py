"""Parameters that hold NaN or infinity."""
import math

ADVICE = 'Try a smaller learning rate, or go back to the last checkpoint'


def check_finite(net, ctx, when, advice=ADVICE):
    """Raise if a parameter is no finite number; a ReLU may hide that from the loss."""
    for name, param in net.collect_params().items():
        # x * 0 is 0 for a number, but NaN for NaN and for infinity. What is deferred has no data.
        if param._data and math.isnan((param.data(ctx) * 0).sum().asscalar()):
            raise FloatingPointError(f'{name} holds NaN or infinity {when}. {advice}')
