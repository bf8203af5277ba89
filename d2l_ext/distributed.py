"""Training on several machines: MXNet's parameter server, and the launcher in its wheel.

``python -m d2l_ext.distributed -n 2 COMMAND`` starts COMMAND once for each worker and for each
server, and once as the scheduler that introduces them to each other. In these last two roles,
which the launcher sets in DMLC_ROLE, importing ``d2l_ext`` serves until the job ends. The workers
train: see ``train_ch5`` with a trainer made with ``kvstore='dist_sync'``.

All processes send heartbeats to the scheduler, which answers them. It ends when one has fallen
silent, and the others end when they miss its answers, so that nobody waits for the dead.

This module imports MXNet in its functions only: it settles what MXNet reads when it is imported.
"""
import argparse
import atexit
import contextlib
import ctypes
import importlib
import ipaddress
import os
import pathlib
import re
import shlex
import sys
import tempfile
import threading
import time

import numpy as np
import psutil

from .threads import physical_cores

KVSTORES = ('dist_sync', 'dist_device_sync')
# Seconds of silence after which a process counts as dead, for PS_HEARTBEAT_TIMEOUT. A death takes
# twice as long at most to end the job: the scheduler notices, then the others miss the scheduler.
DEAD_AFTER = 20
_HEARTBEAT_EVERY = 2  # seconds; also how much later, at most, a job that is done exits
START_WITHIN = 600  # seconds until all processes must have found each other
_EVERYBODY = 7  # ps-lite's number of the group of scheduler, servers and workers
_STARTED_BY = """\
    python -m d2l_ext.distributed -n 2 --address 127.0.0.1 python -m d2l_ext --kvstore dist_sync"""


def _die(message):
    """End the process at once: nothing that waits for other processes must run any more."""
    sys.stdout.flush()
    print(f'error: {message}', file=sys.stderr, flush=True)
    os._exit(1)


def _is_address(host):
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def _settle():
    """Set what ps-lite, the engine of MXNet's parameter server, reads when it starts."""
    missing = [name for name in ('DMLC_PS_ROOT_URI', 'DMLC_PS_ROOT_PORT', 'DMLC_NUM_WORKER',
                                 'DMLC_NUM_SERVER') if not os.environ.get(name)]
    if missing:
        raise ValueError(f'DMLC_ROLE is set but {", ".join(missing)} must be, too: the launcher '
                         f'sets them all, such as\n{_STARTED_BY}')
    os.environ.setdefault('PS_HEARTBEAT_INTERVAL', str(_HEARTBEAT_EVERY))
    timeout = os.environ.setdefault('PS_HEARTBEAT_TIMEOUT', str(DEAD_AFTER))
    if not timeout.isdigit() or int(timeout) < 1:
        raise ValueError('PS_HEARTBEAT_TIMEOUT must be a whole number of seconds of at least 1, '
                         f'not {timeout!r}')
    host = os.environ.get('DMLC_NODE_HOST')
    if host and not _is_address(host):
        raise ValueError(f'DMLC_NODE_HOST must be an IP address of this machine, not {host!r}: '
                         'write addresses, not names, into the host file')
    if not _is_address(os.environ['DMLC_PS_ROOT_URI']):
        # The name of a service, as in Kubernetes: the scheduler listens on all its addresses.
        os.environ.setdefault('DMLC_USE_KUBERNETES', '1')


class _Watchdog:
    """Ends the process when others of the job died, or did not all start."""

    def __init__(self):
        self._handle, self._stopped = None, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def watch(self, kv):
        self._handle = kv.handle

    def stop(self):
        self._stopped.set()

    @staticmethod
    def _silent(handle, seconds):
        """Return how many of those that this process hears have been silent for so long."""
        if handle is None:
            return 0
        from mxnet.base import _LIB
        number = ctypes.c_int()
        failed = _LIB.MXKVStoreGetNumDeadNode(handle, _EVERYBODY, ctypes.byref(number), seconds)
        return 0 if failed else number.value

    def _run(self):
        start, started = time.monotonic(), False
        role = os.environ['DMLC_ROLE']
        timeout = int(os.environ['PS_HEARTBEAT_TIMEOUT'])
        while True:
            handle = self._handle  # as it was a second ago: ps-lite crashes if asked too soon
            if self._stopped.wait(1):
                return
            # Everybody has been silent for more than -1 seconds, as soon as anybody is known.
            started = started or self._silent(handle, -1) > 0
            if not started and time.monotonic() - start > START_WITHIN:
                _die(f'{role}: after {START_WITHIN} seconds not all of the '
                     f'{os.environ["DMLC_NUM_WORKER"]} workers and '
                     f'{os.environ["DMLC_NUM_SERVER"]} servers have met at '
                     f'{os.environ["DMLC_PS_ROOT_URI"]}:{os.environ["DMLC_PS_ROOT_PORT"]}. Give '
                     'the launcher, with --address, one that every machine can reach')
            if started and self._silent(handle, timeout) and not self._stopped.is_set():
                who = 'a worker or a server' if role == 'scheduler' else 'the scheduler'
                _die(f'{role}: {who} has been silent for {timeout} seconds; another process of '
                     'the job has died. Its own output says why. The same command with --resume '
                     'goes on from the last checkpoint')


def serve_if_asked():
    """Be the scheduler or a server if DMLC_ROLE says so, and exit when the job is done."""
    role = os.environ.get('DMLC_ROLE')
    if role not in ('server', 'scheduler'):
        return
    _settle()
    # MXNet would serve, unwatched, as soon as it is imported in this role.
    os.environ['DMLC_ROLE'] = 'worker'
    import mxnet as mx
    os.environ['DMLC_ROLE'] = role
    watchdog = _Watchdog()
    kv = mx.kv.create('dist')
    watchdog.watch(kv)
    mx.kvstore.kvstore_server.KVStoreServer(kv).run()
    watchdog.stop()
    sys.exit()


class Workers:
    """The processes that train together; by default this one alone.

    Attributes
    ----------
    rank : int
        Number of this process among them, from 0.
    number : int
        How many they are.
    kv : mxnet.kvstore.KVStore or None
        Joins them.
    """

    def __init__(self, kv=None):
        self.kv = kv
        self.rank, self.number = (kv.rank, kv.num_workers) if kv else (0, 1)
        self._keys = {}

    def part(self, batches):
        """Return this worker's :class:`Part` of batches that all workers draw alike."""
        return Part(batches, self.rank, self.number)

    def sum(self, values):
        """Return the sum over all workers of arrays of one shape, to float32's precision."""
        values = np.asarray(values, 'float64')
        if self.kv is None:
            return values
        from mxnet import nd
        total = nd.array(values.reshape(-1))
        if total.size not in self._keys:
            # Gluon's trainer has the keys from 0.
            self._keys[total.size] = 1 << 20 | len(self._keys)
            self.kv.init(self._keys[total.size], nd.zeros(total.size))
        self.kv.pushpull(self._keys[total.size], total)
        return total.asnumpy().reshape(values.shape).astype('float64')

    def from_leader(self, values):
        """Return, exactly, the numbers that rank 0 passes; the others pass as many of any value."""
        values = np.asarray(values, 'float64')
        if self.kv is None:
            return values
        content = np.frombuffer(values.tobytes(), 'uint8') * (self.rank == 0)  # float32 holds these
        content = self.sum(content).astype('uint8')
        return np.frombuffer(content.tobytes(), 'float64').reshape(values.shape)

    def check_alike(self, **numbers):
        """Raise a ValueError unless all workers pass the same numbers."""
        leader = self.from_leader(list(numbers.values()))
        for (name, here), there in zip(numbers.items(), leader):
            if here != there:
                raise ValueError(f'{name} is {here:.0f} on worker {self.rank} but {there:.0f} on '
                                 'rank 0: all workers must have the same data and arguments')

    def make_sendable(self, params):
        """Put parameters into MXNet's own layout.

        Inference leaves weights in one of oneDNN's, which the parameter server refuses.
        """
        if self.kv is not None:
            from mxnet import nd
            for array in (array for param in params for array in param.list_data()):
                copy = nd.array(array.asnumpy(), array.context, array.dtype)
                nd._internal._mul_scalar(copy, scalar=1, out=array)  # this keeps no other layout

    @contextlib.contextmanager
    def open_checkpoint(self, path):
        """Give the path of a copy of the leader's file `path`, or None if there is none.

        Raises
        ------
        ValueError
            If another worker has such a file but the leader, rank 0, has none.
        """
        if self.kv is None or path is None:
            yield path if path is not None and path.exists() else None
            return
        content = np.fromfile(path, 'uint8') if path.exists() else np.zeros(0, 'uint8')
        size, = self.from_leader([content.size])
        others, = self.sum([path.exists()])
        if not size:
            if others:
                raise ValueError(f'{path} exists on some machines but not on that of rank 0, '
                                 'which may be another one each time: keep the checkpoint in a '
                                 'folder that all machines share')
            yield None
            return
        content = self.sum(content if self.rank == 0 else np.zeros(int(size)))
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder, path.name)
            content.astype('uint8').tofile(copy)
            yield copy


class Part:
    """One worker's part of every batch of `batches`, to iterate over as often as these.

    Every worker draws the same order from NumPy's global generator, which must be seeded alike,
    and takes its own, equally large slice of each batch; the first ones take one image more where
    it does not come out even. So no image is used twice, all have the same number of batches, and
    the batches are those of one process alone. Of ``Batches`` only that slice is read.

    Parameters
    ----------
    batches : iterable
        Of ``(X, y)``.
    rank, number : int
        Of this worker, and of all.

    Attributes
    ----------
    counts : pair of int or None
        Images of the current batch, on all workers and on this one; None if there is only one
        worker. One that has none gets the first image of the batch nevertheless.
    """

    def __init__(self, batches, rank, number):
        self.batches, self.rank, self.number = batches, rank, number
        self.counts = None

    def _mine(self, indices):
        mine = np.array_split(indices, self.number)[self.rank]
        self.counts = len(indices), len(mine)
        return mine if len(mine) else indices[:1]

    def __iter__(self):
        from .data import Batches
        batches = self.batches
        if self.number == 1:
            yield from batches
        elif isinstance(batches, Batches):
            number = len(batches.images)
            order = np.random.permutation(number) if batches.shuffle else np.arange(number)
            np.random.seed(np.random.randint(2**31) + self.rank)  # flips and shifts differ
            for start in range(0, number, batches.batch_size):
                mine = self._mine(order[start:start + batches.batch_size])
                yield from batches._part(mine, shuffle=False)
        else:
            for X, y in batches:
                mine = self._mine(np.arange(len(X)))
                yield tuple(a[mine[0]:mine[-1] + 1] for a in (X, y))


_job = None  # this process's Workers, once connected; a process can take part in one job only
_unfinished = False


def connect(kvstore):
    """Join the workers of the job that a launcher started, and wait until all are there.

    From then on, until :func:`finish`, the process ends with an error when another one dies.

    Parameters
    ----------
    kvstore : {'dist_sync', 'dist_device_sync'}
        How gradients are summed: on the CPU, or on the worker's GPUs first.

    Returns
    -------
    Workers
        In a worker; in the other roles this serves and exits.

    Raises
    ------
    ValueError
        If no launcher started this process, or another kvstore is asked for.
    """
    global _job, _unfinished
    serve_if_asked()
    if kvstore not in KVSTORES:
        raise ValueError(f'kvstore must be one of {", ".join(KVSTORES)} on several machines, '
                         f'not {kvstore!r}')
    if os.environ.get('DMLC_ROLE') != 'worker':
        raise ValueError(f'kvstore={kvstore!r} needs processes on several machines, started '
                         f'together by the launcher, such as\n{_STARTED_BY}')
    if _job is None:
        _settle()
        import mxnet as mx
        watchdog = _Watchdog()
        kv = mx.kv.create(kvstore)
        watchdog.watch(kv)
        _job = Workers(kv)
        atexit.register(_leave, watchdog)
    elif _job.kv.type != kvstore:
        raise ValueError(f'this process has joined with kvstore={_job.kv.type!r} and cannot '
                         f'change to {kvstore!r}')
    _unfinished = True
    return _job


def finish():
    """Say that training has ended well, so that the process may wait for the others and exit."""
    global _unfinished
    _unfinished = False


def _leave(watchdog):
    """End this process's part in the job, when Python exits."""
    import mxnet as mx
    if _unfinished:  # the others must not wait for this one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    mx.nd.waitall()
    _job.kv._barrier()  # while all are still watched
    watchdog.stop()
    # Now, while Python is whole; it would free the rest in any order.
    handle, _job.kv.handle = _job.kv.handle, None
    mx.base._LIB.MXKVStoreFree(handle)


def workers_of(trainer):
    """Return the :class:`Workers` that `trainer` trains with, and connect to them.

    Optimizer states then stay with the workers, each of which updates its own copy of the
    parameters with the sum of all gradients, so that rank 0 has all that a checkpoint needs.

    Raises
    ------
    ValueError
        If the trainer updates parameters elsewhere, or as :func:`connect`.
    """
    asked = trainer._kvstore_params
    kvstore = getattr(asked['kvstore'], 'type', asked['kvstore'])
    distributed = isinstance(kvstore, str) and 'dist' in kvstore
    if not distributed and len(trainer._contexts or ()) < 2:
        return Workers()
    if asked['update_on_kvstore'] or trainer._update_on_kvstore:
        raise ValueError('the trainer updates parameters in its kvstore, where no checkpoint '
                         'reaches the states; make a new one with update_on_kvstore=False')
    if asked['kvstore'] is None:
        raise ValueError("kvstore=None sums up no gradients; make the trainer with kvstore='device'"
                         ' for several devices')
    asked['update_on_kvstore'] = False
    if not distributed:
        return Workers()
    workers = connect(kvstore)
    asked['kvstore'] = workers.kv
    return workers


# --- the launcher: python -m d2l_ext.distributed ---

def _parse_args(argv):
    parser = argparse.ArgumentParser(
        prog='python -m d2l_ext.distributed',
        description='Start a training command on several machines at once, with the launcher in '
                    "MXNet's wheel (dmlc_tracker). Every machine needs this package, at the same "
                    'path.',
        epilog=f'Example, two workers on this machine:\n{_STARTED_BY}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-n', '--num-workers', type=int, required=True,
                        help='processes that train')
    parser.add_argument('-s', '--num-servers', type=int,
                        help='processes that sum up the gradients (default: as many as workers)')
    parser.add_argument('--launcher', default='local',
                        choices=('local', 'ssh', 'slurm', 'mpi', 'sge', 'yarn', 'kubernetes'),
                        help='how processes are started (default: local, all on this machine)')
    parser.add_argument('--hostfile', help='file with the IP address of a machine on each line, '
                                           'for ssh and mpi')
    parser.add_argument('--address',
                        help='IP address of this machine that all others can reach; 127.0.0.1 if '
                             'there is no other (default: what this machine takes for its own)')
    parser.add_argument('command', nargs=argparse.REMAINDER,
                        help="the command, after all options; unknown ones, such as "
                             "--kube-worker-image=NAME, go to dmlc_tracker's own parser")
    args, more = parser.parse_known_args(argv)
    args.more = more
    if not args.command:
        parser.error('the command is missing, such as: python -m d2l_ext --kvstore dist_sync')
    if args.num_workers < 1 or (args.num_servers is not None and args.num_servers < 1):
        parser.error('there must be at least 1 worker and 1 server')
    if args.launcher in ('ssh', 'mpi') and not args.hostfile:
        parser.error(f'--launcher {args.launcher} needs --hostfile')
    if args.address and not _is_address(args.address):
        parser.error(f'--address must be an IP address, not {args.address}')
    for word in args.command:
        if shlex.quote(word) != word:  # it passes through shells that dmlc_tracker does not name
            parser.error(f'{word!r} in the command would have to be quoted; put the command into '
                         'a script')
    return args


def _end_all(code):
    """End this process and all that it started."""
    children = psutil.Process().children(recursive=True)
    for signal in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                signal(child)
        _, children = psutil.wait_procs(children, timeout=5)
    os._exit(code)


def main(argv=None):
    args = _parse_args(argv)
    # dmlc_tracker calls what Python 3.9 removed.
    if not hasattr(threading.Thread, 'isAlive'):
        threading.Thread.isAlive = threading.Thread.is_alive
    from dmlc_tracker import opts, tracker
    cluster = importlib.import_module(f'dmlc_tracker.{args.launcher}')
    given = {name: value for name, value in os.environ.items()
             if name.startswith(('D2L_EXT_', 'PS_', 'MXNET_')) or name == 'DMLC_INTERFACE'}
    if args.launcher == 'local':
        if args.address:
            given['DMLC_NODE_HOST'] = args.address
    else:  # they write variables into a shell command, some of them between quotes
        given = {name: re.sub(r'([^\w@%+=:,./-])', r'\\\1', value) for name, value in given.items()}
    cores = physical_cores()
    if os.environ.get('OMP_NUM_THREADS') == str(cores):  # what d2l_ext chose for this process
        del os.environ['OMP_NUM_THREADS']
        if args.launcher == 'local':
            os.environ['OMP_NUM_THREADS'] = str(max(1, cores // args.num_workers))
    submit = tracker.submit

    def submit_to(num_workers, num_servers, fun_submit, hostIP='auto', pscmd=None):
        """Give all processes the variables and the scheduler the address that were asked for."""
        submit(num_workers, num_servers,
               lambda n, s, variables: fun_submit(n, s, {**variables, **given}),
               args.address or hostIP, pscmd)

    ending = threading.Lock()

    def failed(_):
        if not ending.acquire(blocking=False):
            return  # one that was ended
        # dmlc_tracker's own message would show all variables of the environment.
        print('error: a process of the job has failed; its own output says why. All others are '
              'ended', file=sys.stderr, flush=True)
        _end_all(1)

    tracker.submit = submit_to
    threading.excepthook = failed  # a thread waits for each process and fails as that does
    options = ['--cluster', args.launcher, '--num-workers', str(args.num_workers),
               '--num-servers', str(args.num_servers or args.num_workers), *args.more]
    if args.hostfile:
        options += ['--host-file', args.hostfile]
    try:
        cluster.submit(opts.get_opts([*options, '--', *args.command]))
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join()
    except KeyboardInterrupt:
        _end_all(130)
    return 0


if __name__ == '__main__':
    sys.exit(main())
