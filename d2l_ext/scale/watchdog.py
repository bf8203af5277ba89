"""Who of the job has fallen silent: then every process ends, so that nobody waits for the dead.

The scheduler ends when a process has fallen silent, the others when they miss its answers. This
module imports MXNet in its functions only: see :mod:`d2l_ext.scale.server`.
"""
import ctypes
import os
import sys
import threading
import time

START_WITHIN = 600  # seconds until all processes must have found each other
_EVERYBODY = 7  # ps-lite's number of the group of scheduler, servers and workers


def _die(message):
    """End the process at once: nothing that waits for other processes must run any more."""
    sys.stdout.flush()
    print(f'error: {message}', file=sys.stderr, flush=True)
    os._exit(1)


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
