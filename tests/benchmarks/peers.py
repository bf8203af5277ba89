"""The training loops that are timed, each run in a process of its own: peers.py NAME BATCHES.

Prints one JSON object. Every loop trains the network that section 7.3 prints, on Fashion-MNIST
resized to 224x224 with batch size 128, and is timed from its second request for a batch to the end
of its last step, so that start-up is left out but its own input pipeline is not.
"""
import json
import os
import sys
import time

BATCH_SIZE, RESIZE, LR = 128, 224, 0.1


class Timed:
    """Hands out the first few batches of `data_iter` and notes how long they took to train."""

    def __init__(self, data_iter, num_batches, wait):
        self.data_iter, self.num_batches, self.wait = data_iter, num_batches, wait

    def __len__(self):
        return len(self.data_iter)

    def __iter__(self):
        for i, batch in enumerate(self.data_iter):
            if i == 1:
                self.wait()
                start = time.perf_counter()
            if i == self.num_batches + 1:
                self.wait()
                self.seconds = time.perf_counter() - start
                return
            yield batch

    @property
    def images_per_second(self):
        return self.num_batches * BATCH_SIZE / self.seconds


def section_net(nn):
    """Return the network as the section writes it, plain sequences of plain sequences."""
    def nin_block(num_channels, kernel_size, strides, padding):
        block = nn.Sequential()
        block.add(nn.Conv2D(num_channels, kernel_size, strides, padding, activation='relu'),
                  nn.Conv2D(num_channels, kernel_size=1, activation='relu'),
                  nn.Conv2D(num_channels, kernel_size=1, activation='relu'))
        return block

    net = nn.Sequential()
    net.add(nin_block(96, 11, 4, 0), nn.MaxPool2D(3, 2), nin_block(256, 5, 1, 2),
            nn.MaxPool2D(3, 2), nin_block(384, 3, 1, 1), nn.MaxPool2D(3, 2), nn.Dropout(0.5),
            nin_block(10, 3, 1, 1), nn.GlobalAvgPool2D(), nn.Flatten())
    return net


def d2l_train_ch6(num_batches):
    """d2l's own loop with d2l's own loader, as the package ships them."""
    import d2l.mxnet as d2l
    from mxnet import cpu, nd, npx
    from mxnet.gluon import nn, utils

    npx.set_np()
    # Its loader accepts MXNet's own copy of the archives only; the published ones hold the same.
    utils.check_sha1 = lambda path, sha1: True
    train_iter, test_iter = d2l.load_data_fashion_mnist(BATCH_SIZE, resize=RESIZE)
    timed = Timed(train_iter, num_batches, nd.waitall)
    test_batch = [next(iter(test_iter))]
    d2l.train_ch6(section_net(nn), timed, test_batch, 1, LR, cpu())
    # MXNet, left alone, starts a thread for every two processors.
    threads = int(os.environ.get('OMP_NUM_THREADS') or max(1, os.cpu_count() // 2))
    return {'images_per_second': timed.images_per_second, 'threads': threads,
            'precision': 'float32'}


def d2l_ext_train_ch5(num_batches, precision='auto'):
    """The section's own code under d2l_ext."""
    import d2l_ext as d2l
    from d2l_ext.devices import mx, resolve_precision
    from d2l_ext.threads import num_threads

    gluon, nd = mx.gluon, mx.nd
    net, ctx = section_net(gluon.nn), mx.cpu()
    net.initialize(ctx=ctx, init=mx.init.Xavier())
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': LR})
    train_iter, test_iter = d2l.load_data_fashion_mnist(BATCH_SIZE, resize=RESIZE, ctx=ctx)
    timed = Timed(train_iter, num_batches, nd.waitall)
    d2l.train_ch5(net, timed, test_iter.take(BATCH_SIZE), BATCH_SIZE, trainer, ctx, 1,
                  precision=precision)
    preparing = Timed(train_iter, num_batches, nd.waitall)
    for X, _ in preparing:
        X.wait_to_read()
    return {'images_per_second': timed.images_per_second, 'threads': num_threads(),
            'precision': resolve_precision(precision, ctx),
            'input_share': preparing.seconds / timed.seconds}


def d2l_train_ch6_on_all_cores(num_batches):
    """The same with the number of threads set, which must be before MXNet is imported."""
    from d2l_ext.threads import physical_cores

    os.environ['OMP_NUM_THREADS'] = str(physical_cores())
    return d2l_train_ch6(num_batches)


PEERS = {
    'd2l.train_ch6': d2l_train_ch6,
    'd2l.train_ch6, all cores': d2l_train_ch6_on_all_cores,
    'd2l_ext.train_ch5, float32': lambda n: d2l_ext_train_ch5(n, 'float32'),
    'd2l_ext.train_ch5': d2l_ext_train_ch5,
}


if __name__ == '__main__':
    result = PEERS[sys.argv[1]](int(sys.argv[2]))
    # Not getrusage(), whose peak begins with that of the process that started this one.
    with open('/proc/self/status') as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith('VmHWM'))  # in KiB
    print('\n' + json.dumps({**result, 'peak_gib': peak / 2**20}))
