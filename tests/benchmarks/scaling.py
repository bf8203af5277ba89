"""How speed and memory grow with image size, batch size, threads and 1x1 layers."""
import functools
import json
import statistics

from . import peers
from .turns import fresh, median, print_table, take_turns, write_record

NAME = 'benchmarks_scaling'
TURNS = 2
# A turn trains so many images of 224x224, or as many more as they are cheaper.
IMAGES = 256
# What varies, the argument behind it, and the values that are tried if the setting allows them. The
# section's network needs images of 67 pixels; for smaller ones the paper's network for CIFAR-10
# stands in.
AXES = {
    'image size': ('resize', (67, 96, 160, 224)),
    "image size, the paper's CIFAR-10 network": ('resize', (28, 48, 96)),
    'batch size': ('batch_size', (1, 8, 32, 128, 256)),
    'threads': ('threads', (1, 2, 4, 8, 16, 32, 64, 128)),
    '1x1 layers in a block': ('num_one_by_one', (0, 1, 2, 4)),
}


def points(batch_size, resize, cores):
    """Return (what varies, its value, all arguments of `train`) for each point of the curves."""
    setting = {'batch_size': batch_size, 'resize': resize, 'threads': cores}
    limits = {'resize': resize, 'batch_size': 2 * batch_size, 'threads': cores}
    found = []
    for axis, (key, values) in AXES.items():
        values = {value for value in values if value <= limits.get(key, value)}
        if key == 'threads':
            values.add(cores)
        for value in sorted(values):
            arguments = {'num_one_by_one': 2, **setting, key: value}
            if ',' in axis:
                arguments = {'cifar10': True, **setting, key: value}
            found.append((axis, value, arguments))
    return found


def cost(batch_size, resize, threads, cifar10=False, num_one_by_one=2):
    """Return the multiply-adds of a training step for one image, and the memory of a step in GiB.

    The latter is what `d2l_ext.summary` counts, in float32.
    """
    from d2l_ext import nin, nin_cifar10
    from d2l_ext.studies.resources import summary

    net = nin_cifar10() if cifar10 else nin(num_one_by_one=num_one_by_one)
    result = summary(net, (1, resize, resize), batch_size)
    return {'mult_adds': (result.total_mult_adds + result.backward_mult_adds) // batch_size,
            'counted_gib': sum(result.training_memory().values()) / 2**30}


def train(threads, num_batches, **arguments):
    """Train in a fresh process with so many threads."""
    return fresh(peers.d2l_ext_train_ch5, {'OMP_NUM_THREADS': str(threads)}, in_memory=True,
                 num_batches=num_batches, **arguments)


def run(pairs, batch_size, resize, folder, command):
    from d2l_ext.hardware.threads import physical_cores

    cores, pairs = physical_cores(), min(pairs, TURNS)
    full = cost(1, 224, cores)['mult_adds']
    measured = points(batch_size, resize, cores)
    functions = {}  # the default setting is a point of several curves, but measured once
    for _, _, arguments in measured:
        images = IMAGES * full / cost(**arguments)['mult_adds'] * arguments['threads'] / cores
        num_batches = min(max(2, round(images / arguments['batch_size'])), 200)
        functions[json.dumps(arguments)] = functools.partial(train, num_batches=num_batches,
                                                             **arguments)
    turns = take_turns(functions, pairs, 'images_per_second', 'images/s')
    curves = {axis: [] for axis in AXES}
    for axis, value, arguments in measured:
        results, step = turns[json.dumps(arguments)], cost(**arguments)
        speed = median(results, 'images_per_second')
        curves[axis].append({
            'value': value, 'images_per_second': speed, **step,
            'mult_adds_per_second': speed * step['mult_adds'],
            'peak_gib': statistics.median(turn['peak_gib'] for turn in results), 'turns': results})
    show(write_record(folder, NAME, command, batch_size=batch_size, resize=resize, pairs=pairs,
                      curves=curves))


def show(record):
    """Print the tables of a record."""
    for axis, rows in record['curves'].items():
        print_table(f'Training against {axis}',
                    [{axis.split(',')[0]: row['value'], 'images/s': row['images_per_second'],
                      'million multiply-adds an image': row['mult_adds'] / 1e6,
                      'billion a second': row['mult_adds_per_second'] / 1e9,
                      'peak GiB': row['peak_gib'], 'counted GiB': row['counted_gib']}
                     for row in rows])


def draw(record):
    """Draw the curves of a record, the speed above the memory, and return the figure.

    Above, the dotted lines are what the speed would be if every multiply-add (of a thread) took as
    long as at the last point of the curve.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from d2l_ext.studies.plotting import COLORS

    names = list(dict.fromkeys(axis.partition(', ')[0] for axis in record['curves']))
    figure, axes = plt.subplots(2, len(names), figsize=(11, 4.5), sharex='col',
                                layout='constrained')
    for axis, rows in record['curves'].items():
        name, _, net = axis.partition(', ')
        speed, memory = axes[:, names.index(name)]
        values = [row['value'] for row in rows]
        work = [row['mult_adds'] / (row['value'] if name == 'threads' else 1) for row in rows]
        style = {'color': COLORS[bool(net)], 'marker': '^' if net else 'o', 'markersize': 4}
        speed.plot(values, [row['images_per_second'] for row in rows], **style,
                   label=net or "the section's network")
        speed.plot(values, [rows[-1]['images_per_second'] * work[-1] / each for each in work],
                   ':', color=style['color'])
        memory.plot(values, [row['peak_gib'] for row in rows], **style)
        memory.set_xlabel(name)
        memory.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
    axes[0, 0].set_yscale('log')  # the work grows with the square of the size
    axes[0, 0].set_ylim(20, None)
    axes[0, 0].legend(loc='upper right', fontsize='x-small')
    axes[0, 0].set_ylabel('training images/s')
    axes[1, 0].set_ylabel('peak memory, GiB')
    return figure
