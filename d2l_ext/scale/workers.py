"""The processes that train together: how they join, what part of a batch each takes, and sums.

MXNet is imported in functions only, after DMLC_ROLE is settled.
"""
import atexit
import contextlib
import os
import pathlib
import sys
import tempfile
import zlib

import numpy as np

from .server import STARTED_BY, serve_if_asked, settle
from .watchdog import Watchdog

KVSTORES = ('dist_sync', 'dist_device_sync')


class Workers:
    """The processes that train together, with the methods of :class:`d2l_ext.scale.team.Team`.

    This one is number `rank` of `number`, from 0; MXNet's key-value store `kv` joins them.
    """

    def __init__(self, kv):
        self.kv, self.rank, self.number = kv, kv.rank, kv.num_workers
        self._keys, self._counts = {}, None

    def _mine(self, indices):
        mine = np.array_split(indices, self.number)[self.rank]
        self._counts = len(indices), len(mine)
        return mine if len(mine) else indices[:1]

    def part(self, batches):
        """Yield this worker's part of every batch of `batches`, pairs ``(X, y)``.

        Every worker draws the same order from NumPy's global generator, which must be seeded alike,
        and takes its own, equally large slice of each batch; the first ones take one image more
        where it does not come out even. So no image is used twice, all have the same number of
        batches, and the batches are those of one process alone. A worker for which there is no
        image gets the first one of the batch nevertheless, and :meth:`counts` tells. Of ``Batches``
        only that slice is read.
        """
        from ..batches import Batches
        if isinstance(batches, Batches):
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

    def counts(self, X):
        """Return the images of the current batch, on all workers and on this one."""
        return self._counts

    def sum(self, values):
        """Return the sum over all workers of arrays of one shape, to float32's precision."""
        from mxnet import nd
        values = np.asarray(values, 'float64')
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
        content = np.frombuffer(values.tobytes(), 'uint8') * (self.rank == 0)  # float32 holds these
        content = self.sum(content).astype('uint8')
        return np.frombuffer(content.tobytes(), 'float64').reshape(values.shape)

    def check_alike(self, train_iter, **numbers):
        """Raise a ValueError unless all workers pass the same numbers, and as many images."""
        numbers['number of batches'] = len(train_iter) if hasattr(train_iter, '__len__') else 0
        # What tells sets of images apart cheaply, if known.
        numbers['check sum of labels'] = zlib.crc32(
            np.ascontiguousarray(getattr(train_iter, 'labels', ())))
        leader = self.from_leader(list(numbers.values()))
        for (name, here), there in zip(numbers.items(), leader):
            if here != there:
                raise ValueError(f'{name} is {here:.0f} on worker {self.rank} but {there:.0f} on '
                                 'rank 0: all workers must have the same data and arguments')

    def make_sendable(self, params):
        """Put parameters into MXNet's own layout.

        Inference leaves weights in one of oneDNN's, which the parameter server refuses.
        """
        from mxnet import nd
        nd.waitall()  # it rearranges them in the background
        for array in (array for param in params for array in param.list_data()):
            copy = nd.array(array.asnumpy(), array.context, array.dtype)
            nd._internal._mul_scalar(copy, scalar=1, out=array)  # this keeps no other layout

    @contextlib.contextmanager
    def open_checkpoint(self, path):
        """Give the path of a copy of the file `path` of rank 0, or None if there is none.

        A ValueError if another worker has such a file nevertheless.
        """
        if path is None:
            yield None
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

    def finish(self):
        """Say that training has ended well, so that the process may wait for the others."""
        global _unfinished
        _unfinished = False


_job = None  # this process's Workers, once connected; a process can take part in one job only
_unfinished = False


def connect(kvstore):
    """Join the workers of the job that a launcher started, and wait until all are there.

    From then on, until :meth:`Workers.finish`, this process ends with an error when another dies.
    `kvstore` says how gradients are summed: 'dist_sync', on the CPU, or 'dist_device_sync', on the
    worker's GPUs first. In the roles of server and scheduler this serves and exits. A ValueError if
    no launcher started this process, or another kvstore is asked for.
    """
    global _job, _unfinished
    serve_if_asked()
    if kvstore not in KVSTORES:
        raise ValueError(f'kvstore must be one of {", ".join(KVSTORES)} on several machines, '
                         f'not {kvstore!r}')
    if os.environ.get('DMLC_ROLE') != 'worker':
        raise ValueError(f'kvstore={kvstore!r} needs processes on several machines, started '
                         f'together by the launcher, such as\n{STARTED_BY}')
    if _job is None:
        settle()
        import mxnet as mx
        watchdog = Watchdog()
        kv = mx.kv.create(kvstore)
        watchdog.watch(kv)
        _job = Workers(kv)
        atexit.register(_leave, watchdog)
    elif _job.kv.type != kvstore:
        raise ValueError(f'this process has joined with kvstore={_job.kv.type!r} and cannot '
                         f'change to {kvstore!r}')
    _unfinished = True
    return _job


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
