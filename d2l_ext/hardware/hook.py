"""Make ``import mxnet`` work on today's Python and NumPy, whoever imports it first.

The installation copies this file into the environment as ``_d2l_ext_hook``, and a ``.pth`` file
beside it imports that whenever Python starts; so it imports nothing itself until MXNet is wanted.
"""
import sys


class MXNetFinder:
    """Stands before Python's own finders until somebody imports MXNet, then steps aside."""

    def find_spec(self, name, path=None, target=None):
        if name != 'mxnet':
            return None
        import importlib.util
        import pathlib
        import runpy

        sys.meta_path.remove(self)
        package, spec = importlib.util.find_spec('d2l_ext'), importlib.util.find_spec('mxnet')
        if package is None or spec is None or spec.loader is None:
            return spec
        # By path: importing d2l_ext itself would also choose threads, for code that knows it not.
        folder = pathlib.Path(package.submodule_search_locations[0], 'hardware')
        restored = runpy.run_path(str(folder / 'names.py'))['restored']
        execute = spec.loader.exec_module

        def exec_module(module):
            with restored():
                execute(module)

        spec.loader.exec_module = exec_module
        return spec


def install():
    """Put the finder in place, once."""
    if not any(type(finder).__name__ == 'MXNetFinder' for finder in sys.meta_path):
        sys.meta_path.insert(0, MXNetFinder())


install()
