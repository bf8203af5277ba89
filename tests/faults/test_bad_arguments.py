"""Wrong arguments of every public function: the error names argument, value and what is allowed."""
import functools
import inspect
import re

import numpy as np
import pytest
from argument_rows import (
    AXES,
    BATCHES,
    COMPUTED,
    CONFUSIONS,
    CPU,
    DEVICES,
    FILES,
    GRID,
    IMAGE_SHAPES,
    LISTS,
    LOADER,
    NAME,
    NETS,
    NO_DEVICE,
    PLACES,
    PRECISIONS,
    PREDICTION,
    SEEDS,
    SHAPES,
    SHOWN,
    SIZES,
    TRAINERS,
    Case,
    Row,
    archives,
    bare,
    batches,
    cifar10_files,
    committed,
    data_rows,
    deferred,
    dense,
    flag,
    history,
    images,
    number,
    pair,
    path,
    record,
    run,
    saved,
    study,
    trained,
    training_run,
    unexpected,
    whole,
)

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.storage import fashion_mnist
from d2l_ext.studies import lr_finder, records

nd, gluon, nn = mx.nd, mx.gluon, mx.gluon.nn

CASES = {
    # --- checkpoints ---
    'save_params': Case(
        lambda folder: {'net': dense(), 'path': folder / 'a.npz'},
        [*NETS, *path(), Row('net', bare(), 'net.initialize()', 'weight is not'),
         Row('net', deferred(), 'have seen a batch', 'weight has no values'),
         *unexpected('dtype', 'float32, float16', 'int8', None, np.float16)]),
    'load_params': Case(
        saved, [*NETS, *path(), *DEVICES, Row('net', nn.Dense(5), '(2, 3)', '(5, 0)', 'network')]),
    # --- data ---
    'load_data_cifar10': Case(cifar10_files, LOADER + FILES),
    'Batches': Case(
        lambda folder: {'images': np.zeros((4, 4, 4), np.uint8), 'labels': np.zeros(4, int),
                        'batch_size': 2, 'ctx': CPU, 'classes': 'ab'}, BATCHES, free=('name',)),
    'Batches.take': Case(lambda folder: {'self': images(), 'number': 2},
                              whole('number', 1, 4)),
    'Batches.hold_out': Case(
        lambda folder: {'self': images(), 'number': 2},
        [*unexpected('number', 'whole number from', 1, 99, '2', 2.5, None), *SEEDS]),
    'load_data_fashion_mnist': Case(archives, LOADER + FILES),
    'data_folders': Case(lambda folder: {'folder_name': 'cifar10'}, [], free=('folder_name',)),
    'load_data_digits': Case(lambda folder: {'batch_size': 4}, LOADER),
    'load_data': Case(lambda folder: {'batch_size': 4}, LOADER),
    'get_fashion_mnist_labels': Case(
        lambda folder: {'labels': [0, 9]},
        [*unexpected('labels', 'from 0 to 9', 3, None),
         Row('labels', np.zeros((2, 2), int), 'of shape (batch,)', '(2, 2)'),
         *(Row('labels', [value], 'from 0 to 9', repr(value)) for value in (10, -1, 2.5, 'x'))]),
    # --- devices, files ---
    'try_gpu': Case(lambda folder: {}, whole('i', 0)),
    'export_onnx': Case(
        lambda folder: {'net': dense(), 'path': folder / 'a.onnx', 'input_shape': (3,)},
        [*NETS, *path(), *SHAPES[:-1],
         Row('input_shape', (5,), 'cannot take the shape', '(1, 5)', 'images')],
        needs='onnxruntime'),
    # --- networks ---
    'Inception': Case(
        lambda folder: {'c1': 1, 'c2': 2, 'c3': (1, 2), 'c4': 3},
        [*whole('c1', 1), *pair('c2', 1), *pair('c3', 1), *whole('c4', 1),
         *flag('batch_norm')]),
    'Residual': Case(lambda folder: {'block': nn.Flatten(), 'num_channels': 1},
                               [*whole('num_channels', 1),
                                *unexpected('block', 'a HybridBlock', 3, None)]),
    'googlenet': Case(lambda folder: {},
                                [*whole('num_classes', 1), *flag('batch_norm')]),
    'inception_v3_stage3': Case(lambda folder: {'num_pool_channels': 1},
                                          whole('num_pool_channels', 1)),
    'inception_v3_stage4': Case(lambda folder: {'num_channels': 1},
                                          whole('num_channels', 1)),
    'nin_block': Case(
        lambda folder: {'num_channels': 8, 'kernel_size': 3, 'strides': (1, 2), 'padding': 1},
        [*whole('num_channels', 1), *pair('kernel_size', 1), *pair('strides', 1),
         *pair('padding', 0), *whole('num_one_by_one', 0)]),
    'nin': Case(lambda folder: {}, [*whole('num_classes', 1), *whole('num_one_by_one', 0)]),
    'mlpconv': Case(
        lambda folder: {'channels': (2, 3), 'kernel_size': 3, 'strides': 1, 'padding': 0},
        [*unexpected('channels', 'the widths of the layers', 8, None, (), 'ab'),
         Row('channels', (2, 0), 'of at least 1', '0'), *pair('kernel_size', 1),
         *pair('strides', 1), *pair('padding', 0), *flag('batch_norm')]),
    'nin_cifar10': Case(
        lambda folder: {},
        [*whole('num_classes', 1), *flag('ceil_mode'), *flag('batch_norm'),
         *unexpected('second_pooling', 'average, maximum', 'mean', None, 2)]),
    'nin_imagenet': Case(lambda folder: {}, [*whole('num_classes', 1), *flag('ceil_mode')]),
    'nin_vgg': Case(
        lambda folder: {'num_layers': 11},
        [*unexpected('num_layers', 'one of 11, 16, 19', 13, 20),
         *unexpected('num_layers', 'whole number of at least 1', 0, True, '11', 11.5, None),
         *whole('num_classes', 1), *whole('width', 1), *whole('num_one_by_one', 0),
         *flag('batch_norm')]),
    'nin_of': Case(
        lambda folder: {'blocks': [((2, 3), 3, 1, 1, 2)]},
        [*unexpected('blocks', 'strides, padding and pool_size', 3, None, [], [3], [(1, 2)]),
         Row('blocks', [(8, 3, 1, 1, 2)], 'the widths of the layers', '8', 'channels'),
         Row('blocks', [((8,), 3, 1, 1, 0)], 'at least 1', '0', 'pool_size'),
         *whole('num_classes', 1), *whole('num_filters', 0)]),
    'Mirrored': Case(lambda folder: {'net': dense()},
                          unexpected('net', 'a HybridBlock', 3, None, nn.Sequential())),
    'Shifted': Case(lambda folder: {'net': dense()},
                         unexpected('net', 'a HybridBlock', 3, None, nn.Sequential())),
    'at_corners': Case(
        lambda folder: {'net': d2l_ext.nin()},
        unexpected('net', 'a HybridSequential such as nin()', 3, None, nn.Conv2D, dense())),
    'Muon': Case(
        lambda folder: {},
        [*number('learning_rate', 'above 0', 0, -1),
         *unexpected('momentum', 'a number of at least 0 and below 1', -0.1, 1, float('nan'), '0',
                     None)],
        free=('kwargs',)),
    'start_as_identity': Case(lambda folder: {'net': dense()},
                                     unexpected('net', 'a Gluon block', 3, None, nn.Conv2D)),
    'scale_layers': Case(
        lambda folder: {'net': dense(), 'X': nd.ones((2, 3))},
        [*unexpected('net', 'a Gluon block', 3, None, nn.Conv2D),
         *unexpected('X', 'an NDArray', 3, None, np.ones((2, 3))),
         *number('rms', 'above 0', 0, -1)]),
    'whitening_filters': Case(
        lambda folder: {'images': np.zeros((2, 1, 3, 3))},
        [*unexpected('images', 'floats of shape (number, channels, height, width)',
                     np.zeros((2, 3, 3)), np.zeros((2, 1, 3, 3), int), np.zeros((1, 1, 3, 3)), 3,
                     None), *whole('window', 1, 3), *number('eps', 'above 0', 0, -1),
         *whole('num_filters', 2, 8, (True, '3', 2.5)),
         *unexpected('num_filters', 'an even number', 3)]),
    'receptive_field': Case(
        lambda folder: {'net': nn.Conv2D(2, 3)},
        [*NETS, *unexpected('net', 'a chain of layers', nn.Conv2DTranspose(2, 3),
                            nn.Conv1D(2, 3), nn.Conv3D(2, 3),
                            mx.gluon.contrib.nn.HybridConcurrent())]),
    # --- what a net costs ---
    'summary': Case(
        lambda folder: {'net': dense(), 'input_shape': (3,)},
        [*NETS, *SHAPES, *whole('batch_size', 1),
         *unexpected('dtype', 'float32, float16, bfloat16, int8', 'float', None, np.float32)]),
    # --- figures ---
    'show_images': Case(
        lambda folder: {'images': SHOWN, 'num_rows': 1, 'num_cols': 2},
        [*unexpected('images', 'at least one image', 3, None, []), *GRID,
         Row('images', [np.zeros((2, 4, 4))], '(height, width)', '(2, 4, 4)'),
         Row('images', [np.zeros(4)], '(height, width)', '(4,)'),
         *unexpected('titles', 'at least 2 titles', ['a'], 3, ''),
         *number('scale', 'above 0', 0, -1)]),
    'show_samples': Case(
        lambda folder: {'data_iter': images(classes='ab'), 'num_rows': 1, 'num_cols': 2},
        [*unexpected('data_iter', 'the names of their classes', 3, None, batches()), *GRID]),
    'confusion_report': Case(lambda folder: {'matrix': [[1, 0], [0, 1]], 'classes': 'ab'},
                                      CONFUSIONS),
    'plot_confusion': Case(
        lambda folder: {'matrix': [[1, 0], [0, 1]], 'classes': 'ab'},
        [*CONFUSIONS, *SIZES]),
    # --- records ---
    'checkpoint_path': Case(
        lambda folder: {'name': 'a', 'config': {}, 'seed': 0},
        [*unexpected('name', NAME, 3, None, '', 'a/b'), *SEEDS,
         *unexpected('config', 'what JSON can hold', {1, 2}, np.zeros(2)),
         *unexpected('variant', 'a string', 3, None)]),
    'load_record': Case(
        lambda folder: {'path': records.results_folder() / '07_03_nin_book.json'}, path()),
    'recorded': Case(
        lambda folder: run(),
        [*unexpected('name', NAME, 3, None, '', 'a/b'),
         *unexpected('function', 'function(config, seed, variant)', 3, None),
         Row('function', lambda *_: 3, 'history', '3'),
         Row('function', lambda *_: {'net': 3}, 'history', "{'net': 3}"),
         Row('function', lambda *_: [{}], 'seconds', '{}'),
         Row('function', lambda *_: [], 'a list of rows, at least one', '[]'),
         *unexpected('config', 'a dictionary', 3, None, []),
         Row('config', {'dataset': {1}}, 'what JSON can hold', '{1}'),
         Row('config', {'dataset': 'digits'}, "'Fashion-MNIST'", "'digits'", 'records'),
         Row('config', {'dataset': 'Fashion-MNIST', 'precision': 8}, 'auto, float32', '8',
             'precision'),
         *unexpected('seeds', 'at least one item', 3, None, (), '12'),
         Row('seeds', (0, -1), 'from 0 to', '-1', 'seed'),
         *unexpected('variants', 'at least one item', 3, None, (), 'ab'),
         Row('variants', ('a', 1), 'a string', '1', 'variant')]),
    'load_weights': Case(
        committed, [*NETS, *unexpected('record', 'the keys name, runs', 3, None, {}),
                    Row('record', record(), 'no weights', 'the record a')]),
    'speed_records': Case(
        lambda folder: {}, unexpected('name', 'one of benchmarks, ', 'speed', None, 3)),
    'compare_means': Case(
        lambda folder: {'groups': {'a': [1] * 5, 'b': [2] * 5}, 'pairs': [('a', 'b')]}, [
            *unexpected('groups', 'a dictionary', 3, None),
            Row('groups', {'a': [1] * 3, 'b': [2] * 5}, 'at least five runs', '[1, 1, 1]', 'a'),
            *unexpected('pairs', 'a sequence of pairs', 3, None),
            Row('pairs', [('a', 'c')], 'a pair of names of groups', "('a', 'c')")]),
    'validation_history': Case(
        lambda folder: {'history': history()},
        [*unexpected('history', 'the list that train_ch5 returns', 3, None, {}),
         Row('history', [{}], 'the keys test_acc', '{}'),
         Row('history', [3], 'the keys test_acc', '3')]),
    'final_values': Case(
        lambda folder: {'record': record()},
        [*unexpected('record', 'the keys runs', 3, None, {}),
         *unexpected('key', 'loss, train_acc, test_acc', 'val_acc', 3, None)]),
    # --- the search for settings ---
    'make_trainer': Case(
        lambda folder: {'net': dense(), 'settings': {'lr': .1}, 'num_updates': 5, 'ctx': CPU},
        [*whole('num_updates', 1),
         *unexpected('settings', 'the keys lr', 3, None, {}),
         Row('settings', {'lr': 1, 'momentums': 0}, 'lr, momentum', 'momentums'),
         *(Row('settings', {'lr': 1, **setting}, allowed, repr(value), name)
           for setting, allowed in (({'lr': 0}, 'above 0'), ({'lr': 'x'}, 'above 0'),
                                    ({'momentum': 1}, 'below 1'), ({'wd': -1}, 'at least 0'),
                                    ({'warmup': None}, 'below 1'), ({'init': 'she'}, 'he, xavier'),
                                    ({'schedule': 1}, 'constant, cosine'))
           for name, value in setting.items()),
         *NETS, *DEVICES, NO_DEVICE]),
    'tune': Case(
        lambda folder: {
            'study_name': 'a', 'train_iter': images(batch_size=4), 'num_val': 2, 'num_epochs': 1,
            'storage': folder / 'a.journal', 'num_trials': 1, 'timeout': 60.,
            'make_net': lambda: nn.Dense(2), 'suggest': lambda trial: {'lr': .1, 'batch_size': 2}},
        [*unexpected('study_name', 'a string', 3, None),
         *unexpected('train_iter', 'batches such as load_data() returns', 3, None, batches()),
         *(Row('num_val', value, 'whole number from', name='number')
           for value in (1, 99, '2', 2.5, None)),
         *whole('num_epochs', 1),
         *unexpected('storage', 'a database URL or the path of a journal', 3, b'x'),
         *whole('num_trials', 1),
         *(row for row in number('timeout', 'above 0', 0, -1) if row.value is not None),
         *unexpected('make_net', 'a function', 3, None), *unexpected('suggest', 'a function', 3),
         *whole('seed', 0, 2**31, ('x', 1.5)), *PRECISIONS]),
    'trial_table': Case(study, unexpected('study', 'a study that tune returned', 3, None)),
    # --- training ---
    'RangeTest.plot': Case(
        lambda folder: {'self': lr_finder.RangeTest([.1, 1.], [2., 1.], [2., 1.], None, '', 'end',
                                                    None)}, AXES),
    'range_test': Case(
        lambda folder: {**trained(), 'train_iter': batches(), 'num_steps': 10},
        [*PLACES, *TRAINERS, *data_rows('train_iter'), *number('lr_min', 'above 0', 0, -1),
         *number('lr_max', 'above 1e-05', 1e-5), *whole('num_steps', 10),
         *number('smoothing', 'above 0, at most 1', 0, 1.1), *number('divergence', 'above 1', 1),
         *PRECISIONS, *SEEDS, Row('train_iter', [], 'iterated again', 'no batch')]),
    'compiled': Case(
        lambda folder: {'net': dense()},
        [*NETS, *COMPUTED, *IMAGE_SHAPES]),
    'predict': PREDICTION,
    'evaluate_accuracy': PREDICTION,
    'print_epoch': Case(
        lambda folder: {'row': history()[0]},
        unexpected('row', 'the keys epoch, loss, train_acc, test_acc, seconds', 3, None, {},
                   history())),
    'train_ch5': Case(training_run, [
        *PLACES, *LISTS, *TRAINERS, *data_rows('train_iter'), *data_rows('test_iter'),
        *PRECISIONS,
        *whole('batch_size', 1), Row('batch_size', 2, 'a batch of 4 images'),
        *whole('num_epochs', 0), *SEEDS, *flag('resume'),
        Row('resume', True, 'checkpoint=, the file to go on from', 'None'),
        *(row for row in path('checkpoint') if row.value is not None),
        *unexpected('report', 'a function of a row', 3, None),
        Row('train_iter', [], 'iterated again', 'no batch'),
        Row('test_iter', [], 'at least one', 'no batch')]),
}


def public_functions():
    """Yield the name of each public function, class and method of d2l_ext with its parameters."""
    for name in d2l_ext.__all__:
        item = getattr(d2l_ext, name)
        found = {name: item} if callable(item) else {}  # or a table, a tuple of names
        # Their methods MXNet calls.
        if inspect.isclass(item) and not issubclass(item, (gluon.Block, mx.optimizer.Optimizer)):
            found.update({f'{name}.{method}': function for method, function in vars(item).items()
                          if inspect.isfunction(function) and not method.startswith('_')})
        for place, function in found.items():
            names = set(inspect.signature(function).parameters) - {'self'}
            if names and item is not d2l_ext.RangeTest or '.' in place:
                yield place, names


def test_every_argument_of_every_public_function_is_in_the_table():
    functions = dict(public_functions())
    assert functions.keys() == CASES.keys()
    for name, arguments in functions.items():
        assert {row.argument for row in CASES[name].rows}.union(CASES[name].free) == arguments, name


@pytest.fixture(autouse=True)
def offline(isolated, monkeypatch):
    def fail():
        raise OSError('offline')

    monkeypatch.setattr(fashion_mnist, 'find', fail)


def call(name, arguments):
    functools.reduce(getattr, name.split('.'), d2l_ext)(**arguments)


@pytest.mark.parametrize('name', CASES)
def test_valid_arguments(name, isolated):
    if CASES[name].needs:
        pytest.importorskip(CASES[name].needs)
    call(name, CASES[name].valid(isolated))


ROWS = [pytest.param(name, row, id=f'{name}-{row.argument}-{i}')
        for name, case in CASES.items() for i, row in enumerate(case.rows)]


@pytest.mark.parametrize('name, row', ROWS)
def test_wrong_argument(name, row, isolated):
    arguments = {**CASES[name].valid(isolated), row.argument: row.value}
    with pytest.raises(ValueError) as error:
        call(name, arguments)
    message = str(error.value)
    assert re.search(rf'\b{row.name or row.argument}\b', message), message
    assert row.allowed in message
    shown = row.shown or (str(row.value.shape) if isinstance(row.value, (np.ndarray, nd.NDArray))
                          else ' '.join(repr(row.value).split())[:60])
    assert shown in message
