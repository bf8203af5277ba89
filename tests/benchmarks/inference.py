"""Inference: latency of one image, throughput of a batch, and the accuracy of each fast path.

Variants of MXNet against PyTorch, OpenVINO and ONNX Runtime, all with the committed weights of the
section's recorded run. The peers come, in an environment of its own, by
``python -m pip install --no-deps -r .requirements/onnx.txt`` and then
``python -m pip install torch openvino nncf``.
"""
import functools
import importlib.metadata
import pathlib
import statistics
import tempfile
import time

from . import peers_inference, pytorch
from .turns import fresh, median, print_table, ratios, speed_row, spread, take_turns, write_record

NAME = 'benchmarks_inference'
CALIBRATION_IMAGES = 512
PYTORCH = 'PyTorch, '  # before the name of a setting
WEIGHTS = pathlib.Path(__file__).parents[2] / 'chapters/results/07_03_nin_book-seed0.npz'
SECONDS = 1  # for which each of latency and throughput is measured in a turn


def rates(classify, X, seconds=SECONDS, few=0):
    """Return images/s of the batch `X` and the milliseconds that its first image takes alone.

    And those that its first `few` images take together. All are medians over single calls;
    `classify` returns when it has the logits.
    """
    def median_seconds(images):
        for _ in range(2):  # the first also plans, allocates and perhaps compiles
            classify(images)
        times = []
        while len(times) < 3 or sum(times) < seconds:
            start = time.perf_counter()
            classify(images)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return {'images_per_second': len(X) / median_seconds(X),
            'latency_ms': 1e3 * median_seconds(X[:1]),
            **({'few_ms': 1e3 * median_seconds(X[:few])} if few else {})}


def trained_net():
    """Return the section's network with the committed weights."""
    import d2l_ext
    from d2l_ext.devices import mx

    net = d2l_ext.nin()
    net.initialize(ctx=mx.cpu())
    d2l_ext.load_weights(net, d2l_ext.load_record(
        d2l_ext.results_folder() / '07_03_nin_book.json'))
    return net


def compiled(net, precision, resize):
    """As `predict` computes large batches."""
    from d2l_ext import graphs

    return graphs.compiled(net, precision, (1, resize, resize))


def fused(net, precision):
    """As `predict` computes small batches."""
    from d2l_ext.graphs import fusing

    return fusing.fused(net, precision)


def quantize(net, images, batch_size, path):
    """Write `net` in int8 to `path`-symbol.json and `path`-0000.params.

    MXNet's own quantization: weights offline, and for the outputs of each layer the range that
    they have on `images`, a NumPy array. In `net`, convolution, ReLU and max pooling all pass on
    bytes, the first convolution included, since pixels are never negative; what comes after the
    last ReLU is float32. Changes `net`.
    """
    from d2l_ext.devices import mx

    quantized = mx.contrib.quantization.quantize_net_v2(
        net, quantized_dtype='auto', quantize_mode='smart', calib_mode='naive', ctx=mx.cpu(),
        calib_data=mx.io.NDArrayIter(images, batch_size=batch_size))
    quantized.hybridize(static_alloc=True, static_shape=True)
    quantized(mx.nd.array(images[:1]))  # export asks for a pass
    quantized.export(str(path))


def load_quantized(path):
    """Return what `quantize` wrote, compiled."""
    from d2l_ext.devices import mx

    net = mx.gluon.SymbolBlock.imports(f'{path}-symbol.json', ['data'], f'{path}-0000.params')
    net.hybridize(static_alloc=True, static_shape=True)
    return net


VARIANTS = {
    'float32': lambda path, resize: compiled(trained_net(), 'float32', resize),
    'float32, fused': lambda path, resize: fused(trained_net(), 'float32'),
    'bfloat16': lambda path, resize: compiled(trained_net(), 'bfloat16', resize),
    'bfloat16, fused': lambda path, resize: fused(trained_net(), 'bfloat16'),
    'int8': lambda path, resize: load_quantized(path),
}


def prepare(batch_size, resize, path, peers):
    """Write what the variants read to files that begin with `path`: int8, and all of `peers`.

    All are calibrated with the same first training images.
    """
    import numpy as np

    import d2l_ext
    from d2l_ext.devices import mx

    train_iter, _ = d2l_ext.load_data_fashion_mnist(batch_size, resize, ctx=mx.cpu())
    train_iter = train_iter.take(CALIBRATION_IMAGES)
    images = np.concatenate([X.asnumpy() for X, _ in train_iter])
    start = time.perf_counter()
    quantize(trained_net(), images, batch_size, path)
    seconds = time.perf_counter() - start
    if peers:
        peers_inference.export(trained_net(), path, resize)
    if 'OpenVINO, int8' in peers:
        peers_inference.quantize_openvino(images, path)
    if 'ONNX Runtime, int8' in peers:
        peers_inference.quantize_onnxruntime(images, path)
    return {'images': len(images), 'seconds': seconds}


def classifier(variant, path, resize):
    """Return a variant as a function from float32 images, a NumPy array, to logits."""
    if variant in peers_inference.VARIANTS:
        return peers_inference.classifier(variant, path)
    if variant.startswith(PYTORCH):
        setting = pytorch.SETTINGS[variant.removeprefix(PYTORCH)]
        return pytorch.classifier(WEIGHTS, **setting)
    from d2l_ext.devices import mx

    net = VARIANTS[variant](path, resize)
    return lambda X: net(X if isinstance(X, mx.nd.NDArray) else mx.nd.array(X)).asnumpy()


def speed(variant, batch_size, resize, path=None):
    """Return `rates` of a variant; what `prepare` wrote is at `path`."""
    import numpy as np

    from d2l_ext.hardware.threads import num_threads

    X = np.random.RandomState(0).rand(batch_size, 1, resize, resize).astype('float32')
    classify = classifier(variant, path, resize)
    few = 0
    if variant in VARIANTS:  # the others compute on NumPy's own memory
        from d2l_ext.devices import mx
        from d2l_ext.graphs.fusing import MOST_IMAGES

        X, few = mx.nd.array(X), MOST_IMAGES
    return {**rates(classify, X, few=few), 'threads': num_threads()}


def accuracy(variant, batch_size, resize, path):
    """Return the share of all test images that a variant classifies right."""
    import d2l_ext
    from d2l_ext.devices import mx

    classify = classifier(variant, path, resize)
    _, test_iter = d2l_ext.load_data_fashion_mnist(batch_size, resize, ctx=mx.cpu())
    right = sum(int((classify(X.asnumpy()).argmax(axis=1) == y.asnumpy()).sum())
                for X, y in test_iter)
    return {'accuracy': right / len(test_iter.images), 'images': len(test_iter.images)}


def pytorch_speed(batch_size, resize, **setting):
    """Return `speed` of PyTorch with one of its settings."""
    name = next(name for name in pytorch.SETTINGS if pytorch.SETTINGS[name] == setting)
    return speed(PYTORCH + name, batch_size, resize)


def try_pytorch(setting):
    """Return what is recorded of PyTorch's settings, or None where it is not installed."""
    if not pytorch.installed():
        return None
    tried = pytorch.try_settings(pytorch_speed, ['images_per_second', 'latency_ms'], **setting)
    return {'version': importlib.metadata.version('torch'), 'tried': tried,
            'best': pytorch.best(tried, 'images_per_second'),
            'best_latency': pytorch.best(tried, 'latency_ms', min)}


def make_rows(turns, base, latency_base):
    """Return the rows of the record; a latency ratio above 1 is a shorter latency."""
    return {name: {**speed_row(results, turns[base]), 'latency_ms': median(results, 'latency_ms'),
                   **ratios(turns[latency_base], results, 'latency_ms', 'latency_'),
                   **({'few_ms': median(results, 'few_ms')} if 'few_ms' in results[0] else {})}
            for name, results in turns.items()}


def run(pairs, batch_size, resize, folder, command):
    from d2l_ext.devices import has_bfloat16

    setting = {'batch_size': batch_size, 'resize': resize}
    torch = try_pytorch(setting)
    variants = [name for name in (*VARIANTS, *filter(peers_inference.installed,
                                                     peers_inference.VARIANTS))
                if has_bfloat16() or 'bfloat16' not in name]
    peers = [name for name in variants if name in peers_inference.VARIANTS]
    base = latency_base = 'float32'
    if torch and torch['best']:
        base, latency_base = (PYTORCH + torch[key] for key in ('best', 'best_latency'))
        variants += dict.fromkeys((base, latency_base))
    with tempfile.TemporaryDirectory() as temporary:
        path = str(pathlib.Path(temporary) / 'nin')
        calibration = fresh(prepare, path=path, peers=peers, **setting)
        turns = take_turns({name: functools.partial(fresh, speed, variant=name, path=path,
                                                    **setting) for name in variants},
                           pairs, 'images_per_second', 'images/s')
        rows = make_rows(turns, base, latency_base)
        for name in variants:
            result = fresh(accuracy, variant=name, path=path, **setting)
            rows[name]['accuracy'] = result['accuracy']
            print(f"{name:44} {result['accuracy']:.4f} of {result['images']:,} test images right",
                  flush=True)
    show(write_record(folder, NAME, command, **setting, pairs=pairs, pytorch=torch,
                      peers=peers_inference.versions(peers), base=base, latency_base=latency_base,
                      calibration=calibration, test_images=result['images'], rows=rows))


def show(record):
    """Print the table of a record."""
    print_table(
        f"Inference, {record['resize']}x{record['resize']}, {record['environment']['processor']}; "
        f"ratios to {record['base']} (batch {record['batch_size']}) and {record['latency_base']} "
        '(batch 1)',
        [{'inference': name, f"images/s, batch {record['batch_size']}": row['images_per_second'],
          'times': spread(row), 'ms, batch 1': row['latency_ms'],
          'times as fast': spread(row, 'latency_'), 'peak GiB': row['peak_gib'],
          'accuracy': f"{row['accuracy']:.4f}"}
         for name, row in record['rows'].items()])
    for name, found in (('PyTorch', record['pytorch']),
                        ('OpenVINO', 'openvino' in record['peers']),
                        ('ONNX Runtime', 'onnxruntime' in record['peers'])):
        if not found:
            print(f'{name} is not installed: left out')
