"""The section's 2019 code runs with nothing changed but the import of d2l."""
import subprocess
import sys

import pytest

import d2l_ext

# The calls of the section, in our own order; only the amount of data differs.
BOOK_CODE = '''
import d2l_ext as d2l
from mxnet import gluon, init, nd
from mxnet.gluon import nn


def nin_block(num_channels, kernel_size, strides, padding):
    blk = nn.Sequential()
    blk.add(nn.Conv2D(num_channels, kernel_size, strides, padding, activation='relu'),
            nn.Conv2D(num_channels, kernel_size=1, activation='relu'),
            nn.Conv2D(num_channels, kernel_size=1, activation='relu'))
    return blk


net = nn.Sequential()
net.add(nin_block(96, kernel_size=11, strides=4, padding=0),
        nn.MaxPool2D(pool_size=3, strides=2),
        nin_block(256, kernel_size=5, strides=1, padding=2),
        nn.MaxPool2D(pool_size=3, strides=2),
        nin_block(384, kernel_size=3, strides=1, padding=1),
        nn.MaxPool2D(pool_size=3, strides=2), nn.Dropout(0.5),
        nin_block(10, kernel_size=3, strides=1, padding=1),
        nn.GlobalAvgPool2D(),
        nn.Flatten())

X = nd.random.uniform(shape=(1, 1, 224, 224))
net.initialize()
for layer in net:
    X = layer(X)
    print(layer.name, 'output shape:\\t', X.shape)

lr, num_epochs, batch_size, ctx = 0.1, 1, 128, d2l.try_gpu()
net.initialize(force_reinit=True, ctx=ctx, init=init.Xavier())
trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': lr})
train_iter, test_iter = d2l.LOADER(batch_size, resize=67)
d2l.train_ch5(net, train_iter, test_iter, batch_size, trainer, ctx, num_epochs)
'''


def test_section_code_runs():
    code = BOOK_CODE.replace('LOADER', 'load_data_digits').replace(  # one start in ten is dead
        'lr, num_epochs',
        'import mxnet, numpy; mxnet.random.seed(0); numpy.random.seed(0)\nlr, num_epochs')
    result = subprocess.run([sys.executable, '-W', 'default', '-c', code], capture_output=True,
                            text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith('output shape:\t (1, 96, 54, 54)')
    assert lines[9].endswith('output shape:\t (1, 10)')
    assert lines[10] == 'training on cpu(0)' or lines[10] == 'training on gpu(0)'
    assert lines[11].startswith('epoch 1, loss 2.')
    assert result.stderr == ''


def test_names_of_d2l_are_reachable():
    import d2l.mxnet

    assert d2l_ext.Timer is d2l.mxnet.Timer
    assert d2l_ext.try_gpu is not d2l.mxnet.try_gpu
    with pytest.raises(AttributeError, match="neither d2l_ext nor d2l.mxnet has 'train_ch55'"):
        d2l_ext.train_ch55  # noqa: B018


def test_d2l_and_matplotlib_are_imported_only_when_used():
    code = "import sys, d2l_ext; print({'d2l', 'matplotlib', 'IPython'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == 'set()\n'


def test_all_public_names_exist():
    assert all(getattr(d2l_ext, name) for name in d2l_ext.__all__)
