"""The benchmarks: what they make of what they measure, and that each part still runs."""
import contextlib
import json
import pathlib
import platform
import subprocess
import sys
import types

import numpy as np
import pytest
from matplotlib import pyplot as plt

import d2l_ext
from benchmarks import __main__ as command
from benchmarks import (
    inference,
    kinds,
    limits,
    memory,
    peers,
    peers_inference,
    picture,
    pytorch,
    scaling,
    startup,
    tables,
    training,
    turns,
)
from d2l_ext.devices import mx
from d2l_ext.graphs import compiled
from d2l_ext.studies.resources import summary
from d2l_ext.training import train_ch5

nn = mx.gluon.nn
TESTS = pathlib.Path(__file__).parent.parent


# --- processes, turns, ratios, records ---

def test_a_fresh_process_has_its_own_threads_and_what_it_is_told(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    result = turns.fresh(turns.environment, {'D2L_EXT_TEST': 'here'}, GIVEN='too')
    assert result['D2L_EXT_TEST'] == 'here' and result['GIVEN'] == 'too'
    assert 'OMP_NUM_THREADS' not in result
    assert 0 < result['peak_gib'] < 1  # of that process, not of this one


def test_a_fresh_process_that_fails_says_why():
    with pytest.raises(turns.Failed, match='(?s)median.*no median for empty data'):
        turns.fresh(turns.median, turns=[], key='seconds')


def test_a_peer_decides_by_itself_when_mxnet_is_imported():
    program = ('import sys, benchmarks.peers, benchmarks.turns, benchmarks.pytorch; '
               'import benchmarks.peers_inference; '
               'print({"mxnet", "d2l_ext", "torch", "openvino"} & set(sys.modules))')
    result = subprocess.run([sys.executable, '-c', program], cwd=TESTS, capture_output=True,
                            text=True, check=True)
    assert result.stdout == 'set()\n'


def test_turns_alternate_and_keep_their_order(capsys):
    called = []

    def competitor(name):
        def function():
            called.append(name)
            return {'speed': float(len(called))}
        return function

    results = turns.take_turns({name: competitor(name) for name in 'ab'}, 3, 'speed', 'm/s')
    assert called == ['a', 'b'] * 3
    assert [turn['speed'] for turn in results['b']] == [2, 4, 6]
    assert '3/3  b' in capsys.readouterr().out


def speeds(*values):
    return [{'images_per_second': value, 'latency_ms': 1000 / value, 'peak_gib': value / 100}
            for value in values]


def test_ratios_are_taken_within_a_turn():
    # The machine was ten times slower in the second turn; both felt it.
    row = turns.speed_row(speeds(20, 3, 44), speeds(10, 1, 20))
    assert (row['ratio'], row['ratio_min'], row['ratio_max']) == (2.2, 2, 3)
    assert row['images_per_second'] == 20 and row['peak_gib'] == 0.44
    assert turns.spread(row) == '2.20 (2.00 to 3.00)'


def test_a_record_says_where_when_and_how(tmp_path):
    record = turns.write_record(tmp_path, 'speed', 'python x', 'float32', rows={'a': 1})
    assert json.loads((tmp_path / 'speed.json').read_text()) == record
    assert record.keys() == {'name', 'rows', 'environment', 'date', 'command'}
    assert record['environment']['precision'] == 'float32'


# --- the networks and loops ---

def test_the_section_s_network_is_that_of_the_package():
    for changes in ({}, {'num_one_by_one': 1}):
        rows, expected = (summary(net, (1, 224, 224)).rows for net in (
            peers.section_net(nn, **changes), d2l_ext.nin(**changes)))
        assert rows == expected


def test_batch_normalization_stands_between_convolution_and_relu():
    plain, normalized = (summary(peers.section_net(nn, batch_norm=batch_norm), (1, 96, 96))
                         for batch_norm in (False, True))
    kinds = [row.kind for row in normalized.rows]
    assert kinds[:6] == ['Conv2D', 'BatchNorm', 'Activation'] * 2
    assert kinds.count('BatchNorm') == kinds.count('Conv2D') == 12
    assert normalized.total_mult_adds == plain.total_mult_adds


def test_time_begins_with_the_second_batch(monkeypatch):
    clock, waits = iter([10., 14.]), []
    monkeypatch.setattr(peers, 'time', types.SimpleNamespace(perf_counter=lambda: next(clock)))
    timed = peers.Timed('abcdef', 3, 8, lambda: waits.append(len(seen)))
    seen = []
    for batch in timed:
        seen.append(batch)
    assert seen == list('abcd') and waits == [1, 4]
    assert timed.images_per_second == 3 * 8 / 4


def test_a_training_loop_runs_in_a_process_of_its_own():
    result = turns.fresh(peers.d2l_ext_train_ch5, in_memory=True, batch_norm=True, num_batches=1,
                         batch_size=2, resize=67, precision='float32')
    assert result['images_per_second'] > 0 and result['precision'] == 'float32'
    assert 'input_share' not in result


def test_pytorch_has_the_same_network():
    torch = pytest.importorskip('torch')
    net = pytorch.section_net(torch)
    assert [tuple(param.shape) for param in net.parameters()] == [
        shape for row in summary(d2l_ext.nin(), (1, 224, 224)).rows if row.kind == 'Conv2D'
        for shape in pytorch_shapes(row)]


def pytorch_shapes(row):
    """Return the shapes of weights and biases of one of the section's convolutions."""
    window = {'0.0': 11, '2.0': 5, '4.0': 3, '7.0': 3}.get(row.layer, 1)
    return (row.biases, row.weights // row.biases // window**2, window, window), (row.biases,)


def test_a_setting_of_pytorch_that_fails_is_left_out(monkeypatch, capsys):
    def fresh(function, precision, layout, mode, **arguments):
        if mode == 'compile':
            raise turns.Failed('train failed:\nTraceback\nno compiler')
        return {'speed': {'float32': 1., 'bfloat16': 2.}[precision] * len(layout), 'other': 0}

    monkeypatch.setattr(pytorch, 'fresh', fresh)
    tried = pytorch.try_settings(pytorch.train, ['speed'])
    assert len(tried) == 8 and tried['float32, contiguous, compile'] == {'failed': 'no compiler'}
    assert pytorch.best(tried, 'speed') == 'bfloat16, channels_last, eager'
    assert pytorch.best(tried, 'speed', min) == 'float32, contiguous, eager'
    assert pytorch.best({'a': {'failed': ''}}, 'speed') is None


# --- limits ---

def test_operations_have_the_multiply_adds_of_resources():
    net = d2l_ext.nin()
    ops = limits.operations(net, (1, 67, 67), 2, 'bfloat16')
    cost = summary(net, (1, 67, 67), 2)
    assert sum(op['forward']['flops'] for op in ops) == 2 * cost.total_mult_adds
    assert sum(op['backward']['flops'] for op in ops) == 2 * cost.backward_mult_adds
    assert [op['op'] for op in ops[:7]] == [
        *['Convolution', 'Activation'] * 2, 'Convolution', 'Pooling', 'Activation']
    pooled = 2 * 2 * 96 * 7 * 7  # bytes for two images
    assert ops[6]['forward']['bytes'] == 2 * pooled


def test_bytes_are_those_of_each_array_once():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(3, 1), nn.Conv2D(5, 1, activation='relu'))
    first, second, relu = limits.operations(net, (2, 4, 4), 1, 'bfloat16')
    images, maps, out = 2 * 2 * 16, 2 * 3 * 16, 2 * 5 * 16
    assert first['forward']['bytes'] == images + maps + 2 * (2 * 3 + 3)
    assert second['backward']['bytes'] == 2 * maps + out + 2 * 2 * (3 * 5 + 5)
    assert relu['backward']['bytes'] == 3 * out  # output, its gradient, that of the input


OPS = ['Convolution', 'Activation', 'Convolution', 'Flatten']


def step(scale):
    return [(name, scale * seconds) for name, seconds in (
        ('amp_cast', .5), ('Convolution', 1), ('Activation', 2), ('Convolution', 3),
        ('Flatten', 4), ('log_softmax', .25), ('_backward_Convolution', 5),
        ('_backward_amp_cast', .5), ('_backward_Activation', 6), ('_backward_Convolution', 7),
        ('multi_sgd_update', 8))]


def test_times_belong_to_the_layers_in_their_order():
    forward, backward, others = limits.attribute(step(1) + step(3) + step(100), OPS, 3)
    assert forward == [3, 6, 9, 12] and backward == [21, 18, 15, 0]  # medians
    mean = 104 / 3
    assert others == pytest.approx({'casts': mean, 'loss and the rest': mean / 4,
                                    'optimizer': 8 * mean, limits.REARRANGING: 0})
    cut = [('Convolution', .25), *step(1)]
    assert limits.attribute(cut * 3, OPS, 3)[0] == [1, 2, 3, 4]
    assert limits.attribute(cut * 3, OPS, 3)[2][limits.REARRANGING] == .25
    with pytest.raises(ValueError, match='3 times'):
        limits.attribute([*cut[:1], *cut] * 3, OPS, 3)
    with pytest.raises(ValueError, match='2 times'):
        limits.attribute(step(1)[:-2], OPS, 2)


def test_events_come_in_the_order_in_which_they_began():
    def event(phase, name, ts, category='operator'):
        return {'ph': phase, 'name': name, 'ts': ts, 'cat': category, 'tid': 1}

    trace = [event('B', 'late', 50), event('E', 'late', 60), event('B', 'early', 10),
             event('E', 'early', 40), event('B', 'other', 0, 'Task'), {'ph': 'M'},
             event('E', 'never begun', 70)]
    assert limits.read_events(trace) == [('early', 3e-5), ('late', 1e-5)]


def test_a_layer_is_bound_by_the_slower_of_products_and_memory():
    ops = [{'layer': '0', 'kind': 'Conv2D', 'op': 'Convolution',
            'forward': {'flops': 1000, 'bytes': 10}, 'backward': {'flops': 10, 'bytes': 1000}}]
    forward, backward = rows = limits.roofline(ops, [4.], [8.], flops_limit=500, bytes_limit=250)
    assert (forward['bound'], forward['limit_ms'], forward['share']) == ('products', 2000, 0.5)
    assert (backward['bound'], backward['limit_ms'], backward['share']) == ('memory', 4000, 0.5)
    assert limits.convolution_rates(rows) == {'forward': pytest.approx(250e-9),
                                              'backward': pytest.approx(1.25e-9)}


@pytest.mark.parametrize('resize', [67, 68])  # which is cut into blocks of 4 pixels
def test_the_profiler_sees_each_layer(resize):
    events = turns.fresh(limits.profile, batch_size=2, resize=resize, precision='float32')['events']
    ops = [op['op'] for op in limits.operations(d2l_ext.nin(), (1, resize, resize), 2, 'float32')]
    forward, backward, others = limits.attribute(events, ops, limits.STEPS)
    assert all(seconds > 0 for seconds in forward)
    assert [op for op, seconds in zip(ops, backward) if not seconds] == ['Flatten']
    assert others['optimizer'] > 0


# --- inference ---

@pytest.fixture(scope='module')
def net():
    net = d2l_ext.nin()
    mx.random.seed(0)
    net.initialize(mx.init.MSRAPrelu(slope=0), ctx=mx.cpu())
    return net


@pytest.mark.filterwarnings('ignore:Cannot decide type')  # MXNet's quantization asks for none
@pytest.mark.skipif(not mx.runtime.Features().is_enabled('MKLDNN'), reason='needs oneDNN')
def test_fused_and_in_int8_the_network_computes_nearly_the_same(net, tmp_path):
    images = np.random.RandomState(0).rand(8, 1, 67, 67).astype('float32')
    X = mx.nd.array(images, ctx=mx.cpu())
    expected = compiled(net, 'float32')(X).asnumpy()
    scale = abs(expected).max()
    assert abs(inference.fused(net, 'float32')(X).asnumpy() - expected).max() < 1e-5 * scale
    inference.quantize(net, images, 4, tmp_path / 'int8')
    in_int8 = inference.load_quantized(tmp_path / 'int8')
    assert 0 < abs(in_int8(X).asnumpy() - expected).max() < 0.1 * scale
    nodes = json.loads((tmp_path / 'int8-symbol.json').read_text())['nodes']
    convolutions = [node['attrs'] for node in nodes if 'conv' in node['op']]
    assert len(convolutions) == 12
    assert all(attrs.get('quantized') == 'true' for attrs in convolutions)


def test_a_shorter_latency_is_a_ratio_above_one():
    rows = inference.make_rows({'a': speeds(10, 10), 'b': speeds(40, 20)}, 'a', 'a')
    assert rows['b']['latency_ratio'] == rows['b']['ratio'] == 3
    assert rows['b']['latency_ms'] == (25 + 50) / 2
    assert rows['a']['latency_ratio_min'] == rows['a']['latency_ratio_max'] == 1


# --- scaling and start-up ---

def test_points_stay_within_the_setting():
    points = scaling.points(batch_size=16, resize=96, cores=6)
    values = {axis: [value for name, value, _ in points if name == axis] for axis in scaling.AXES}
    assert list(values.values()) == [[67, 96], [28, 48, 96], [1, 8, 32], [1, 2, 4, 6], [0, 1, 2, 4]]
    assert all(arguments['resize'] >= 67 or arguments['cifar10'] for _, _, arguments in points)
    same = [arguments for axis, value, arguments in points
            if (axis, value) in (('image size', 96), ('threads', 6), ('1x1 layers in a block', 2))]
    assert len(set(map(json.dumps, same))) == 1  # measured once


def test_multiply_adds_are_counted_for_one_image():
    one, four = (scaling.cost(batch_size, 96, 1) for batch_size in (1, 4))
    assert one['mult_adds'] == four['mult_adds'] > 0
    assert four['counted_gib'] > one['counted_gib']
    assert scaling.cost(1, 96, 1, num_one_by_one=0)['mult_adds'] < one['mult_adds']


def test_longer_imports_are_compared_within_a_turn():
    added = startup.added_seconds({startup.MXNET: [{'seconds': 1.}, {'seconds': 2.}],
                                   startup.NEEDED: [{'seconds': 1.5}, {'seconds': 2.25}]})
    row = added[startup.NEEDED]
    assert (row['added'], row['added_min'], row['added_max']) == (0.375, 0.25, 0.5)


def test_training_is_announced_as_start_up_expects(capsys):
    net = nn.Dense(2)
    net.initialize(ctx=mx.cpu())
    trainer = mx.gluon.Trainer(net.collect_params(), 'sgd')
    batches = [(mx.nd.ones((1, 2)), mx.nd.zeros(1))]
    train_ch5(net, batches, batches, 1, trainer, mx.cpu(), 0)
    assert capsys.readouterr().out.startswith(startup.BEGINS)


def test_an_import_is_timed_and_a_failing_one_reported():
    assert startup.import_seconds('import json')['seconds'] > 0
    with pytest.raises(turns.Failed, match='no_such_module'):
        startup.import_seconds('import no_such_module')


# --- whole parts, with what they would measure made up ---

@pytest.fixture
def made_up(monkeypatch):
    """All parts get figures at once, from no process."""
    def fresh(function, variables=None, **arguments):
        if function is limits.machine_rates and arguments['precisions'] == ['bfloat16']:
            return {'bfloat16': 400., 'threads': 2}
        ops = [op['op'] for op in limits.operations(d2l_ext.nin(), (1, 96, 96), 4, 'float32')]
        one_step = [*ops, *(f'_backward_{op}' for op in reversed(ops))]
        return {'images_per_second': 100., 'latency_ms': 2., 'peak_gib': 1., 'threads': 2,
                'precision': 'float32', 'input_share': 0.01, 'accuracy': 0.8, 'images': 10000,
                'seconds': 1., 'float32': 400., 'bfloat16': 800., 'copy': 50.,
                'events': [(name, 1e-3) for name in one_step] * limits.STEPS}

    for module in (training, inference, limits, memory, scaling, pytorch, kinds):
        monkeypatch.setattr(module, 'fresh', fresh)
    monkeypatch.setenv('D2L_EXT_DEVICE', 'cpu')  # as main does, which nobody else should notice
    monkeypatch.setattr(training, 'mxnet_home', lambda: contextlib.nullcontext('/nowhere'))
    monkeypatch.setattr('d2l_ext.storage.fashion_mnist.find', lambda: None)
    for name in ('import_seconds', 'notebook_seconds', 'seconds_to_first_step'):
        monkeypatch.setattr(startup, name, lambda *_: {'seconds': 1.})


@pytest.mark.parametrize('with_pytorch', [True, False])
def test_all_parts_write_their_records(made_up, tmp_path, monkeypatch, capsys, with_pytorch):
    monkeypatch.setattr(pytorch, 'installed', lambda: with_pytorch)
    monkeypatch.setattr(peers_inference, 'installed', lambda name: with_pytorch)
    monkeypatch.setattr('importlib.metadata.version', lambda name: '2.0')
    command.main(['--pairs', '2', '--batch-size', '4', '--resize', '96', '--folder', str(tmp_path)])
    said = capsys.readouterr().out
    for name in ('PyTorch', 'OpenVINO', 'ONNX Runtime'):
        assert (f'{name} is not installed: left out' in said) is not with_pytorch
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob('*.json')}
    assert records.keys() == {'benchmarks', inference.NAME, limits.NAME, memory.NAME,
                              scaling.NAME, startup.NAME}
    for record in records.values():
        assert record.keys() >= {'name', 'environment', 'date', 'command', 'pairs'}
        assert record['pairs'] == 2

    speed = records['benchmarks']
    assert ('PyTorch' in speed['rows']) is with_pytorch
    assert training.BATCH_NORM in speed['other_nets'] and training.BATCH_NORM not in speed['rows']
    assert speed['comparisons']['with batch normalization against without']['ratio'] == 1
    axes = plt.figure().subplots()
    picture.draw_speed(speed, axes, 'AVX2 only')
    medians = [row['images_per_second'] for row in speed['rows'].values()]
    assert [bar.get_width() for bar in axes.patches] == medians[::-1]  # the first is at the top
    assert [text.get_text() for text in axes.texts] == [
        f"{row['images_per_second']:.0f} ({row['ratio']:.1f}x)"
        for row in reversed(speed['rows'].values())]
    assert axes.get_title() == '96x96, AVX2 only'
    assert axes.get_yticklabels()[-1].get_text() == 'd2l.train_ch6, 2 threads'

    limit = records[limits.NAME]
    cost = summary(d2l_ext.nin(), (1, 96, 96))
    flops = 2 * (cost.total_mult_adds + cost.backward_mult_adds)
    rate = limit['limits'][limit['precision']] * 1e9
    assert limit['training']['ratio'] == pytest.approx(100 * flops / rate)
    assert limit['limit_images_per_second'][limit['precision']] == pytest.approx(rate / flops)

    rows = records[inference.NAME]['rows']
    assert all('accuracy' in row for row in rows.values())
    assert {name.partition(',')[0] for name in rows} >= (
        {'PyTorch', 'OpenVINO', 'ONNX Runtime'} if with_pytorch else set())
    (version, found), = records[startup.NAME]['pythons'].items()
    assert version == platform.python_version()
    assert found['notebook']['seconds'] == found['first_step']['seconds'] == 1
    assert records[memory.NAME]['rows']['float32']['ratio'] == 0  # made up: nothing was trained
    figure = scaling.draw(records[scaling.NAME])
    assert len(figure.axes) == 8 and figure.axes[4].get_ylim()[0] == 0


def test_records_go_to_the_kind_at_hand_and_into_a_column(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr('d2l_ext.studies.records.results_folder', lambda: tmp_path)
    monkeypatch.setattr(command, 'results_folder', lambda: tmp_path)
    monkeypatch.setattr('d2l_ext.devices.has_bfloat16', lambda: True)
    monkeypatch.setattr(peers_inference, 'installed', lambda name: False)
    monkeypatch.setattr(pytorch, 'installed', lambda: False)
    for rate, kind in ((800., 'bfloat16'), (400., 'bfloat16_half')):
        monkeypatch.setattr(kinds, 'fresh', lambda *_, rate=rate, **__: {'bfloat16': rate,
                                                                         'threads': 2})
        folder = tmp_path / 'speed' / kind
        folder.mkdir(parents=True)
        command.main(['--pairs', '1'])
        assert len(list(folder.iterdir())) == len(command.PARTS)
    for make in tables.TABLES.values():
        lines = make().splitlines()
        assert lines[0].endswith('| bfloat16 at full rate | bfloat16 at half rate |')
        assert {line.count('|') for line in lines} == {4}
    text = 'a\n<!-- rest -->\nold\n<!-- end -->\nb\n'
    assert tables.with_tables(text) == f'a\n<!-- rest -->\n{tables.rest_table()}<!-- end -->\nb\n'


@pytest.mark.parametrize('flags, rate, kind', [
    ('avx2 avx512f avx512_bf16', 470, 'bfloat16'),
    ('avx2 avx512f avx512_bf16', 218, 'bfloat16_half'),
    ('fma avx2', None, 'avx2')])
def test_kinds_of_processors(flags, rate, kind):
    assert kinds.kind_of(flags.split(), 'bf16' in flags, lambda: rate) == kind


@pytest.mark.parametrize('flags', ['avx2 avx512f', 'sse2'])
def test_other_processors_need_a_folder(flags):
    with pytest.raises(turns.Failed, match='--folder'):
        kinds.kind_of(flags.split(), False, None)


def test_the_machine_of_a_python_is_not_told(made_up, tmp_path):
    startup.run(1, 4, 96, tmp_path, 'python -m tests.benchmarks startup',
                [sys.executable, 'python'])
    (path,) = tmp_path.iterdir()
    version = platform.python_version().rpartition('.')[0]
    assert f'--python python{version}' in json.loads(path.read_text())['command']


def test_a_notebook_s_import_is_timed():
    assert startup.notebook_seconds()['seconds'] > 0


@pytest.mark.skipif(not peers_inference.installed('ONNX Runtime, float32'),
                    reason='needs onnx and onnxruntime')
@pytest.mark.parametrize('variant', [
    pytest.param(name, marks=pytest.mark.skipif(not peers_inference.installed(name),
                                                reason='not installed'))
    for name in peers_inference.VARIANTS])
def test_peers_compute_what_the_exported_net_does(net, tmp_path, variant):
    path = str(tmp_path / 'nin')
    peers_inference.export(net, path, 67)
    images = np.random.RandomState(0).rand(16, 1, 67, 67).astype('float32')
    if variant.endswith('int8'):
        prepare = {'openvino': peers_inference.quantize_openvino,
                   'onnxruntime': peers_inference.quantize_onnxruntime}
        prepare[peers_inference.VARIANTS[variant][0]](images, path)
    classify = peers_inference.classifier(variant, path)
    expected = net(mx.nd.array(images)).asnumpy()
    tolerance = {'float32': 1e-4, 'bfloat16': 0.05, 'int8': 0.15}[variant.split(', ')[1]]
    for X, y in ((images, expected), (images[:1], expected[:1])):
        assert abs(classify(X) - y).max() < tolerance * abs(expected).max()


def test_a_part_can_be_measured_by_itself(made_up, tmp_path):
    command.main(['startup', '--pairs', '1', '--folder', str(tmp_path)])
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())['command'] == (
        f'python -m tests.benchmarks startup --pairs 1 --folder {tmp_path}')


@pytest.mark.parametrize('argv, says', [
    (['--resize', '96'], '--folder'), (['--pairs', '0'], '--pairs'), (['walking'], 'walking'),
    (['--resize', '28', '--folder', '.'], '--resize'),
])
def test_bad_options_are_refused(argv, says, capsys):
    with pytest.raises(SystemExit):
        command.parse_args(argv)
    assert says in capsys.readouterr().err


def test_parts_run_in_their_order():
    assert command.parse_args([]).parts == list(command.PARTS)
    assert command.parse_args(['startup', 'training']).parts == ['training', 'startup']
