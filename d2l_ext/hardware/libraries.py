"""The shared libraries that MXNet's wheel needs and a minimal Linux lacks, and a word on ARM.

Imports nothing of this package: the import hook runs this file alone.
"""
import contextlib
import ctypes
import os
import pathlib
import platform
import secrets
import sys

# Debian's package and Fedora's for each.
PACKAGES = {'libgomp.so.1': ('libgomp1', 'libgomp'),
            'libquadmath.so.0': ('libquadmath0', 'libquadmath')}


def _copies(soname):
    """Return the copies of a library that scikit-learn, SciPy and NumPy brought along."""
    name, _, version = soname.partition('.so')
    return [path for folder in sys.path for wheel in ('scikit_learn', 'scipy', 'numpy')
            for path in sorted(pathlib.Path(folder).glob(f'{wheel}.libs/{name}-*.so{version}.*'))]


def _under_its_own_name(path, soname):
    """Return a copy, in the user's cache, of a library that has a hashed name in a wheel.

    A loaded library stands in for another's need only if it bears the name that is needed.
    """
    hashed = path.name.encode()
    content = path.read_bytes().replace(hashed, soname.encode().ljust(len(hashed), b'\0'))
    cache = os.environ.get('D2L_EXT_CACHE') or pathlib.Path(
        os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache', 'd2l_ext')
    copy = pathlib.Path(cache, 'libraries', path.name, soname)
    if not copy.is_file() or copy.read_bytes() != content:  # new, damaged, or of another wheel
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f'.{soname}.{secrets.token_hex(4)}.tmp')
        try:
            temporary.write_bytes(content)
            temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)
    return copy


def _load(soname):
    """Load a library for MXNet to find: the system's or a copy; without one, MXNet will say so."""
    with contextlib.suppress(OSError):
        return ctypes.CDLL(soname)
    for path in _copies(soname):
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
            return ctypes.CDLL(str(_under_its_own_name(path, soname)))
    return None


def problem(error):
    """Return what is wrong and what to type about it, two str, after a failed import of MXNet.

    Parameters
    ----------
    error : Exception
        What the import raised.

    Returns
    -------
    pair of str or None
        None where neither the machine nor its libraries are the reason.
    """
    if platform.machine().lower() in ('aarch64', 'arm64'):
        return ("MXNet has no wheel that works on ARM: its own needs Arm's Performance Libraries, "
                'which no package index has',
                'With Docker, which emulates x86-64, type in the folder that holds '
                'requirements.txt\n'
                '    docker run --platform linux/amd64 -it -v "$PWD":/d2l_ext -w /d2l_ext '
                'python:3.13-slim bash\nand in there\n'
                '    python -m pip install --no-deps -r requirements.txt && python -m d2l_ext')
    missing = next((soname for soname in PACKAGES if soname in str(error)), None)
    if missing is None:
        return None
    debian, fedora = (' '.join(names) for names in zip(*PACKAGES.values()))
    return (f'MXNet needs {missing}, which cannot be loaded here',
            f'Install it. On Debian and Ubuntu:\n    sudo apt-get install {debian}\n'
            f'On Fedora:\n    sudo dnf install {fedora}')


@contextlib.contextmanager
def supplied():
    """Import MXNet inside: it finds its libraries, or an ImportError says what to type."""
    threads = sys.modules.get('d2l_ext.hardware.threads')  # absent where nobody asked for d2l_ext
    if threads:
        threads.leave_cores_to_others()  # OpenMP, the first library, reads their number
    for soname in PACKAGES:
        _load(soname)
    try:
        yield
    except OSError as error:
        reason = problem(error)
        if reason is None:
            raise
        raise ImportError('.\n'.join(reason)) from None
