"""Training's peak memory beside what `summary` predicts, in each precision."""
import functools

from . import peers
from .turns import fresh, print_table, take_turns, write_record

NAME = 'benchmarks_memory'
STARTED = 'not trained'


def started():
    """Only load the package and MXNet: what a process takes before it trains."""
    from d2l_ext.devices import mx

    mx.nd.zeros(1).wait_to_read()
    return {}


def predicted(batch_size, resize, precision):
    """Return the GiB that `summary` predicts for a training step by plain SGD."""
    from d2l_ext import nin
    from d2l_ext.studies.resources import summary

    result = summary(nin(), (1, resize, resize), batch_size, precision)
    return sum(result.training_memory().values()) / 2**30


def run(pairs, batch_size, resize, folder, command):
    from d2l_ext.devices import mx, resolve_precision

    setting = {'batch_size': batch_size, 'resize': resize}
    precisions = dict.fromkeys(('float32', resolve_precision('auto', mx.cpu())))
    functions = {STARTED: functools.partial(fresh, started)}
    functions.update({precision: functools.partial(
        fresh, peers.d2l_ext_train_ch5, num_batches=1, in_memory=True, precision=precision,
        **setting) for precision in precisions})
    turns = take_turns(functions, pairs, 'peak_gib', 'GiB')
    peaks = {name: [turn['peak_gib'] for turn in results] for name, results in turns.items()}
    before = max(peaks.pop(STARTED))
    rows = {precision: {'peak_gib': max(found), 'peak_gib_min': min(found),
                        'predicted_gib': predicted(precision=precision, **setting)}
            for precision, found in peaks.items()}
    for row in rows.values():
        row['ratio'] = (row['peak_gib'] - before) / row['predicted_gib']
    show(write_record(folder, NAME, command, **setting, pairs=pairs, started_gib=before, rows=rows))


def show(record):
    """Print the table of a record."""
    print_table(f"Memory, {record['resize']}x{record['resize']}, batch size "
                f"{record['batch_size']}; Python and MXNet take {record['started_gib']:.2f} GiB",
                [{'precision': name, 'peak GiB': row['peak_gib'],
                  'summary predicts': row['predicted_gib'],
                  'peak without Python and MXNet to that': row['ratio']}
                 for name, row in record['rows'].items()])
