"""Where training runs: gpu(0) or the CPU, on how many threads, in which precision.

Importing this module imports MXNet. MXNet reads OMP_NUM_THREADS only once, when it is loaded, so
the number of threads is settled here first.
"""
import os
import pathlib
import sys
import warnings

import joblib
import psutil

_CPUS = pathlib.Path('/sys/devices/system/cpu')
_CPUINFO = pathlib.Path('/proc/cpuinfo')


def physical_cores():
    """Return the number of processor cores that this process may use.

    Hyper-threads of one core count once; CPU affinity and container quotas are respected.
    """
    allowed = joblib.cpu_count()
    try:
        cores = {(_CPUS / f'cpu{i}/topology/thread_siblings_list').read_text()
                 for i in os.sched_getaffinity(0)}
        return min(allowed, len(cores))
    except (AttributeError, OSError):  # not Linux, or a container that hides the topology
        return min(allowed, psutil.cpu_count(logical=False) or allowed)


_mxnet_came_first = 'mxnet' in sys.modules and 'OMP_NUM_THREADS' not in os.environ
if not _mxnet_came_first:
    # MXNet by itself takes half the processors, assuming that every second one is a hyper-thread.
    os.environ.setdefault('OMP_NUM_THREADS', str(physical_cores()))

# MXNet 1.9.1 uses names that NumPy 1.23 and SciPy 1.10 deprecate, at import and later.
warnings.filterwarnings('ignore', category=DeprecationWarning, module='mxnet')
import mxnet as mx  # noqa: E402


def num_threads():
    """Return how many CPU threads MXNet computes with in this process."""
    if _mxnet_came_first:
        return max(1, (os.cpu_count() or 1) // 2)
    try:
        return max(1, int(os.environ['OMP_NUM_THREADS'].split(',')[0]))
    except ValueError:  # MXNet ignores a value that is no number, too
        return max(1, (os.cpu_count() or 1) // 2)


def threads_note():
    """Return one line that says why MXNet runs on too few threads, or None if it does not."""
    if not _mxnet_came_first or num_threads() >= physical_cores():
        return None
    return (f'note: mxnet was imported before d2l_ext and settled on {num_threads()} of '
            f'{physical_cores()} cores. For full speed restart Python and import d2l_ext first, '
            f'or set OMP_NUM_THREADS={physical_cores()}.')


def try_gpu(i=0):
    """Return ``gpu(i)`` if MXNet can compute on it, else ``cpu()``.

    Parameters
    ----------
    i : int
        Number of the GPU, from 0.

    Raises
    ------
    ValueError
        If `i` is not a whole number of at least 0.
    """
    if isinstance(i, bool) or not isinstance(i, int) or i < 0:
        raise ValueError(f'i must be the number of a GPU (0, 1, ...), not {i!r}')
    if not mx.runtime.Features().is_enabled('CUDA'):
        return mx.cpu()  # asking the CPU wheel for a GPU would print a complaint
    try:
        ctx = mx.gpu(i)
        # A GPU that the wheel has no code for is found but fails at its first operation.
        (mx.nd.ones((1,), ctx=ctx) + 1).wait_to_read()
        return ctx
    except mx.MXNetError:
        return mx.cpu()


def has_bfloat16():
    """Return whether the processor has bfloat16 instructions (AVX512-BF16 or AMX-BF16)."""
    try:
        flags = _CPUINFO.read_text().split()
    except OSError:
        return False
    return 'avx512_bf16' in flags or 'amx_bf16' in flags


def resolve_precision(precision, ctx):
    """Return the precision, 'float32' or 'bfloat16', in which a training run computes.

    Parameters
    ----------
    precision : {'auto', 'float32', 'bfloat16'}
        'auto' is bfloat16 on a CPU with bfloat16 instructions, float32 elsewhere.
    ctx : mxnet.Context
        The device of the run.

    Raises
    ------
    ValueError
        If `precision` is none of the three, or bfloat16 is asked for where it cannot work.
    """
    if precision not in ('auto', 'float32', 'bfloat16'):
        raise ValueError(
            f"precision must be 'auto', 'float32' or 'bfloat16', not {precision!r}")
    possible = ctx.device_type == 'cpu' and has_bfloat16()
    if precision == 'auto':
        return 'bfloat16' if possible else 'float32'
    if precision == 'bfloat16' and not possible:
        where = 'on a GPU' if ctx.device_type == 'gpu' else 'on this processor'
        raise ValueError(f"precision='bfloat16' does not work {where}: "
                         "it needs a CPU with AVX512-BF16 or AMX. Use precision='auto'")
    return precision
