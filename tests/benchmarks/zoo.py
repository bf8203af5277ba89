"""Time NiN and the networks of Gluon's model zoo on images: python -m tests.benchmarks.zoo.

Each network classifies random images on the CPU, in float32, in a process of its own. Its weights
are random, which cost as much as trained ones; nothing is downloaded. Needs a machine with nothing
else to do and 4 GB of memory. Prints a table and writes chapters/results/inception_zoo.json.
"""
import argparse
import functools
import statistics
import time

from d2l_ext.hardware.processor import processor
from d2l_ext.studies.records import results_folder

from .turns import fresh, take_turns, write_record

BATCH_SIZE = 32
SECONDS, BATCHES = 5, 3  # a turn lasts at least so long, and so many batches
NAMES = [
    'alexnet', 'densenet121', 'densenet161', 'densenet169', 'densenet201', 'inceptionv3',
    'mobilenet0.25', 'mobilenet0.5', 'mobilenet0.75', 'mobilenet1.0', 'mobilenetv2_0.25',
    'mobilenetv2_0.5', 'mobilenetv2_0.75', 'mobilenetv2_1.0', 'nin', 'resnet18_v1', 'resnet34_v1',
    'resnet50_v1', 'resnet101_v1', 'resnet152_v1', 'resnet18_v2', 'resnet34_v2', 'resnet50_v2',
    'resnet101_v2', 'resnet152_v2', 'squeezenet1.0', 'squeezenet1.1', 'vgg11', 'vgg13', 'vgg16',
    'vgg19', 'vgg11_bn', 'vgg13_bn', 'vgg16_bn', 'vgg19_bn']


def image_size(name):
    """Return height and width of the images that the network was designed for."""
    return 299 if name == 'inceptionv3' else 224


def measure(name):
    """Return speed and peak memory of this process, which should do nothing else."""
    from d2l_ext.devices import mx
    from d2l_ext.graphs import compiled
    from d2l_ext.studies.nets import nin_imagenet

    net = nin_imagenet() if name == 'nin' else mx.gluon.model_zoo.vision.get_model(name)
    size = image_size(name)
    # He's weights keep the numbers in range; very small ones would be slow to compute with.
    net.initialize(mx.init.MSRAPrelu(slope=0), ctx=mx.cpu())
    forward = compiled(net)
    X = mx.nd.random.uniform(shape=(BATCH_SIZE, 3, size, size), ctx=mx.cpu())
    forward(X).wait_to_read()  # the first one also plans and allocates
    batches, start = 0, time.perf_counter()
    while batches < BATCHES or time.perf_counter() - start < SECONDS:
        forward(X).wait_to_read()
        batches += 1
    seconds = time.perf_counter() - start
    return {'images_per_second': batches * BATCH_SIZE / seconds, 'batches': batches}


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.zoo', description=__doc__)
    parser.add_argument('--repeats', type=int, default=3,
                        help='how often each is timed (default: 3)')
    parser.add_argument('--only', nargs='+', choices=NAMES, metavar='NAME',
                        help='time these networks, and write no record')
    args = parser.parse_args()
    turns = take_turns({name: functools.partial(fresh, measure, name=name)
                        for name in args.only or NAMES}, args.repeats, 'images_per_second',
                       'images/s')
    rows = {}
    for name, results in turns.items():
        speeds = [result['images_per_second'] for result in results]
        rows[name] = {'size': image_size(name), 'images_per_second': statistics.median(speeds),
                      'images_per_second_min': min(speeds), 'images_per_second_max': max(speeds),
                      'peak_gib': statistics.median(result['peak_gib'] for result in results),
                      'turns': results}
    print(f"\n{processor()}, batch size {BATCH_SIZE}, float32")
    for name, row in rows.items():
        print(f"{name:17} {row['images_per_second']:7.1f} images/s "
              f"({row['images_per_second_min']:.1f} to {row['images_per_second_max']:.1f}), "
              f"{row['peak_gib']:5.2f} GiB")
    if args.only:
        return
    write_record(results_folder(), 'inception_zoo', 'python -m tests.benchmarks.zoo', 'float32',
                 batch_size=BATCH_SIZE, repeats=args.repeats, rows=rows)


if __name__ == '__main__':
    main()
