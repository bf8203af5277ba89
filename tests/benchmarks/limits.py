"""How close training comes to what the processor can do, as a whole and layer by layer.

The limits are measured through MXNet on the same threads: the rate of large matrix products and of
copies. A layer of so many multiply-adds and bytes cannot be faster than the slower of the two lets
it be (Williams, Waterman and Patterson, *Roofline*, 2009). A share above 100% is no mistake: oneDNN
convolves some shapes faster than MXNet multiplies matrices, and caches are faster than copies.
"""
import functools
import json
import math
import pathlib
import statistics
import tempfile
import time

import numpy as np

from . import peers
from .turns import fresh, median, print_table, ratios, spread, take_turns, write_record

NAME = 'benchmarks_limits'
# Rows, outputs and inputs of the products; the fastest counts.
SHAPES = ((2048, 2048, 2048), (4096, 4096, 4096), (8192, 1024, 4096))
COPIED = 2**27  # elements of the array that is copied, far more than any cache holds
CALLS = 5
BATCHES = 10  # of a turn of training: shorter ones vary by several percent
STEPS = 5  # that the profiler watches
# What MXNet runs apart from the layers, by a part of its name.
REARRANGING = 'rearranging images and weights'
OTHERS = {'amp_cast': 'casts', 'update': 'optimizer',
          **dict.fromkeys(('zeros_like', 'Pad', 'Concat', 'slice', 'Reshape', 'transpose', 'space',
                           'eye'), REARRANGING),
          'zeros': 'zeros for max pooling'}


def best_seconds(function):
    """Return the shortest time that a call takes, after one to warm up."""
    function()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def machine_rates(precisions):
    """Return GFLOP/s of large matrix products, by precision, and GB/s of copies."""
    from d2l_ext.devices import mx
    from d2l_ext.hardware.threads import num_threads

    nd, result = mx.nd, {'threads': num_threads()}
    dtypes = {'bfloat16': np.dtype([('bfloat16', np.uint16)])}  # as MXNet has it; NumPy has none
    for precision in precisions:
        result[precision] = 0
        for m, n, k in SHAPES:
            X, W = (nd.amp_cast(nd.random.uniform(-1, 1, shape=(rows, k), ctx=mx.cpu()),
                                dtype=dtypes.get(precision, precision)) for rows in (m, n))
            seconds = best_seconds(lambda X=X, W=W, n=n: nd.FullyConnected(
                X, W, no_bias=True, num_hidden=n).wait_to_read())
            result[precision] = max(result[precision], 2 * m * n * k / seconds / 1e9)
    source = nd.ones(COPIED, ctx=mx.cpu())
    target = nd.zeros_like(source)
    seconds = best_seconds(lambda: source.copyto(target).wait_to_read())
    return {**result, 'copy': 2 * source.size * 4 / seconds / 1e9}  # read once, written once


def operations(net, input_shape, batch_size, precision):
    """Return what each operation of a training step computes and moves, in the order of its run.

    A dictionary each, with `layer` and `kind` as `d2l_ext.summary` names them, the
    operator's name `op`, and FLOPs and bytes, forward and backward. Bytes count each array that
    must be read or written once, as if nothing stayed in a cache. The net is a plain sequence.
    """
    from d2l_ext.graphs import trace
    from d2l_ext.studies.resources import DTYPE_BYTES, summary

    size = DTYPE_BYTES[precision]
    rows = summary(net, input_shape, batch_size, precision).rows
    ops = [node['op'] for node in json.loads(trace(net).tojson())['nodes'] if node['op'] != 'null']
    layers = [(row, op, row.activation_bytes) for row, op in zip(rows, ops)]
    for i in range(len(layers) - 1):
        (relu, op, _), (pool, pooling, written) = layers[i:i + 2]
        if op == 'Activation' and pool.kind == 'MaxPool2D':  # d2l_ext.graphs.cpu pools first
            layers[i:i + 2] = [(pool, pooling, written), (relu, op, written)]
    result, read = [], size * batch_size * math.prod(input_shape)
    for i, (row, op, written) in enumerate(layers):
        weights = size * (row.weights + row.biases)
        # Backward, a layer reads the gradient of its output and writes that of its input. A
        # convolution reads input and weights again and writes gradients of the weights; the first
        # layer needs no gradient of the images. A ReLU looks at its output.
        again = {'Convolution': read * (i > 0) + 2 * weights, 'Activation': written}.get(op, 0)
        result.append({'layer': row.layer, 'kind': row.kind, 'op': op,
                       'forward': {'flops': 2 * row.mult_adds,
                                   'bytes': read + written + weights},
                       'backward': {'flops': 2 * row.mult_adds * (2 if i else 1),
                                    'bytes': read + written + again}})
        read = written
    return result


def attribute(events, ops, steps):
    """Return the seconds of each operation and of everything else, medians over the steps.

    Parameters
    ----------
    events : list of (str, float)
        What the profiler saw in order, name and seconds.
    ops : list of str
        The operators of the net in the order of a forward pass. They are told apart by that order,
        since MXNet's profiler knows the names of operators only. Before them, a convolution may cut
        the images into blocks, see :mod:`d2l_ext.graphs.cpu`; it has no backward pass.
    steps : int
        How many training steps `events` are of.

    Returns
    -------
    forward, backward : list of float
        For each of `ops`; 0 where backward has nothing to do.
    others : dict
        Seconds of all else in a mean step, by kind; of the cut, in the median one.

    Raises
    ------
    ValueError
        If the operators are not those of so many steps.
    """
    backward = {f'_backward_{op}' for op in ops} & {name for name, _ in events}
    expected = [*ops, *(f'_backward_{op}' for op in reversed(ops) if f'_backward_{op}' in backward)]
    known = [(name, seconds) for name, seconds in events if name in {*ops, *backward}]
    cut = ['Convolution'] * min(1, len(known) // steps - len(expected))
    expected = cut + expected
    if [name for name, _ in known] != expected * steps:
        raise ValueError(f'the profiler saw other operators than {steps} times {expected}')
    times = iter([statistics.median(seconds for _, seconds in known[i::len(expected)])
                  for i in range(len(expected))])
    others = {REARRANGING: sum(next(times) for _ in cut)}
    forward = [next(times) for _ in ops]
    for name, seconds in events:
        if name not in expected:
            kind = next((OTHERS[part] for part in OTHERS if part in name), 'loss and the rest')
            others[kind] = others.get(kind, 0) + seconds / steps
    return forward, [next(times) if f'_backward_{op}' in backward else 0
                     for op in reversed(ops)][::-1], others


def profile(batch_size, resize, precision):
    """Return what MXNet's profiler sees of some training steps, as `attribute` wants it."""
    from d2l_ext.devices import mx
    from d2l_ext.graphs import compiled

    net, trainer = peers.prepare(peers.section_net(mx.gluon.nn))
    forward = compiled(net, precision, (1, resize, resize))
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    # By default up to 15 operators run, and are seen, as one.
    forward.hybridize(static_alloc=True, static_shape=True, forward_bulk_size=0,
                      backward_bulk_size=0)
    X, y = peers.random_batches(1, batch_size, resize)[0]

    def steps(number):
        for _ in range(number):
            with mx.autograd.record():
                l = loss(forward(X), y)
            l.backward()
            trainer.step(batch_size)
        mx.nd.waitall()

    steps(2)  # the first ones also plan and allocate
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / 'profile.json'
        mx.profiler.set_config(profile_symbolic=True, profile_imperative=True, profile_api=False,
                               profile_memory=False, filename=str(path))
        mx.profiler.set_state('run')
        steps(STEPS)
        mx.profiler.set_state('stop')
        mx.profiler.dump()
        return {'events': read_events(json.loads(path.read_text())['traceEvents'])}


def read_events(trace):
    """Return (name, seconds) of each operator in a trace, in the order in which they began."""
    begun, events = {}, []
    for event in trace:
        key = event.get('name'), event.get('tid')
        if event.get('cat') != 'operator':
            continue
        if event['ph'] == 'B':
            begun[key] = event['ts']
        elif event['ph'] == 'E' and key in begun:
            start = begun.pop(key)
            events.append((start, key[0], (event['ts'] - start) / 1e6))
    return [event[1:] for event in sorted(events, key=lambda event: event[0])]


def roofline(ops, forward, backward, flops_limit, bytes_limit):
    """Return a row for each operation and direction: time, rates, share of the limit.

    `ops` is what `operations` returns, the times are in seconds, the limits in FLOP/s and bytes/s.
    """
    rows = []
    for direction, times in (('forward', forward), ('backward', backward)):
        for op, seconds in zip(ops, times):
            flops, moved = op[direction]['flops'], op[direction]['bytes']
            if seconds and (flops or op['op'] != 'Flatten'):
                least = max(flops / flops_limit, moved / bytes_limit)
                rows.append({
                    'direction': direction, 'layer': op['layer'], 'kind': op['kind'],
                    'ms': 1e3 * seconds, 'gflops': flops / seconds / 1e9, 'mb': moved / 1e6,
                    'bound': 'products' if flops / flops_limit == least else 'memory',
                    'limit_ms': 1e3 * least, 'share': least / seconds})
    return rows


def convolution_rates(rows):
    """Return GFLOP/s of all convolutions together, forward and backward."""
    return {direction: sum(row['ms'] * row['gflops'] for row in found)
            / sum(row['ms'] for row in found)
            for direction in ('forward', 'backward')
            for found in [[row for row in rows
                           if row['direction'] == direction and row['gflops']]]}


def run(pairs, batch_size, resize, folder, command):
    from d2l_ext import nin
    from d2l_ext.devices import mx, resolve_precision
    from d2l_ext.studies.resources import summary

    precision = resolve_precision('auto', mx.cpu())
    precisions = [*dict.fromkeys(('float32', precision))]
    setting = {'batch_size': batch_size, 'resize': resize}
    cost = summary(nin(), (1, resize, resize))
    flops = 2 * (cost.total_mult_adds + cost.backward_mult_adds)  # of a training step, an image

    def training():
        turn = fresh(peers.d2l_ext_train_ch5, num_batches=BATCHES, in_memory=True, **setting)
        return {**turn, precision: turn['images_per_second'] * flops / 1e9}

    turns = take_turns({'matrix products': functools.partial(fresh, machine_rates,
                                                             precisions=precisions),
                        'training': training}, pairs, precision, f'GFLOP/s in {precision}')
    products = turns['matrix products']
    limits = {key: median(products, key) for key in (*precisions, 'copy')}
    ops = operations(nin(), (1, resize, resize), batch_size, precision)
    events = fresh(profile, precision=precision, **setting)['events']
    forward, backward, others = attribute(events, [op['op'] for op in ops], STEPS)
    rows = roofline(ops, forward, backward, limits[precision] * 1e9, limits['copy'] * 1e9)
    show(write_record(
        folder, NAME, command, **setting, pairs=pairs, precision=precision, limits=limits,
        mult_adds={'forward': cost.total_mult_adds, 'backward': cost.backward_mult_adds},
        training={'gflops': median(turns['training'], precision),
                  **ratios(turns['training'], products, precision)},
        # What a training step could reach if all of it ran as fast as the matrix products.
        limit_images_per_second={key: limits[key] * 1e9 / flops for key in precisions},
        convolutions=convolution_rates(rows), layers=rows,
        others={kind: 1e3 * seconds for kind, seconds in others.items()}, turns=turns))


def show(record):
    """Print the tables of a record."""
    precision, limits = record['precision'], record['limits']
    print_table(
        f"Layers in {precision}, {record['resize']}x{record['resize']}, batch size "
        f"{record['batch_size']}, {record['environment']['processor']}",
        [{'': row['direction'], 'layer': row['layer'], 'kind': row['kind'], 'ms': row['ms'],
          'GFLOP/s': row['gflops'], 'MB': row['mb'], 'bound by': row['bound'],
          'limit ms': row['limit_ms'], 'share': f"{row['share']:.0%}"}
         for row in record['layers']])
    in_layers = sum(row['ms'] for row in record['layers'])
    others = ', '.join(f'{kind} {ms:.1f}' for kind, ms in record['others'].items())
    print(f'ms in a step: layers {in_layers:.1f}, {others}')
    print('matrix products: ' + ', '.join(
        f'{limits[key]:,.0f} GFLOP/s in {key}' for key in record['limit_images_per_second'])
        + f"; copies: {limits['copy']:.1f} GB/s")
    print(f"convolutions: {record['convolutions']['forward']:,.0f} GFLOP/s forward, "
          f"{record['convolutions']['backward']:,.0f} backward")
    print(f"training: {record['training']['gflops']:,.0f} GFLOP/s, share of the limit "
          f"{spread(record['training'])}; at the limit it would train "
          f"{record['limit_images_per_second'][precision]:.0f} images/s")
