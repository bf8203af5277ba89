"""Make ``import mxnet`` work on today's Python and NumPy, whoever imports it first.

The installation copies this file into the environment as ``_d2l_ext_hook``, and a ``.pth`` file
beside it imports that whenever Python starts; so it imports nothing itself until MXNet is wanted.
"""
import sys


class MXNetFinder:
    """Stands before Python's own finders, and looks up when somebody imports MXNet."""

    def find_spec(self, name, path=None, target=None):
        if name != 'mxnet':
            return None
        import importlib.util
        import pathlib
        import runpy

        sys.meta_path.remove(self)
        try:
            package, spec = importlib.util.find_spec('d2l_ext'), importlib.util.find_spec('mxnet')
        finally:
            sys.meta_path.insert(0, self)  # after an import that fails there may be another
        if package is None or spec is None or spec.loader is None:
            return spec
        # By path: importing d2l_ext itself would also choose threads, for code that knows it not.
        folder = pathlib.Path(package.submodule_search_locations[0], 'hardware')
        supplied, restored = (runpy.run_path(str(folder / f'{name}.py'))[function] for
                              name, function in (('libraries', 'supplied'), ('names', 'restored')))
        execute = spec.loader.exec_module

        def exec_module(module):
            with supplied(), restored():
                execute(module)

        spec.loader.exec_module = exec_module
        return spec


def install():
    """Put the finder in place, once."""
    if not any(type(finder).__name__ == 'MXNetFinder' for finder in sys.meta_path):
        sys.meta_path.insert(0, MXNetFinder())


install()
