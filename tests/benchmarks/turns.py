"""What all parts share: fresh processes, turns, ratios within a turn, records.

Whatever is timed runs in a process of its own, started anew for each turn, while nothing else runs.
The competitors take turns, A B A B ..., and are compared within a turn, so that a slow spell of the
machine meets all alike.
"""
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys


class Failed(RuntimeError):
    """A function that was run in a process of its own failed; says what it wrote."""


def environment(**changes):
    """Return the environment variables of this process with `changes`.

    The number of threads is left to each process: importing d2l_ext has settled it in this one.
    """
    kept = {key: value for key, value in os.environ.items() if key != 'OMP_NUM_THREADS'}
    return {**kept, 'MPLBACKEND': 'Agg', **changes}


def fresh(function, variables=None, **arguments):
    """Return the dictionary that ``function(**arguments)`` returns in a new process.

    `function` stands in a module of this package, `arguments` are what JSON can hold, and
    `variables` are set in the environment. The peak memory of the process is added as `peak_gib`.
    """
    module = function.__globals__['__spec__']  # its real name, also if it is the main program
    command = [sys.executable, '-m', f'{__package__}.turns', module.name, function.__name__,
               json.dumps(arguments)]
    folder = pathlib.Path(__file__).parents[module.name.count('.')]
    result = subprocess.run(command, env=environment(**variables or {}), cwd=folder, text=True,
                            capture_output=True, check=False)
    if result.returncode:
        raise Failed(f'{function.__name__} {arguments} failed:\n{result.stderr}')
    return json.loads(result.stdout.splitlines()[-1])


def take_turns(rows, pairs, key, unit):
    """Call each function in `rows`, ``{name: function}``, in turn, `pairs` times.

    Returns ``{name: list of results}``; of each result, a dictionary, `key` is printed.
    """
    turns = {name: [] for name in rows}
    for i in range(pairs):
        for name, function in rows.items():
            turns[name].append(function())
            print(f'{i + 1}/{pairs}  {name:44} {turns[name][-1][key]:8.2f} {unit}', flush=True)
    return turns


def median(turns, key):
    """Return the median of `key` over the turns."""
    return statistics.median(turn[key] for turn in turns)


def ratios(turns, base, key, prefix=''):
    """Return median, lowest and highest of the ratios that `key` has to that of `base` in a turn.

    They stand under 'ratio', 'ratio_min' and 'ratio_max', with `prefix` before these.
    """
    found = [turn[key] / other[key] for turn, other in zip(turns, base)]
    return {f'{prefix}ratio': statistics.median(found), f'{prefix}ratio_min': min(found),
            f'{prefix}ratio_max': max(found)}


def speed_row(turns, base):
    """Return the row of a record: images/s, how many times those of `base`, peak memory, turns."""
    return {'images_per_second': median(turns, 'images_per_second'),
            **ratios(turns, base, 'images_per_second'),
            'peak_gib': max(turn['peak_gib'] for turn in turns), 'turns': turns}


def spread(row, prefix='', digits='.2f'):
    """Return the ratio in a row as text, with the lowest and the highest."""
    ratio, low, high = (f"{row[f'{prefix}ratio{end}']:{digits}}" for end in ('', '_min', '_max'))
    return f'{ratio} ({low} to {high})'


def print_table(title, rows):
    """Print dictionaries, all with the same keys, as a table with these as its head."""
    import pandas as pd

    print(f'\n{title}')
    print(pd.DataFrame(rows).to_string(index=False, float_format='{:,.2f}'.format))


def write_record(folder, name, command, computed_in='auto', **content):
    """Write `content` to a JSON file, with where, when and by which command it was measured."""
    # Not at the top: a process that times d2l by itself must not import d2l_ext.
    import datetime

    from d2l_ext.storage.files import atomic_write
    from d2l_ext.studies.records import environment as describe

    record = {'name': name, **content, 'environment': {**describe(computed_in), 'device': 'cpu(0)'},
              'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
              'command': command}
    with atomic_write(pathlib.Path(folder) / f'{name}.json') as file:
        file.write((json.dumps(record, indent=1) + '\n').encode())
    return record


def main():
    """Call the function that `fresh` asks for and print what it returns as the last line."""
    module, name, arguments = sys.argv[1:]
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    # Not getrusage(), whose peak begins with that of the process that started this one.
    with open('/proc/self/status') as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith('VmHWM'))  # in KiB
    print('\n' + json.dumps({**result, 'peak_gib': peak / 2**20}))


if __name__ == '__main__':
    main()
