"""Valid arguments of public functions, and rows of wrong ones, for test_bad_arguments.py."""
import typing

import numpy as np
from conftest import write_archives

import d2l_ext
from d2l_ext.batches import Batches
from d2l_ext.devices import mx
from d2l_ext.storage import checkpoints
from d2l_ext.studies import cifar10, records

nd, gluon, nn, CPU = mx.nd, mx.gluon, mx.gluon.nn, mx.cpu()


class Row(typing.NamedTuple):
    """A wrong value of an argument, and what the error must contain."""

    argument: str
    value: object
    allowed: str
    shown: str = None  # of the value; by default what Python shows, of an array its shape
    name: str = None  # what is wrong, if it is something inside the argument


class Case(typing.NamedTuple):
    """A function with valid arguments, made in an empty folder, and rows of wrong ones."""

    valid: typing.Callable
    rows: list
    needs: str = None  # a package without which a valid call fails
    free: tuple = ()  # arguments that nobody checks: they are only shown or handed on


def whole(name, low, high=None, types=(True, '3', 2.5, None)):
    """Return rows for an argument that is a whole number within limits."""
    limits = f'whole number of at least {low}' if high is None else f'from {low} to {high}'
    return unexpected(name, limits, low - 1, *([] if high is None else [high + 1]), *types)


def number(name, limits, *values):
    """Return rows for an argument that is a number."""
    return unexpected(name, f'finite number {limits}', *values, float('nan'), float('inf'), '0.1',
                      None, True)


def pair(name, low):
    """Return rows for an argument that is a whole number or a pair of them."""
    return [*whole(name, low), Row(name, (low, low - 1), f'at least {low}', str(low - 1)),
            Row(name, (1, 2, 3), 'one whole number or a pair')]


def flag(name):
    return unexpected(name, 'True or False', 'no', 1, None)


def path(name='path'):
    return unexpected(name, 'the path of a file', 3, None, b'x', '')


def unexpected(name, allowed, *values):
    return [Row(name, value, allowed) for value in values]


def dense():
    net = nn.Dense(2, in_units=3)
    net.initialize()
    return net


def bare():
    return nn.Dense(2, in_units=3, prefix='bare_')


def deferred():
    net = nn.Dense(2, prefix='deferred_')
    net.initialize()
    return net


def trainer_of(net):
    return gluon.Trainer(net.collect_params(), 'sgd')


def batches(**changes):
    """Return a list of one batch for ``dense()``, with some arrays changed."""
    arrays = {'X': nd.ones((4, 3)), 'y': nd.arange(4) % 2, **changes}
    return [(arrays['X'], arrays['y'])]


def images(**changes):
    return Batches(**{'images': np.arange(64, dtype=np.uint8).reshape(4, 4, 4),
                      'labels': np.arange(4) % 2, 'batch_size': 2, 'ctx': CPU, **changes})


def history():
    return [{'epoch': 1, 'loss': 1., 'train_acc': .5, 'test_acc': .5, 'seconds': 1.}]


def record(**extras):
    return {'name': 'a', 'runs': [{'variant': '', 'seed': 0, 'history': history(), **extras}]}


def trained():
    """Return arguments of the functions that take a net, its trainer and a device."""
    net = dense()
    return {'net': net, 'trainer': trainer_of(net), 'ctx': CPU}


NETS = unexpected('net', 'a Gluon block', 3, None, 'nin', [bare()])
DEVICE = 'a device such as mx.cpu() or try_gpu()'
DEVICES = unexpected('ctx', DEVICE, 'cpu', 0, mx.gpu(99))
NO_DEVICE = Row('ctx', None, DEVICE)
LISTS = unexpected('ctx', 'a list of different devices', [], [CPU, CPU])
PLACES = [*NETS, *DEVICES, NO_DEVICE, Row('ctx', mx.cpu(1), 'cpu(0)')]
# Where a trainer is an argument, too, Gluon has refused to make it.
BARE = Row('net', bare(), 'net.initialize(ctx=ctx)', 'bare_weight is on no device')
TRAINERS = unexpected('trainer', "gluon.Trainer of the net's own parameters", 'sgd', None,
                      trainer_of(dense()))
PRECISIONS = [*unexpected('precision', 'auto, float32, bfloat16, float16', 'float64', None, 32,
                          np.float32),
              Row('precision', 'float16', "Use precision='auto'")]
COMPUTED = unexpected('precision', 'float32, bfloat16, float16', 'auto', None, 16)
SEEDS = whole('seed', 0, 2**32 - 1, ('x', 1.5, True))
SHAPES = [*unexpected('input_shape', 'the shape of one example', 3, None, (), 'ab'),
          Row('input_shape', (0,), 'of at least 1', '0'),
          Row('input_shape', (2.5,), 'a whole number', '2.5'),
          Row('input_shape', (5,), '[2,3]', '(1, 5)', 'input')]
IMAGE_SHAPE = '(channels, height, width) of an image'
IMAGE_SHAPES = [*unexpected('image_shape', IMAGE_SHAPE, 4, (), 'abc', (4, 4), (1, 1, 4, 4)),
                Row('image_shape', (1, 4, 0), 'of at least 1', '0'),
                Row('image_shape', (1, 4, 2.5), 'a whole number', '2.5')]
AXES = unexpected('axes', 'the Axes of a Matplotlib figure', 3, 'x')
CONFUSIONS = [*unexpected('matrix', 'whole numbers of at least 0 of shape (2, 2)',
                          np.eye(3, dtype=int), np.eye(2), 3, None),
              Row('matrix', [[-1, 0], [0, 1]], 'at least 0', '(2, 2)'),
              *unexpected('classes', 'a sequence of names', 3, None, [])]
SIZES = [*unexpected('figsize', 'a pair of numbers', 3, (1, 2, 3), None, 'ab'),
         Row('figsize', (0, 3), 'above 0', '0'), Row('figsize', (3, 'x'), 'above 0', "'x'")]


def data_rows(name):
    """Return rows for the batches in an argument of a function that feeds them to ``dense()``."""
    def row(value, *rest):
        return Row(name, value, *rest)

    X, y = batches()[0]
    pair = 'a pair (X, y) of arrays'
    return [
        row(3, 'batches, pairs (X, y)'), row(None, 'batches, pairs (X, y)'),
        row([X], pair, '(4, 3)'), row([(X, y, y)], pair, 'NDArray'), row([(X, None)], pair, 'None'),
        row([('X', y)], pair, "'X'"), row(X, 'pairs (X, y)'),
        row(batches(X=X.astype('uint8')), 'must be float32', 'uint8', 'images'),
        row(batches(X=X.astype('float64')), 'must be float32', 'float64', 'images'),
        row(batches(X=nd.ones((4, 5))), 'cannot take the shape', '(4, 5)', 'images'),
        row(batches(y=nd.zeros(3)), '(4,)', '(3,)', 'labels'),
        row(batches(y=nd.zeros((4, 2))), '(4,)', '(4, 2)', 'labels'),
        row(batches(y=y + 2), 'outside 0 to 1', '4 labels', 'labels'),
        row(batches(y=y - 1), 'outside 0 to 1', '2 labels', 'labels'),
        row(batches(y=y * .5), 'whole', '2 labels', 'labels'),
        row(batches(y=y * float('nan')), 'outside 0 to 1', '4 labels', 'labels'),
    ]


def archives(folder):
    write_archives(folder / 'archives')
    return {'batch_size': 4, 'root': folder / 'archives', 'verify': False}


IMAGES = 'uint8 of shape (number, height, width)'
BATCHES = [
    Row('images', [[0]], IMAGES), Row('images', np.zeros((4, 4, 4)), IMAGES, 'float64'),
    Row('images', np.zeros((4, 4), np.uint8), IMAGES),
    Row('images', nd.zeros((4, 4, 4), dtype='uint8'), IMAGES),
    Row('labels', [0, 1, 0, 1], 'of shape (4,)'), Row('labels', np.zeros(3, int), 'of shape (4,)'),
    Row('labels', np.zeros(4), 'whole numbers', 'float64'),
    Row('labels', np.array(['a'] * 4), 'whole numbers'),
    *whole('batch_size', 1, 4), *whole('resize', 1, types=('8', 2.5, True)), *flag('shuffle'),
    *DEVICES, *number('max_value', 'above 0', 0, -1), *flag('flip'), *whole('shift', 0, 3),
    Row('labels', np.array([0, 1, 0, 5]), 'from 0 to 1', 'from 0 to 5'),
    *unexpected('classes', 'a sequence of names', 3, None),
    *unexpected('normalize', 'each of shape (1,)', 3, (1,), np.ones((2, 3)), 'ab'),
]
LOADER = [*whole('batch_size', 1), *whole('resize', 1, types=('8', 2.5, True)), *DEVICES,
          *flag('flip'), *flag('normalize'),
          *(Row('shift', value, 'a whole number from 0 to') for value in (-1, '1', 1.5, True, 99))]
FILES = [*(row for row in path('root') if row.value is not None), *flag('verify')]

def saved(folder):
    """Return arguments for a file of parameters."""
    d2l_ext.save_params(dense(), folder / 'a.npz')
    return {'net': dense(), 'path': folder / 'a.npz', 'ctx': CPU}


def checkpoint(folder):
    arguments = {**trained(), 'path': folder / 'a.npz', 'settings': {'seed': 0}}
    checkpoints.save_checkpoint(**arguments, history=history())
    return arguments


def committed(folder):
    """Return arguments for weights beside a record in the reader's cache folder."""
    d2l_ext.save_params(dense(), records.cache_folder() / 'a.npz')
    return {'net': dense(), 'record': record(weights='a.npz')}


def cifar10_files(folder):
    for name in (*cifar10.CIFAR10_TRAIN, *cifar10.CIFAR10_TEST):
        (folder / name).write_bytes(bytes(2 * 3073))
    return {'batch_size': 2, 'root': folder, 'verify': False}


def run(**changes):
    return {'name': 'a', 'function': lambda config, seed, variant: history(),
            'config': {'dataset': 'Fashion-MNIST'}, **changes}


def training_run(folder):
    return {**trained(), 'train_iter': batches(), 'test_iter': batches(), 'batch_size': 4,
            'num_epochs': 1, 'precision': 'float32', 'seed': 0}


def study(folder):
    import optuna

    return {'study': optuna.create_study()}


GRID = [*whole('num_rows', 1), *whole('num_cols', 1)]
SHOWN = np.zeros((2, 4, 4))
NAME = 'a string that can be the name of a file'
PREDICTION = Case(
    lambda folder: {'net': dense(), 'data_iter': batches(), 'ctx': CPU, 'precision': 'float32'},
    [*PLACES, BARE, *LISTS, *data_rows('data_iter'), *PRECISIONS,
     Row('data_iter', [], 'at least one', 'no batch')])
