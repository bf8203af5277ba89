"""MXNet's parameter server: scheduler and servers.

In the roles of a server and of the scheduler, which the launcher sets in DMLC_ROLE, importing
``d2l_ext`` serves until the job ends. All processes send heartbeats to the scheduler, which answers
them; :mod:`d2l_ext.scale.watchdog` listens.

This module imports MXNet in its functions only: it settles what MXNet reads when it is imported.
"""
import contextlib
import ipaddress
import os
import sys

from .watchdog import Watchdog

# Seconds after which who is silent counts as dead, for PS_HEARTBEAT_TIMEOUT. A death takes twice
# as long at most to end the job: the scheduler notices, then the others miss the scheduler.
_SILENCE = 20
_HEARTBEAT_EVERY = 2  # seconds; also how much later, at most, a job that is done exits
STARTED_BY = """\
    python -m d2l_ext.distributed -n 2 --address 127.0.0.1 python -m d2l_ext --kvstore dist_sync"""


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
