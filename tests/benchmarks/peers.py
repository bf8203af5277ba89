"""The training loops that are timed, each in a process of its own.

All train the network that section 7.3 prints, by plain SGD, and are timed from their second request
for a batch to the end of their last step: start-up is left out, but a loop's own input pipeline is
not. Nothing is imported until a loop runs, because each settles the number of threads by itself.
"""
import os
import time

LR = 0.1


class Timed:
    """Hands out the first few batches of `data_iter` and notes how long they took to train.

    `data_iter` has two more batches than `num_batches`: one to warm up and one that ends the time.
    `wait` returns when all that was asked for has been computed.
    """

    def __init__(self, data_iter, num_batches, batch_size, wait=lambda: None):
        self.data_iter, self.num_batches, self.wait = data_iter, num_batches, wait
        self.num_images = num_batches * batch_size

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
    def image_shape(self):
        return getattr(self.data_iter, 'image_shape', None)

    @property
    def images_per_second(self):
        return self.num_images / self.seconds


def section_net(nn, batch_norm=False, num_one_by_one=2):
    """Return the network as the section writes it, plain sequences of plain sequences.

    With `batch_norm`, a batch normalization stands between each convolution and its ReLU.
    """
    def convolution(num_channels, *window):
        if not batch_norm:
            return [nn.Conv2D(num_channels, *window, activation='relu')]
        return [nn.Conv2D(num_channels, *window), nn.BatchNorm(), nn.Activation('relu')]

    def nin_block(num_channels, kernel_size, strides, padding):
        block = nn.Sequential()
        block.add(*convolution(num_channels, kernel_size, strides, padding))
        for _ in range(num_one_by_one):
            block.add(*convolution(num_channels, 1))
        return block

    net = nn.Sequential()
    net.add(nin_block(96, 11, 4, 0), nn.MaxPool2D(3, 2), nin_block(256, 5, 1, 2),
            nn.MaxPool2D(3, 2), nin_block(384, 3, 1, 1), nn.MaxPool2D(3, 2), nn.Dropout(0.5),
            nin_block(10, 3, 1, 1), nn.GlobalAvgPool2D(), nn.Flatten())
    return net


def d2l_train_ch6(num_batches, batch_size, resize):
    """d2l's own loop with d2l's own loader, as the package ships them."""
    import d2l.mxnet as d2l
    from mxnet import cpu, nd, npx
    from mxnet.gluon import nn, utils

    npx.set_np()
    # Its loader accepts MXNet's own copy of the archives only; the published ones hold the same.
    utils.check_sha1 = lambda path, sha1: True
    train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size, resize=resize)
    timed = Timed(train_iter, num_batches, batch_size, nd.waitall)
    test_batch = [next(iter(test_iter))]
    d2l.train_ch6(section_net(nn), timed, test_batch, 1, LR, cpu())
    # MXNet, left alone, starts a thread for every two processors.
    threads = int(os.environ.get('OMP_NUM_THREADS') or max(1, os.cpu_count() // 2))
    return {'images_per_second': timed.images_per_second, 'threads': threads,
            'precision': 'float32'}


def d2l_train_ch6_on_all_cores(num_batches, batch_size, resize):
    """The same with the number of threads set, which must be before MXNet is imported."""
    from d2l_ext.hardware.threads import physical_cores

    os.environ['OMP_NUM_THREADS'] = str(physical_cores())
    return d2l_train_ch6(num_batches, batch_size, resize)


class InMemory(list):
    """A list of batches that tells the shape of its images, as those of d2l_ext do."""

    @property
    def image_shape(self):
        return self[0][0].shape[1:]


def random_batches(num_batches, batch_size, resize):
    """Return one batch of noise as often as `Timed` needs it: a loop without an input pipeline."""
    from d2l_ext.devices import mx

    X = mx.nd.random.uniform(shape=(batch_size, 1, resize, resize), ctx=mx.cpu())
    y = mx.nd.random.randint(0, 10, shape=(batch_size,), ctx=mx.cpu())
    return InMemory([(X, y)] * (num_batches + 2))


def prepare(net):
    """Return `net`, initialized as the section does, and its trainer."""
    from d2l_ext.devices import mx

    net.initialize(ctx=mx.cpu(), init=mx.init.Xavier())
    return net, mx.gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': LR})


def gluon_eager(num_batches, batch_size, resize):
    """Gluon's own loop, layer by layer in float32 on all cores, without an input pipeline."""
    from d2l_ext.devices import mx
    from d2l_ext.hardware.threads import num_threads

    net, trainer = prepare(section_net(mx.gluon.nn))
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    timed = Timed(random_batches(num_batches, batch_size, resize), num_batches, batch_size,
                  mx.nd.waitall)
    for X, y in timed:
        with mx.autograd.record():
            l = loss(net(X), y)
        l.backward()
        trainer.step(batch_size)
        l.sum().asscalar()  # as the book's loops do, to print the mean
    return {'images_per_second': timed.images_per_second, 'threads': num_threads(),
            'precision': 'float32'}


def d2l_ext_train_ch5(num_batches, batch_size, resize, precision='auto', in_memory=False,
                      cifar10=False, **changes):
    """The section's own code under d2l_ext.

    With `in_memory` there is no input pipeline. `changes` are those that `section_net` makes;
    `cifar10` takes the paper's network for small images instead.
    """
    import d2l_ext as d2l
    from d2l_ext import nin_cifar10
    from d2l_ext.devices import mx, resolve_precision
    from d2l_ext.hardware.threads import num_threads

    ctx, wait = mx.cpu(), mx.nd.waitall
    net, trainer = prepare(nin_cifar10() if cifar10 else section_net(mx.gluon.nn, **changes))
    if in_memory:
        train_iter = random_batches(num_batches, batch_size, resize)
        test_iter = InMemory([(train_iter[0][0][:1], train_iter[0][1][:1])])
    else:
        train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size, resize=resize, ctx=ctx)
        test_iter = test_iter.take(batch_size)
    timed = Timed(train_iter, num_batches, batch_size, wait)
    d2l.train_ch5(net, timed, test_iter, batch_size, trainer, ctx, 1, precision=precision)
    result = {'images_per_second': timed.images_per_second, 'threads': num_threads(),
              'precision': resolve_precision(precision, ctx)}
    if not in_memory:
        preparing = Timed(train_iter, num_batches, batch_size, wait)
        for X, _ in preparing:
            X.wait_to_read()
        result['input_share'] = preparing.seconds / timed.seconds
    return result
