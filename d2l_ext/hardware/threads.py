"""How many threads MXNet computes with. Runs before MXNet is imported, and never imports it."""
import os
import pathlib
import sys
import time
import warnings

_CPUS = pathlib.Path('/sys/devices/system/cpu')
_STAT = pathlib.Path('/proc/stat')
_LOAD = pathlib.Path('/proc/loadavg')


def _others_work():
    """Return the time and how long other programs have computed on our processors, in seconds.

    The latter since some moment in the past, and None where the system does not tell.
    """
    try:
        names = {f'cpu{i}' for i in os.sched_getaffinity(0)}
        rows = [line.split() for line in _STAT.read_text().splitlines()]
        # user, system and interrupts; what was started with `nice` gives way to what was not.
        columns = (1, 2, 3, 6, 7) if os.nice(0) > 0 else (1, 3, 6, 7)
        ticks = sum(int(row[i]) for row in rows if row and row[0] in names for i in columns)
        own = time.process_time() + sum(os.times()[2:4])  # and its children that have ended
        return time.monotonic(), ticks / os.sysconf('SC_CLK_TCK') - own
    except (AttributeError, IndexError, OSError, ValueError):  # not Linux, or a strange container
        return time.monotonic(), None


def _alone():
    """Return whether this is the only program that computes at this very moment."""
    try:
        return _LOAD.read_text().split()[3].split('/')[0] == '1'  # itself, of so many
    except (IndexError, OSError):
        return False  # not known


_start = _others_work()  # before the imports below, which take a while

import joblib  # noqa: E402
import psutil  # noqa: E402


def physical_cores(others=0.):
    """Return the number of processor cores that this process may use, at least 1.

    Hyper-threads of one core count once; CPU affinity and container quotas are respected. `others`
    is how many processors' whole time other programs take; two fifths of a core count as one.
    """
    cores = allowed = joblib.cpu_count()
    try:
        processors = os.sched_getaffinity(0)
        cores = len({(_CPUS / f'cpu{i}/topology/thread_siblings_list').read_text()
                     for i in processors})
    except (AttributeError, OSError):  # not Linux, or a container that hides the topology
        cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    free = cores * (1 - others / len(processors)) if others else cores
    return max(1, min(allowed, int(free + 0.4)))


_mxnet_came_first = 'mxnet' in sys.modules and 'OMP_NUM_THREADS' not in os.environ
_chosen_here = not _mxnet_came_first and 'OMP_NUM_THREADS' not in os.environ
if _chosen_here:
    # MXNet reads this only once, when it is loaded. By itself it takes half the processors,
    # assuming that every second one is a hyper-thread.
    os.environ['OMP_NUM_THREADS'] = str(physical_cores())
_left = 0  # cores, to other programs


def leave_cores_to_others():
    """Take fewer threads where other programs are busy; called right before MXNet is loaded.

    MXNet's threads spin and wait for each other many times in a step: one that shares its core
    holds up all. So beside another program fewer threads are faster.
    """
    global _chosen_here, _left
    before, cores = _start, physical_cores()
    if not _chosen_here or before[1] is None or os.environ.get('OMP_NUM_THREADS') != str(cores):
        return  # it cannot be known here, or the user has set the number
    _chosen_here = False  # an import that failed may be repeated
    for _ in range(4):
        if not _alone():
            break
        time.sleep(0.002)
    else:
        return  # a program that kept a core busy would have been seen at once
    # The system counts in hundredths of a second; and a busy moment is watched once more.
    for wait in (max(0, before[0] + 0.1 - time.monotonic()), 0.3):
        time.sleep(wait)
        after = _others_work()
        if after[1] is None:
            return
        number = physical_cores(max(0, (after[1] - before[1]) / (after[0] - before[0])))
        if number == cores:
            return
        before = after
    os.environ['OMP_NUM_THREADS'], _left = str(number), cores - number


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
    """Return a sentence or two on why MXNet runs on too few threads, or None if it does not."""
    used, cores = num_threads(), physical_cores()
    if _left:
        return (f'note: other programs keep {_left} of {cores} cores busy, so MXNet computes with '
                f'{used} of {cores} threads. For full speed restart Python when they are done, or '
                f'set OMP_NUM_THREADS={cores}.')
    if not _mxnet_came_first or used >= cores:
        return None
    return (f'note: mxnet was imported before d2l_ext and settled on {used} of {cores} cores. For '
            f'full speed restart Python and import d2l_ext first, or set OMP_NUM_THREADS={cores}.')
