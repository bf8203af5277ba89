"""Companion to section 7.3, Network in Network, of Dive into Deep Learning, in MXNet Gluon.

``import d2l_ext as d2l`` runs the section's code of 2019 as it stands. Names that are not listed
here are looked up in ``d2l.mxnet``, which is imported only then.
"""
import importlib
import importlib.util
import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 14):
    sys.exit('d2l_ext needs Python 3.10 to 3.14, and this is %d.%d: install one of those, and make '
             'an environment with it, such as\n    python3.13 -m venv .venv' % sys.version_info[:2])

from .hardware import cuda, hook, threads  # noqa: E402, F401  all before anybody imports mxnet

try:
    cuda.prepare()
except ImportError as _error:  # printed only: what needs no MXNet works; devices raises it
    from .arguments import wrapped as _wrapped
    print(_wrapped(str(_error)))

from .scale.server import serve_if_asked  # noqa: E402

serve_if_asked()  # does not return in a server's or scheduler's process: MXNet watches neither

__version__ = '0.1.0'

# Each name is imported when it is first used, so that importing d2l_ext itself takes little time
# and works where MXNet does not.
_MODULES = {
    'batches': ('Batches',),
    'data': ('FASHION_MNIST_CLASSES', 'get_fashion_mnist_labels', 'load_data', 'load_data_digits',
             'load_data_fashion_mnist'),
    'devices': ('try_gpu',),
    'evaluation': ('evaluate_accuracy', 'predict'),
    'graphs': ('compiled', 'receptive_field'),
    'nets': ('mlpconv', 'nin', 'nin_block'),
    'progress': ('print_epoch',),
    'storage.checkpoints': ('load_params', 'save_params'),
    'storage.downloads': ('data_folders',),
    'storage.onnx': ('export_onnx',),
    'studies.cifar10': ('CIFAR10_CLASSES', 'CIFAR10_SHA1', 'load_data_cifar10'),
    'studies.comparing': ('compare_means',),
    'studies.inception': ('Inception', 'Residual', 'googlenet', 'inception_v3_stage3',
                          'inception_v3_stage4', 'inception_v3_stage5'),
    'studies.initialization': ('INITS', 'scale_layers', 'start_as_identity'),
    'studies.lr_finder': ('RangeTest', 'range_test'),
    'studies.muon': ('Muon',),
    'studies.nets': ('Mirrored', 'Shifted', 'at_corners', 'nin_cifar10', 'nin_imagenet', 'nin_of',
                     'nin_vgg'),
    'studies.plotting': ('COLORS', 'confusion_report', 'plot_confusion', 'show_images',
                         'show_samples'),
    'studies.records': ('SPEED_KINDS', 'checkpoint_path', 'final_values', 'load_record',
                        'load_weights', 'recorded', 'results_folder', 'speed_records',
                        'validation_history'),
    'studies.resources': ('summary',),
    'studies.schedules': ('make_trainer',),
    'studies.search': ('trial_table', 'tune'),
    'studies.whitening': ('whitening_filters',),
    'training': ('train_ch5',),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f'.{_HOME[name]}', __name__), name)
    if name.startswith('_'):  # Python and IPython ask for such names
        raise AttributeError(name)
    if importlib.util.find_spec(f'{__name__}.{name}'):
        return importlib.import_module(f'.{name}', __name__)
    d2l = importlib.import_module('d2l.mxnet')
    if not hasattr(d2l, name):
        raise AttributeError(f'neither d2l_ext nor d2l.mxnet has {name!r}')
    return getattr(d2l, name)


def __dir__():
    return [*globals(), *__all__]
