"""What NumPy and Python have dropped since MXNet 1.9.1, its last release, and it still asks for.

Imports nothing of this package: the import hook runs this file alone.
"""
import contextlib
import sys
import types
import warnings


def _expired(name):
    def function(*args, **kwargs):
        raise RuntimeError(f'NumPy has no {name} since 1.20: use the package numpy-financial')
    return function


def replacements(np):
    """Return {name: value} for all that MXNet looks up in NumPy and that some NumPy lacks."""
    return {
        'bool': bool,  # mxnet.numpy.utils; gone from 1.24 to 1.26
        'int': int,  # mxnet.test_utils.verify_generator
        'Inf': np.inf,  # mxnet.gluon.contrib.estimator
        'compat': types.SimpleNamespace(basestring=str),  # mxnet.np.pad
        # mxnet.numpy.utils, which hands them on as mxnet.np.PZERO and so on
        'PZERO': 0.0, 'NZERO': -0.0, 'PINF': np.inf, 'NINF': -np.inf, 'NAN': np.nan, 'NaN': np.nan,
        # mxnet.numpy.fallback, which hands them on as mxnet.np.alltrue and so on
        'alltrue': np.all, 'msort': lambda x: np.sort(x, axis=0),
        'in1d': lambda x, *args, **kwargs: np.isin(np.ravel(x), *args, **kwargs),
        'trapz': getattr(np, 'trapezoid', None),  # NumPy 1 has trapz in its place
        # the same; NumPy 1.20 to 1.26 had functions that raise
        **{name: _expired(name) for name in ('mirr', 'npv', 'pmt', 'ppmt', 'pv', 'rate')},
        # mxnet.numpy_dispatch_protocol, whose wrappers stand in for NumPy's functions
        'product': np.prod, 'round_': np.round, 'sometrue': np.any,
    }


@contextlib.contextmanager
def _distutils():
    """Let MXNet compare versions while it is imported.

    Python 3.12 has no distutils any more; before, it may bring all of setuptools with it.
    """
    from packaging.version import Version

    stand_in = types.ModuleType('distutils')
    stand_in.version = types.ModuleType('distutils.version')
    stand_in.version.LooseVersion = stand_in.version.StrictVersion = Version
    names = {'distutils': stand_in, 'distutils.version': stand_in.version}
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


@contextlib.contextmanager
def restored():
    """Import MXNet inside: NumPy has all names that it needs, for good, and Python for now."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # names that are still there, but deprecated
        for name, value in replacements(np).items():
            if not hasattr(np, name):
                setattr(np, name, value)
    with _distutils():
        yield
