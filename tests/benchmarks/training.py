"""Training speed at the section's own setting: d2l, Gluon, PyTorch, and the package."""
import contextlib
import functools
import importlib.metadata
import pathlib
import shutil
import statistics
import tempfile

from . import peers, pytorch
from .turns import fresh, print_table, ratios, speed_row, spread, take_turns, write_record

BASE, OURS, TORCH = 'd2l.train_ch6', 'd2l_ext.train_ch5', 'PyTorch'
IN_MEMORY, BATCH_NORM = f'{OURS}, images in memory', f'{OURS}, batch normalization'
# For each row the batches timed in one turn, enough for several seconds on two cores, the loop, and
# what it is told.
ROWS = {
    BASE: (2, peers.d2l_train_ch6, {}),
    f'{BASE}, all cores': (3, peers.d2l_train_ch6_on_all_cores, {}),
    'Gluon, eager': (3, peers.gluon_eager, {}),
    f'{OURS}, float32': (4, peers.d2l_ext_train_ch5, {'precision': 'float32'}),
    OURS: (6, peers.d2l_ext_train_ch5, {}),
    IN_MEMORY: (6, peers.d2l_ext_train_ch5, {'in_memory': True}),
    BATCH_NORM: (5, peers.d2l_ext_train_ch5, {'in_memory': True, 'batch_norm': True}),
}
TORCH_BATCHES = 5


@contextlib.contextmanager
def mxnet_home():
    """A folder where d2l's loader finds Fashion-MNIST; it reads MXNet's own data folder only."""
    from d2l_ext.storage import fashion_mnist

    with tempfile.TemporaryDirectory() as home:
        folder = pathlib.Path(home) / 'datasets' / 'fashion-mnist'
        folder.mkdir(parents=True)
        for name in fashion_mnist.MD5:
            shutil.copy(fashion_mnist.find() / name, folder)
        yield home


def compare(turns):
    """Return the ratios that answer a question each, of those rows that are there."""
    wanted = {f'{OURS} against {TORCH}': (OURS, TORCH),
              f'{IN_MEMORY}, against {TORCH}': (IN_MEMORY, TORCH),
              'with the input pipeline against without': (OURS, IN_MEMORY),
              'with batch normalization against without': (BATCH_NORM, IN_MEMORY)}
    return {name: ratios(turns[row], turns[base], 'images_per_second')
            for name, (row, base) in wanted.items() if base in turns}


def run(pairs, batch_size, resize, folder, command):
    setting = {'batch_size': batch_size, 'resize': resize}
    torch = None
    if pytorch.installed():
        tried = pytorch.try_settings(pytorch.train, ['images_per_second'], num_batches=1, **setting)
        torch = {'version': importlib.metadata.version('torch'), 'tried': tried,
                 'best': pytorch.best(tried, 'images_per_second')}
    with mxnet_home() as home:
        functions = {
            name: functools.partial(fresh, loop, {'MXNET_HOME': home}, num_batches=num_batches,
                                    **setting, **arguments)
            for name, (num_batches, loop, arguments) in ROWS.items()}
        if torch and torch['best']:
            functions[TORCH] = pytorch.turn(pytorch.train, torch['best'],
                                            num_batches=TORCH_BATCHES, **setting)
        turns = take_turns(functions, pairs, 'images_per_second', 'images/s')
    rows = {name: speed_row(results, turns[BASE]) for name, results in turns.items()}
    record = write_record(
        folder, 'benchmarks', command, **setting, pairs=pairs, pytorch=torch,
        # Another network, so no row of the comparison.
        other_nets={BATCH_NORM: rows.pop(BATCH_NORM)}, rows=rows, comparisons=compare(turns))
    show(record)


def show(record):
    """Print the tables of a record."""
    def line(name, row):
        shares = [turn['input_share'] for turn in row['turns'] if 'input_share' in turn]
        return {'training': name, 'images/s': row['images_per_second'],
                f'times {BASE}': spread(row), 'peak GiB': row['peak_gib'],
                'threads': row['turns'][0]['threads'], 'precision': row['turns'][0]['precision'],
                'input': f'{statistics.median(shares):.1%}' if shares else ''}

    rows = {**record['rows'], **record['other_nets']}
    print_table(f"NiN of section 7.3, {record['resize']}x{record['resize']}, batch size "
                f"{record['batch_size']}, {record['environment']['processor']}",
                [line(name, row) for name, row in rows.items()])
    if record['pytorch']:
        print(f"PyTorch {record['pytorch']['version']}: {record['pytorch']['best']}, the best of "
              f"{len(record['pytorch']['tried'])} settings")
    else:
        print('PyTorch is not installed: left out')
    print_table('Comparisons', [{'images/s': name, 'ratio': spread(row)}
                                for name, row in record['comparisons'].items()])
