"""The CUDA libraries of the GPU wheel, loaded before MXNet, and a clear word where they fail.

This module never imports MXNet: ``prepare()`` runs before ``import mxnet``. The GPU wheel,
``mxnet-cu112``, links the libraries in LIBRARIES and the driver's libcuda.so.1, and fails with a
bare loader error when one is missing. pip's ``nvidia-*-cu11`` packages hold them all, in folders
that no loader searches; once they are loaded by path, the loader takes them for MXNet, too.
"""
import ctypes
import dataclasses
import importlib.metadata
import os
import pathlib
import sys
import typing

CPU_WHEEL, GPU_WHEEL, VERSION = 'mxnet', 'mxnet-cu112', '1.9.1'
# Whatever else installs into the folder mxnet/.
_OTHER_WHEELS = ('mxnet-cu110', 'mxnet-cu102', 'mxnet-cu101', 'mxnet-cu100', 'mxnet-mkl',
                 'mxnet-native')

# (pip package, version, folder under nvidia/, files), each after those that it needs. The last
# file of a package is the one that the wheel or another package links. cuDNN loads its parts when
# first used and would look for them in the system's folders only; the two for recurrent nets
# (libcudnn_adv_*) are left out, they would take memory on the GPU.
LIBRARIES = (
    ('nvidia-cuda-runtime-cu11', '11.8.89', 'cuda_runtime', ('libcudart.so.11.0',)),
    ('nvidia-nvtx-cu11', '11.8.86', 'nvtx', ('libnvToolsExt.so.1',)),
    ('nvidia-cuda-nvrtc-cu11', '11.8.89', 'cuda_nvrtc', ('libnvrtc.so.11.2',)),
    ('nvidia-cublas-cu11', '11.11.3.6', 'cublas', ('libcublasLt.so.11', 'libcublas.so.11')),
    ('nvidia-cufft-cu11', '10.9.0.58', 'cufft', ('libcufft.so.10',)),
    ('nvidia-curand-cu11', '10.3.0.86', 'curand', ('libcurand.so.10',)),
    ('nvidia-cusparse-cu11', '11.7.5.86', 'cusparse', ('libcusparse.so.11',)),
    ('nvidia-cusolver-cu11', '11.4.1.48', 'cusolver', ('libcusolver.so.11',)),
    ('nvidia-cudnn-cu11', '8.9.6.50', 'cudnn',
     ('libcudnn_ops_infer.so.8', 'libcudnn_cnn_infer.so.8', 'libcudnn_ops_train.so.8',
      'libcudnn_cnn_train.so.8', 'libcudnn.so.8')),
    ('nvidia-nccl-cu11', '2.21.5', 'nccl', ('libnccl.so.2',)),
)
PINS = {name: f'{name}=={version}' for name, version, _, _ in LIBRARIES}

# Compute capabilities that the wheel has machine code for; it has no PTX to compile for others.
CODE_FOR = ((5, 0), (6, 0), (7, 0), (8, 0), (8, 6))
OLDEST_DRIVER = (11, 2)  # the CUDA version that a driver must know

# Of CUdevice_attribute in CUDA's cuda.h.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE

_said = set()  # warnings already printed


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with the installation, and what to type next."""

    what: str  # without a full stop
    fix: str
    fatal: bool = False  # training cannot run, on the CPU either
    gpu: int | None = None  # the number of the only one that it concerns

    def __str__(self):
        return f'{self.what}.\n{self.fix}'


class Gpu(typing.NamedTuple):
    """A GPU as the driver describes it."""

    name: str
    capability: tuple  # the compute capability, a pair of int


class Driver(typing.NamedTuple):
    """The NVIDIA driver."""

    version: tuple  # the newest CUDA that it knows, not what nvidia-smi calls the driver's version
    gpus: tuple = ()  # of Gpu, in the order in which MXNet numbers them
    error: int = 0  # what cuInit returned, one of CUDA's CUresult codes; 0 is success


class Facts(typing.NamedTuple):
    """What was found on this machine."""

    wheels: dict  # versions of the installed MXNet wheels, by name
    in_place: str | None  # the wheel whose files are there: of two, the one installed last
    libraries: dict  # if that is the GPU wheel: path, or OSError, of each package in LIBRARIES
    driver: Driver | None


def device_wish():
    """Return what D2L_EXT_DEVICE asks for: 'auto' (if it is not set), 'cpu' or 'gpu'."""
    wish = os.environ.get('D2L_EXT_DEVICE') or 'auto'
    if wish not in ('auto', 'cpu', 'gpu'):
        raise ValueError(f"D2L_EXT_DEVICE must be 'auto', 'cpu' or 'gpu', not {wish!r}")
    return wish


def _folders():
    """Return the folders that may hold installed packages."""
    return list(dict.fromkeys(entry or os.curdir for entry in sys.path))


def _load(name):
    """Load a shared library, by path or by a name that the system's loader knows."""
    return ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL)


def _distributions():
    """Return the installed MXNet wheels, importlib.metadata's distributions by name."""
    found = {}
    for name in (CPU_WHEEL, GPU_WHEEL, *_OTHER_WHEELS):
        for distribution in importlib.metadata.distributions(name=name, path=_folders()):
            found.setdefault(name, distribution)
    return found


def _in_place(distributions):
    """Return the name of the wheel whose libmxnet.so is on the disk, or None."""
    if len(distributions) < 2:
        return next(iter(distributions), None)
    for name, distribution in distributions.items():
        for file in distribution.files or ():
            path = distribution.locate_file(file)
            if file.name == 'libmxnet.so' and os.path.isfile(path) \
                    and os.path.getsize(path) == file.size:
                return name
    return None


def _where(file):
    """Return the path that a loaded library came from, as far as the system tells."""
    try:
        for line in pathlib.Path('/proc/self/maps').read_text().splitlines():
            path = line.split(maxsplit=5)[-1]
            # The loader follows links: libcudart.so.11.0 is libcudart.so.11.8.89, say.
            if os.path.basename(path).split('.so')[0] == file.split('.so')[0]:
                return path
    except OSError:
        pass
    return file


def _load_libraries():
    """Load LIBRARIES in order; see Facts.libraries for the result."""
    result = {}
    for name, _, folder, files in LIBRARIES:
        error = None
        for site in _folders():
            paths = [pathlib.Path(site, 'nvidia', folder, 'lib', file) for file in files]
            if all(path.is_file() for path in paths):
                try:
                    for path in paths:
                        _load(path)
                    result[name] = str(paths[-1])
                except OSError as problem:
                    error = problem
                break
        if name not in result:
            try:  # CUDA 11 may be installed on the system; it finds the other files itself
                _load(files[-1])
                result[name] = _where(files[-1])
            except OSError as problem:
                result[name] = error or problem
    return result


def _integer(function, *arguments):
    """Return the int that one of the driver's functions writes to its first argument."""
    value = ctypes.c_int()
    code = function(ctypes.byref(value), *arguments)
    if code:
        raise _DriverError(code)
    return value.value


class _DriverError(Exception):
    """A function of the driver returned this code."""


def _load_driver():
    """Return libcuda.so.1 and the CUDA version that it knows, or None and None without it."""
    try:
        library = _load('libcuda.so.1')
    except OSError:
        return None, None
    try:
        major, rest = divmod(_integer(library.cuDriverGetVersion), 1000)
        return library, (major, rest // 10)
    except _DriverError:  # a stub for linking in place of the driver
        return library, (0, 0)


def _read_driver():
    """Return the Driver, or None without one. Starts CUDA in this process."""
    library, version = _load_driver()
    if library is None:
        return None
    gpus = []
    try:
        code = library.cuInit(0)
        if code:
            raise _DriverError(code)
        for i in range(_integer(library.cuDeviceGetCount)):
            device = _integer(library.cuDeviceGet, i)
            name = ctypes.create_string_buffer(256)
            library.cuDeviceGetName(name, len(name), device)
            gpus.append(Gpu(name.value.decode(errors='replace'),
                            (_integer(library.cuDeviceGetAttribute, _CAPABILITY_MAJOR, device),
                             _integer(library.cuDeviceGetAttribute, _CAPABILITY_MINOR, device))))
    except _DriverError as error:
        return Driver(version, tuple(gpus), error.args[0])
    return Driver(version, tuple(gpus))


def has_code_for(capability):
    """Return whether the GPU wheel runs on a compute capability, a pair of int.

    Machine code runs on the same major version with the same or a higher minor one.
    """
    return any(major == capability[0] and minor <= capability[1] for major, minor in CODE_FOR)


def has_tensor_cores():
    """Return whether there are GPUs here and all have tensor cores. Starts CUDA in this process.

    They came with compute capability 7.0; the GTX 16 cards (7.5), which have none, count as well.
    """
    driver = _read_driver()
    return bool(driver and driver.gpus) and min(gpu.capability for gpu in driver.gpus) >= (7, 0)


def _dotted(numbers):
    return '.'.join(map(str, numbers))


def _two_wheels(wheels):
    names = ' '.join(wheels)
    return Problem(
        f'{" and ".join(wheels)} are both installed, and one has overwritten files of the other',
        f'Remove them:\n    python -m pip uninstall -y {names}\n'
        'then install one, for the CPU\n'
        f'    python -m pip install --no-deps {CPU_WHEEL}=={VERSION}\nor for a GPU\n'
        f'    python -m pip install --no-deps {GPU_WHEEL}=={VERSION}')


def _import_problems(version, libraries):
    """Return why the GPU wheel cannot be imported, given the driver's version or None."""
    if version is None:  # what else may be missing is of no use without a driver
        return [Problem(
            f'{GPU_WHEEL} is installed, but this machine has no NVIDIA driver: libcuda.so.1 is '
            'not found',
            'To compute on the CPU, install the CPU wheel instead:\n'
            f'    python -m pip uninstall -y {GPU_WHEEL}\n'
            f'    python -m pip install --force-reinstall --no-deps {CPU_WHEEL}=={VERSION}\n'
            'To compute on an NVIDIA GPU, install its driver: it works when this lists the GPU:\n'
            '    nvidia-smi', fatal=True)]
    failed = {name: error for name, error in libraries.items() if isinstance(error, OSError)}
    if not failed:
        return []
    reasons = '; '.join(f'{name} ({error})' for name, error in failed.items())
    return [Problem(
        f'{GPU_WHEEL} needs libraries that are missing or cannot be loaded, from the packages '
        + reasons,
        'Install them:\n    python -m pip install --force-reinstall --no-deps '
        + ' '.join(PINS[name] for name in failed), fatal=True)]


def _gpu_problems(driver):
    """Return why an imported GPU wheel cannot compute on the GPUs, or on some of them."""
    stay = 'To go on with the CPU and without this message type\n    export D2L_EXT_DEVICE=cpu'
    if (0, 0) < driver.version < OLDEST_DRIVER:
        return [Problem(
            f'the NVIDIA driver is too old: it knows CUDA {_dotted(driver.version)}, and '
            f'{GPU_WHEEL} needs {_dotted(OLDEST_DRIVER)}, driver 460.27 or newer',
            'Install a newer one (on Ubuntu: sudo ubuntu-drivers install), restart the machine, '
            f'and look at its number with\n    nvidia-smi\n{stay}')]
    if driver.error and driver.error != _NO_DEVICE:
        return [Problem(
            f'the NVIDIA driver does not start: CUDA error {driver.error}',
            'If this fails too, restart the machine or install the driver anew:\n    nvidia-smi\n'
            + stay)]
    if not driver.gpus:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        if visible is not None:
            return [Problem(f'CUDA_VISIBLE_DEVICES={visible!r} hides every GPU',
                            f'To see them type\n    unset CUDA_VISIBLE_DEVICES\n{stay}')]
        return [Problem(
            'the NVIDIA driver sees no GPU',
            'See whether this lists one (a container must be started with --gpus all):\n'
            f'    nvidia-smi\n{stay}')]
    return [Problem(
        f'{GPU_WHEEL} has no code for GPU {i}, {gpu.name}: its compute capability is '
        f'{_dotted(gpu.capability)}, and the wheel has code for '
        f'{", ".join(map(_dotted, CODE_FOR))} and later minor versions of these',
        'No release of MXNet has. If there is another GPU, choose it by its number N with\n'
        f'    export CUDA_VISIBLE_DEVICES=N\n{stay}', gpu=i)
        for i, gpu in enumerate(driver.gpus) if not has_code_for(gpu.capability)]


def check():
    """Return the Problems between MXNet and the GPUs, the most basic one first, and the Facts.

    Loads the libraries, if the GPU wheel is installed, and starts the driver, if there is one.
    The CPU wheel by itself has no problems.
    """
    distributions = _distributions()
    in_place = _in_place(distributions)
    wheels = {name: distribution.version for name, distribution in distributions.items()}
    driver = _read_driver()
    libraries = _load_libraries() if in_place == GPU_WHEEL else {}
    problems = [_two_wheels(wheels)] if len(wheels) > 1 else []
    if in_place == GPU_WHEEL:
        problems += (_import_problems(driver and driver.version, libraries)
                     or _gpu_problems(driver))
    return problems, Facts(wheels, in_place, libraries, driver)


def prepare():
    """Make ``import mxnet`` work with the GPU wheel; an ImportError says what to type if it cannot.

    Called before that import. Does nothing for the CPU wheel, or for an MXNet that pip did not
    install. CUDA is not started.
    """
    distributions = _distributions()
    if _in_place(distributions) != GPU_WHEEL:
        return
    _, version = _load_driver()
    problems = _import_problems(version, _load_libraries())
    if problems:
        if len(distributions) > 1:
            problems.insert(0, _two_wheels(distributions))
        raise ImportError('\n'.join(map(str, problems)))
    if version < (11, 8):
        # MXNet compiles fused operators to PTX with NVRTC, by pip 11.8: older drivers reject it.
        os.environ.setdefault('MXNET_USE_FUSION', '0')


def fall_back(problem):
    """Say on standard output, once, why the CPU is used; a RuntimeError if D2L_EXT_DEVICE=gpu."""
    if device_wish() == 'gpu':
        raise RuntimeError(f'D2L_EXT_DEVICE=gpu, but {problem}')
    if problem not in _said:
        _said.add(problem)
        from ..arguments import wrapped  # here, so that this file works alone
        print(wrapped(f'Computing on the CPU: {problem}'))


def may_use_gpu(i, built_with_cuda):
    """Return whether it makes sense to try GPU `i`; if not, :func:`fall_back` says why.

    `built_with_cuda` tells whether the MXNet that was imported can use GPUs at all.
    """
    wish = device_wish()
    if wish == 'cpu':
        return False
    wheels = _distributions()
    if not built_with_cuda:
        if len(wheels) > 1:
            fall_back(_two_wheels(wheels))
        elif wish == 'gpu':  # with 'auto' a CPU wheel needs no comment
            fall_back(Problem(
                'the installed MXNet computes on the CPU only',
                'Install the GPU wheel in its place, in the folder that holds requirements.txt:\n'
                f'    python -m pip uninstall -y {CPU_WHEEL}\n'
                '    python -m pip install --no-deps -r .requirements/gpu.txt'))
        return False
    if GPU_WHEEL not in wheels:  # built by hand, say: only trying tells
        return True
    problems, facts = check()
    problems = [problem for problem in problems if problem.gpu in (None, i)]
    if not problems and i >= len(facts.driver.gpus):
        problems = [Problem(f'there is no GPU {i}, the numbers end at {len(facts.driver.gpus) - 1}',
                            'List them with\n    nvidia-smi')]
    if problems:
        fall_back(problems[0])
    return not problems
