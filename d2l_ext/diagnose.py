"""What ``python -m d2l_ext --diagnose`` prints: the whole installation, and what to do about it.

Importing this module imports no MXNet and needs no NumPy, so that it runs where those fail.
"""
import contextlib
import importlib.metadata
import io
import os
import pathlib
import platform
import re
import shlex
import sys

from .hardware import libraries, threads
from .hardware.cuda import GPU_WHEEL, VERSION, Problem, check, device_wish, has_code_for

_VARIABLES = ('CUDA_VISIBLE_DEVICES', 'D2L_EXT_DATA', 'D2L_EXT_DEVICE', 'LD_LIBRARY_PATH',
              'MXNET_HOME', 'MXNET_USE_FUSION', 'OMP_NUM_THREADS')


def _tidy(text):
    """Return `text` with ~ for the home folder: it often holds the reader's name."""
    for home in {str(pathlib.Path.home()), os.path.realpath(pathlib.Path.home())}:
        if len(home) > 1:  # a container may have the home folder /
            text = re.sub(r'(?<![\w.-])' + re.escape(home) + r'(?![\w.-])', '~', text)
    return text


def _print(text):
    # Flushed, so that the report is there even if MXNet then crashes the process.
    print(_tidy(text), flush=True)


def _row(title, text):
    _print(f'{title:<11} {text}')


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_gpus(facts):
    """Print the rows on the libraries, the driver and the GPUs."""
    if facts.in_place != GPU_WHEEL:
        _row('libraries', f'none needed; {GPU_WHEEL} would need some')
    for name, found in facts.libraries.items():
        _row('library', f'{name}: {found}')
    driver = facts.driver
    if driver is None:
        _row('driver', 'no NVIDIA driver (libcuda.so.1 is not found)')
        return
    state = f'does not start (CUDA error {driver.error})' if driver.error else 'starts'
    _row('driver', f'NVIDIA, knows CUDA {driver.version[0]}.{driver.version[1]}, {state}')
    for i, gpu in enumerate(driver.gpus):
        fits = 'has' if has_code_for(gpu.capability) else 'has no'
        _row('GPU', f'{i}: {gpu.name}, compute capability {gpu.capability[0]}.'
                    f'{gpu.capability[1]}; {GPU_WHEEL} {fits} code for it')
    if not driver.gpus:
        _row('GPU', 'none')


def import_problem(error):
    """Return the Problem behind a failed import of MXNet or of what it needs."""
    reason = libraries.problem(error)
    if reason:
        return Problem(*reason, fatal=True)
    problems, facts = check()
    for problem in problems:
        if problem.fatal:
            return problem
    lock = '.requirements/gpu.txt' if GPU_WHEEL in facts.wheels else 'requirements.txt'
    install = ('Install the requirements anew, with Python 3.10 to 3.14, in the folder that holds '
               f'requirements.txt:\n    python -m pip install --no-deps -r {lock}')
    if not facts.wheels:
        return Problem('MXNet is not installed', install, fatal=True)
    what = f'MXNet cannot be imported: {type(error).__name__}: {error}'
    if getattr(error, 'name', None) == 'mxnet':  # pip knows the wheel, but its files are gone
        pins = ' '.join(f'{name}=={VERSION}' for name in facts.wheels)
        return Problem(
            f'{what}. Its files are gone, as after removing one of two wheels',
            f'    python -m pip install --force-reinstall --no-deps {pins}', fatal=True)
    return Problem(what, install, fatal=True)


def _import_d2l_ext():
    """Return d2l_ext's modules devices and training; this imports MXNet."""
    from . import devices, training
    return devices, training


def _train_one_step(training, ctx):
    """Take a step of a small convolutional net, with the operators that section 7.3 needs."""
    mx = training.mx
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Conv2D(4, kernel_size=3, activation='relu'),
            mx.gluon.nn.GlobalAvgPool2D(), mx.gluon.nn.Flatten())
    net.initialize(ctx=ctx)
    trainer = mx.gluon.Trainer(net.collect_params(), 'sgd')
    training.Run(net, trainer, ctx, 'auto').step(mx.nd.ones((2, 1, 8, 8), ctx=ctx),
                                                 mx.nd.zeros(2, ctx=ctx))
    for parameter in net.collect_params().values():
        parameter.data().asnumpy()


def _try_training(devices, training, problems):
    """Return the device on which a training step worked, or None, adding to the problems."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its warning is among the problems
            ctx = devices.try_gpu()
        _train_one_step(training, ctx)
        return ctx
    except (RuntimeError, ValueError) as error:  # RuntimeError: MXNet's own errors, too
        what = str(error).strip()
        if not any(str(problem) in what for problem in problems):
            problems.append(Problem(f'training fails: {what}',
                                    'Unless this says what to type, ask, with this report'))
        elif device_wish() == 'gpu':
            problems.append(Problem(
                'D2L_EXT_DEVICE=gpu forbids to train on the CPU',
                'To allow it until the rest is solved type\n    unset D2L_EXT_DEVICE'))
        return None


def _find_data(problems):
    """Return what a row says of Fashion-MNIST: where it is, or where a download would put it."""
    from .storage import fashion_mnist  # which import MXNet
    from .storage.downloads import data_folders, is_published

    folders, hashes = data_folders('fashion-mnist'), fashion_mnist.hashes()
    for folder in folders:
        paths = [folder / name for name in hashes]
        if not all(path.is_file() for path in paths):
            continue
        damaged = [path.name for path in paths if not is_published(path, hashes)]
        if not damaged:
            return f'Fashion-MNIST in {folder}'
        if folder != folders[-1]:  # in MXNet's cache d2l_ext replaces them itself
            problems.append(Problem(
                f'in {folder} {", ".join(damaged)}: not the published archive, damaged or '
                'incomplete', 'Remove what is named to have it fetched again:\n    rm '
                + ' '.join(shlex.quote(str(folder / name)) for name in damaged), fatal=True))
            return f'Fashion-MNIST in {folder}, damaged'
    return (f'Fashion-MNIST is not on this machine; a download of 30 MB would put it into '
            f"{folders[0]}, and without a network scikit-learn's digits stand in")


def diagnose():
    """Print what d2l_ext found on this machine, each problem, and what to type about it.

    Downloads nothing and changes nothing. The home folder is printed as ~, so that the text can
    be pasted into a question.

    Returns
    -------
    int
        The exit status: 0 if training can run, on the CPU too, else 1.
    """
    problems, facts = check()
    _row('Python', f'{platform.python_version()} ({platform.system()} {platform.machine()}), '
                   f'{sys.executable}')
    for name in ('d2l_ext', 'd2l', 'numpy'):
        _row('package', f'{name} {_version(name) or "is not installed by pip"}')
    for name, version in facts.wheels.items():
        _row('wheel', f'{name} {version}' + (', in use' if name == facts.in_place else ''))
    if not facts.wheels:
        _row('wheel', 'no MXNet')
    _print_gpus(facts)
    for name in _VARIABLES:
        if name in os.environ:
            _row('variable', f'{name}={os.environ[name]}')

    ctx = devices = None
    if not any(problem.fatal for problem in problems):
        try:
            devices, training = _import_d2l_ext()
        except Exception as error:  # a broken installation can raise anything
            problems.append(import_problem(error))
    if devices is None:
        _row('MXNet', 'cannot be imported: threads, bfloat16 and data are not checked')
    else:
        _row('MXNet', f'{devices.mx.__version__} is imported')
        used, cores = threads.num_threads(), threads.physical_cores()
        _row('threads', f'{used} for {cores} {"cores" if cores > 1 else "core"}')
        if used < cores:
            problems.append(Problem(
                f'MXNet computes with {used} of {cores} cores',
                threads.threads_note() or 'For full speed type\n    unset OMP_NUM_THREADS'))
        _row('bfloat16', 'yes, this processor trains faster with it'
             if devices.has_bfloat16() else 'no, this processor trains in float32')
        _row('data', _find_data(problems))
        ctx = _try_training(devices, training, problems)
        _row('training', f'a step works on {ctx}' if ctx else 'does not work')

    for number, problem in enumerate(problems, 1):
        _print(f'\nProblem {number}: {problem}')
    can_train = ctx is not None and not any(problem.fatal for problem in problems)
    _print(f'\nTraining can run, on {ctx}.' if can_train else '\nTraining cannot run.')
    return 0 if can_train else 1
