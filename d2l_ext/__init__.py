"""Companion to section 7.3, Network in Network, of Dive into Deep Learning, in MXNet Gluon.

``import d2l_ext as d2l`` runs the section's 2019 code as it stands. Names that are not listed here
are looked up in ``d2l.mxnet``, which is imported only then.
"""
import importlib

from .checkpoints import load_params, save_params
from .data import get_fashion_mnist_labels, load_data, load_data_digits, load_data_fashion_mnist
from .devices import try_gpu
from .nets import nin, nin_block
from .records import (
    checkpoint_path,
    final_values,
    load_record,
    load_weights,
    recorded,
    results_folder,
)
from .training import evaluate_accuracy, predict, train_ch5

__version__ = '0.1.0'

# Matplotlib takes longer to import than all the rest of d2l_ext.
_PLOTTING = ('plot_confusion', 'plot_histories', 'show_images', 'show_samples')

__all__ = ['checkpoint_path', 'evaluate_accuracy', 'final_values', 'get_fashion_mnist_labels',
           'load_data', 'load_data_digits', 'load_data_fashion_mnist', 'load_params',
           'load_record', 'load_weights', 'nin', 'nin_block', 'predict', 'recorded',
           'results_folder', 'save_params', 'train_ch5', 'try_gpu', *_PLOTTING]


def __getattr__(name):
    if name in _PLOTTING:
        return getattr(importlib.import_module('.plotting', __name__), name)
    if name.startswith('__'):  # Python itself asks for such names
        raise AttributeError(name)
    try:
        return getattr(importlib.import_module('d2l.mxnet'), name)
    except AttributeError:
        raise AttributeError(f'neither d2l_ext nor d2l.mxnet has {name!r}') from None
