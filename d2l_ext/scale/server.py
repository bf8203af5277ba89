"""MXNet's parameter server: scheduler, servers, and who watches that nobody has died.

In the roles of a server and of the scheduler, which the launcher sets in DMLC_ROLE, importing
``d2l_ext`` serves until the job ends. All processes send heartbeats to the scheduler, which answers
them. It ends when one has fallen silent, and the others end when they miss its answers, so that
nobody waits for the dead.

This module imports MXNet in its functions only: it settles what MXNet reads when it is imported.
"""
import contextlib
import ctypes
import ipaddress
import os
import sys
import threading
import time

# Seconds after which who is silent counts as dead, for PS_HEARTBEAT_TIMEOUT. A death takes twice
# as long at most to end the job: the scheduler notices, then the others miss the scheduler.
_SILENCE = 20
_HEARTBEAT_EVERY = 2  # seconds; also how much later, at most, a job that is done exits
START_WITHIN = 600  # seconds until all processes must have found each other
_EVERYBODY = 7  # ps-lite's number of the group of scheduler, servers and workers
STARTED_BY = """\
    python -m d2l_ext.distributed -n 2 --address 127.0.0.1 python -m d2l_ext --kvstore dist_sync"""


def _die(message):
    """End the process at once: nothing that waits for other processes must run any more."""
    sys.stdout.flush()
    print(f'error: {message}', file=sys.stderr, flush=True)
    os._exit(1)


def is_address(host):
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def settle():
    """Set what ps-lite, the engine of MXNet's parameter server, reads when it starts."""
    missing = [name for name in ('DMLC_PS_ROOT_URI', 'DMLC_PS_ROOT_PORT', 'DMLC_NUM_WORKER',
                                 'DMLC_NUM_SERVER') if not os.environ.get(name)]
    if missing:
        raise ValueError(f'DMLC_ROLE is set but {", ".join(missing)} must be, too: the launcher '
                         f'sets them all, such as\n{STARTED_BY}')
    os.environ.setdefault('PS_HEARTBEAT_INTERVAL', str(_HEARTBEAT_EVERY))
    timeout = os.environ.setdefault('PS_HEARTBEAT_TIMEOUT', str(_SILENCE))
    if not timeout.isdigit() or int(timeout) < 1:
        raise ValueError('PS_HEARTBEAT_TIMEOUT must be a whole number of seconds of at least 1, '
                         f'not {timeout!r}')
    for name in ('DMLC_PS_ROOT_URI', 'DMLC_NODE_HOST'):
        host = os.environ.get(name)
        if host and not is_address(host):
            raise ValueError(f'{name} must be an IP address, not {host!r}: write addresses, not '
                             'names, into the host file')


class Watchdog:
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
    settle()
    # MXNet would serve, unwatched, as soon as it is imported in this role.
    os.environ['DMLC_ROLE'] = 'worker'
    import mxnet as mx
    os.environ['DMLC_ROLE'] = role
    watchdog = Watchdog()
    kv = mx.kv.create('dist')
    watchdog.watch(kv)
    mx.kvstore.kvstore_server.KVStoreServer(kv).run()
    watchdog.stop()
    sys.exit()
