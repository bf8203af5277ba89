"""Make ``import mxnet`` work on today's Python and NumPy, whoever imports it first.

The installation copies this file into the environment as ``_d2l_ext_hook``, and a ``.pth`` file
beside it imports that whenever Python starts; so it imports nothing itself until MXNet is wanted.
"""
import sys


class MXNetFinder:
    """Stands before Python's own finders, and answers for MXNet only."""

    def find_spec(self, name, path=None, target=None):
        if name != 'mxnet':
            return None
        from importlib.machinery import PathFinder
        from importlib.util import find_spec

        spec, package = PathFinder.find_spec(name), find_spec('d2l_ext')
        # Without an origin it is a mere folder, and a clone may have moved since it was installed.
        if spec and spec.origin and package and package.origin:
            execute = spec.loader.exec_module

            def exec_module(module):
                supplied = _run(package, 'libraries.py')['supplied']
                restored = _run(package, 'names.py')['restored']
                with supplied(), restored():
                    execute(module)

            spec.loader.exec_module = exec_module
        return spec


def _run(package, name):
    """Return what a file beside this one defines.

    By path: importing d2l_ext itself would also choose threads, for code that knows it not.
    """
    import pathlib
    import runpy

    return runpy.run_path(str(pathlib.Path(package.origin).with_name('hardware') / name))


if not any(type(finder).__name__ == 'MXNetFinder' for finder in sys.meta_path):
    sys.meta_path.insert(0, MXNetFinder())
