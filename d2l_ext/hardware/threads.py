"""How many threads MXNet computes with. Runs before MXNet is imported, and never imports it."""
import os
import pathlib
import sys
import warnings

import joblib
import psutil

_CPUS = pathlib.Path('/sys/devices/system/cpu')


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
    # MXNet reads this only once, when it is loaded. By itself it takes half the processors,
    # assuming that every second one is a hyper-thread.
    os.environ.setdefault('OMP_NUM_THREADS', str(physical_cores()))

# MXNet 1.9.1 uses names that NumPy 1.23 and SciPy 1.10 deprecate, at import and later.
warnings.filterwarnings('ignore', category=DeprecationWarning, module='mxnet')


def num_threads():
    """Return how many CPU threads MXNet computes with in this process."""
    if _mxnet_came_first:
        return max(1, (os.cpu_count() or 1) // 2)
    try:
        return max(1, int(os.environ['OMP_NUM_THREADS'].split(',')[0]))
    except (KeyError, ValueError):  # removed since; MXNet ignores a value that is no number, too
        return max(1, (os.cpu_count() or 1) // 2)


def threads_note():
    """Return one line that says why MXNet runs on too few threads, or None if it does not."""
    if not _mxnet_came_first or num_threads() >= physical_cores():
        return None
    return (f'note: mxnet was imported before d2l_ext and settled on {num_threads()} of '
            f'{physical_cores()} cores. For full speed restart Python and import d2l_ext first, '
            f'or set OMP_NUM_THREADS={physical_cores()}.')
