"""The launcher in MXNet's wheel, for training on several machines.

``python -m d2l_ext.distributed -n 2 COMMAND`` starts COMMAND once for each worker and for each
server, and once as the scheduler that introduces them to each other. The workers train: see
``train_ch5`` with a trainer made with ``kvstore='dist_sync'``. The others serve: see
:mod:`d2l_ext.scale.server`.
"""
import argparse
import contextlib
import importlib
import os
import re
import shlex
import sys
import threading

import psutil

from ..hardware.threads import physical_cores
from .server import STARTED_BY, is_address


def _parse_args(argv):
    parser = argparse.ArgumentParser(
        prog='python -m d2l_ext.distributed',
        description='Start a training command on several machines at once, with the launcher in '
                    "MXNet's wheel (dmlc_tracker). Every machine needs this package, at the same "
                    'path.',
        epilog=f'Example, two workers on this machine:\n{STARTED_BY}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-n', '--num-workers', type=int, required=True,
                        help='processes that train')
    parser.add_argument('-s', '--num-servers', type=int,
                        help='processes that sum up the gradients (default: as many as workers)')
    parser.add_argument('--launcher', default='local', choices=('local', 'ssh'),
                        help='how processes are started (default: local, all on this machine); '
                             'a cluster manager such as Slurm starts them itself, see README.md')
    parser.add_argument('--hostfile',
                        help='file with the IP address of a machine on each line, for ssh')
    parser.add_argument('--address',
                        help='IP address of this machine that all others can reach; 127.0.0.1 if '
                             'there is no other (default: what this machine takes for its own)')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='the command')
    args = parser.parse_args(argv)
    if not args.command:
        parser.error('the command is missing, such as: python -m d2l_ext --kvstore dist_sync')
    if args.num_workers < 1 or (args.num_servers is not None and args.num_servers < 1):
        parser.error('there must be at least 1 worker and 1 server')
    if args.launcher == 'ssh' and not args.hostfile:
        parser.error('--launcher ssh needs --hostfile')
    if args.address and not is_address(args.address):
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
    threading.Thread.isAlive = threading.Thread.is_alive
    from dmlc_tracker import opts, tracker
    cluster = importlib.import_module(f'dmlc_tracker.{args.launcher}')
    given = {name: value for name, value in os.environ.items()
             if name.startswith(('D2L_EXT_', 'PS_', 'MXNET_')) or name == 'DMLC_INTERFACE'}
    if args.launcher == 'local':
        if args.address:
            given['DMLC_NODE_HOST'] = args.address
    else:  # ssh gets them in a shell command
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
               '--num-servers', str(args.num_servers or args.num_workers)]
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
