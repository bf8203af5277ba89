"""Where training runs, a GPU or the CPU, and in which precision.

MXNet is imported here, and elsewhere as ``from .devices import mx``: `prepare` must come first.
"""
from .arguments import check_choice, check_int, check_type, refusal
from .hardware.cuda import Problem, fall_back, may_use_gpu, prepare
from .hardware.processor import has_bfloat16

prepare()  # d2l_ext/__init__.py only prints its ImportError
import mxnet as mx  # noqa: E402

PRECISIONS = ('auto', 'float32', 'bfloat16', 'float16')
_DEVICE = 'a device such as mx.cpu() or try_gpu()'


def try_gpu(i=0):
    """Return ``gpu(i)`` if MXNet can compute on it, else ``cpu()``.

    Parameters
    ----------
    i : int
        Number of the GPU, from 0.

    Returns
    -------
    mxnet.Context

    Raises
    ------
    ValueError
        If `i` is not a whole number of at least 0.
    RuntimeError
        If D2L_EXT_DEVICE=gpu forbids the CPU and the GPU cannot be used.
    """
    i = check_int('i', i, 0)
    # Asking the CPU wheel for a GPU would print a complaint.
    if not may_use_gpu(i, mx.runtime.Features().is_enabled('CUDA')):
        return mx.cpu()
    try:
        ctx = mx.gpu(i)
        # A GPU that the wheel has no code for is found but fails at its first operation.
        (mx.nd.ones((1,), ctx=ctx) + 1).wait_to_read()
        return ctx
    except mx.MXNetError as error:
        fall_back(Problem(f'MXNet cannot compute on GPU {i}: {str(error).splitlines()[0]}',
                          'See what is found on this machine with\n'
                          '    python -m d2l_ext --diagnose'))
        return mx.cpu()


def check_ctx(ctx):
    """Return `ctx`, or raise a ValueError unless it is a device that MXNet has here."""
    check_type('ctx', ctx, mx.Context, _DEVICE)
    if ctx.device_type == 'gpu' and ctx.device_id >= mx.context.num_gpus():
        raise refusal('ctx', ctx, f'{_DEVICE}; MXNet sees {mx.context.num_gpus()} GPUs here')
    return ctx


def check_devices(ctx):
    """Return `ctx`, one device or a list of them, as a list, or raise a ValueError."""
    devices = list(ctx) if isinstance(ctx, (list, tuple)) else [ctx]
    for device in devices:
        check_ctx(device)
    if len(set(devices)) != len(devices) or len({ctx.device_type for ctx in devices}) != 1:
        raise refusal('ctx', ctx, f'{_DEVICE}, or a list of different devices of one kind')
    return devices


def resolve_precision(precision, ctx):
    """Return the precision, 'float32', 'bfloat16' or 'float16', in which a run computes on `ctx`.

    'auto' is bfloat16 on a CPU with bfloat16 instructions, float32 elsewhere: nobody has measured
    float16 on a GPU with this package yet. A ValueError if what is asked for by name cannot work.
    """
    check_choice('precision', precision, PRECISIONS)
    check_type('ctx', ctx, mx.Context, _DEVICE)
    possible = ctx.device_type == 'cpu' and has_bfloat16()
    if precision == 'auto':
        return 'bfloat16' if possible else 'float32'
    if precision == 'bfloat16' and not possible:
        where = 'on a GPU' if ctx.device_type == 'gpu' else 'on this processor'
        raise ValueError(f"precision='bfloat16' does not work {where}: "
                         'it needs a CPU with AVX512-BF16 or AMX, and MXNET_MKLDNN_ENABLED must '
                         "not be 0. Use precision='auto'")
    if precision == 'float16' and ctx.device_type != 'gpu':
        raise ValueError("precision='float16' does not work on a CPU: MXNet has the layers in "
                         "float16 for GPUs only. Use precision='auto'")
    return precision
