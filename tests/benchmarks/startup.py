"""How long it takes until something happens: imports, and ``python -m d2l_ext``."""
import functools
import subprocess
import sys
import tempfile
import time

from .turns import Failed, environment, median, print_table, take_turns, write_record

NAME = 'benchmarks_startup'
MXNET, NEEDED = 'import mxnet', 'import d2l_ext, mxnet'
IMPORTS = {
    MXNET: MXNET,
    NEEDED: NEEDED,
    "what the section's code loads": 'import d2l_ext, mxnet; d2l_ext.load_data_fashion_mnist, '
                                     'd2l_ext.nin, d2l_ext.train_ch5, d2l_ext.try_gpu',
    'from d2l_ext import *': 'from d2l_ext import *',
}
COMMAND = 'python -m d2l_ext'
BEGINS = 'training on'  # the line that train_ch5 prints right before its first step


def import_seconds(statement):
    """Return how long `statement` takes in a new interpreter that has imported nothing else."""
    program = ('import time; start = time.perf_counter(); '
               f'{statement}; print(time.perf_counter() - start)')
    result = subprocess.run([sys.executable, '-c', program], env=environment(), text=True,
                            capture_output=True, check=False)
    if result.returncode:
        raise Failed(f'{statement!r} failed:\n{result.stderr}')
    return {'seconds': float(result.stdout.splitlines()[-1])}


def seconds_to_first_step():
    """Return the time from the start of ``python -m d2l_ext`` to its first training step.

    With a cache folder of its own, so that no checkpoint is touched. It is stopped then.
    """
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, '-m', 'd2l_ext'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=environment(D2L_EXT_CACHE=cache, PYTHONUNBUFFERED='1'))
        said = ''
        try:
            for line in process.stdout:
                said += line
                if line.startswith(BEGINS):
                    return {'seconds': time.perf_counter() - start}
        finally:
            process.terminate()
            process.communicate()
    raise Failed(f'{COMMAND} ended before its first step:\n{said}')


def added_seconds(turns):
    """Return how much longer each import takes than MXNet's own: median, lowest and highest."""
    added = {}
    for name, results in turns.items():
        differences = [turn['seconds'] - other['seconds']
                       for turn, other in zip(results, turns[MXNET])]
        added[name] = {'seconds': median(results, 'seconds'),
                       'added': median([{'added': value} for value in differences], 'added'),
                       'added_min': min(differences), 'added_max': max(differences),
                       'turns': results}
    return added


def run(pairs, batch_size, resize, folder, command):
    """Measure and write the record; `batch_size` and `resize` do not matter here."""
    from d2l_ext.storage import fashion_mnist

    fashion_mnist.find()  # so that no download is timed
    functions = {name: functools.partial(import_seconds, statement)
                 for name, statement in IMPORTS.items()}
    turns = take_turns({**functions, COMMAND: seconds_to_first_step}, pairs, 'seconds', 's')
    command_turns = turns.pop(COMMAND)
    show(write_record(folder, NAME, command, pairs=pairs, imports=added_seconds(turns),
                      first_step={'seconds': median(command_turns, 'seconds'),
                                  'turns': command_turns}))


def show(record):
    """Print the table of a record."""
    print_table('Start-up', [
        {'import': name, 's': row['seconds'],
         f'more than {MXNET}, s': f"{row['added']:.2f} ({row['added_min']:.2f} to "
                                  f"{row['added_max']:.2f})"}
        for name, row in record['imports'].items()])
    print(f"{COMMAND}: the first training step begins after "
          f"{record['first_step']['seconds']:.1f} s")
