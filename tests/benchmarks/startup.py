"""How long it takes until something happens: imports, a notebook, ``python -m d2l_ext``."""
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
NOTEBOOK = f'{NEEDED}, in a notebook'
COMMAND = 'python -m d2l_ext'
BEGINS = 'training on'  # the line that train_ch5 prints right before its first step


def version_of(python):
    """Return the version of an interpreter, such as 3.13.0."""
    return subprocess.run([python, '-c', 'import platform; print(platform.python_version())'],
                          text=True, capture_output=True, check=True).stdout.strip()


def import_seconds(statement, python=sys.executable):
    """Return how long `statement` takes in a new interpreter that has imported nothing else."""
    program = ('import time; start = time.perf_counter(); '
               f'{statement}; print(time.perf_counter() - start)')
    result = subprocess.run([python, '-c', program], env=environment(), text=True,
                            capture_output=True, check=False)
    if result.returncode:
        raise Failed(f'{statement!r} failed:\n{result.stderr}')
    return {'seconds': float(result.stdout.splitlines()[-1])}


def notebook_seconds(python=sys.executable):
    """Return how long a notebook's first cell takes, which imports the package and MXNet."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager

    manager = KernelManager()
    manager._kernel_spec = KernelSpec(argv=[python, '-m', 'ipykernel_launcher', '-f',
                                            '{connection_file}'])
    manager.start_kernel(env=environment())
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        start = time.perf_counter()
        reply = client.execute_interactive(NEEDED, timeout=60)
        seconds = time.perf_counter() - start
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply['content']['status'] != 'ok':
        raise Failed(f"{NEEDED!r} failed in a notebook: {reply['content']}")
    return {'seconds': seconds}


def seconds_to_first_step(python=sys.executable):
    """Return the time from the start of ``python -m d2l_ext`` to its first training step.

    With a cache folder of its own, so that no checkpoint is touched. It is stopped then.
    """
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        process = subprocess.Popen(
            [python, '-m', 'd2l_ext'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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


def run(pairs, batch_size, resize, folder, command, pythons=(sys.executable,)):
    """Measure and write the record; `batch_size` and `resize` do not matter here.

    `pythons` are interpreters, which take turns, too; the record tells them by their versions.
    """
    from d2l_ext.storage import fashion_mnist

    fashion_mnist.find()  # so that no download is timed
    versions = {version_of(python): python for python in pythons}
    functions = {}
    for version, python in versions.items():
        functions.update({(version, name): functools.partial(import_seconds, statement, python)
                          for name, statement in IMPORTS.items()})
        functions[version, NOTEBOOK] = functools.partial(notebook_seconds, python)
        functions[version, COMMAND] = functools.partial(seconds_to_first_step, python)
    turns = take_turns({', '.join(key): function for key, function in functions.items()}, pairs,
                       'seconds', 's')
    found = {}
    for version in versions:
        of_it = {name: turns[f'{version}, {name}'] for name in (*IMPORTS, NOTEBOOK, COMMAND)}
        ends = {key: {'seconds': median(of_it[name], 'seconds'), 'turns': of_it.pop(name)}
                for key, name in (('notebook', NOTEBOOK), ('first_step', COMMAND))}
        found[version] = {'imports': added_seconds(of_it), **ends}
    if list(versions.values()) != [sys.executable]:
        command += ' --python' + ''.join(f" python{version.rpartition('.')[0]}"
                                         for version in versions)
    show(write_record(folder, NAME, command, pairs=pairs, pythons=found))


def show(record):
    """Print the tables of a record."""
    for version, found in record['pythons'].items():
        print_table(f'Start-up, Python {version}', [
            {'import': name, 's': row['seconds'],
             f'more than {MXNET}, s': f"{row['added']:.2f} ({row['added_min']:.2f} to "
                                      f"{row['added_max']:.2f})"}
            for name, row in found['imports'].items()])
        if 'notebook' in found:
            print(f"{NOTEBOOK}: {found['notebook']['seconds']:.1f} s")
        print(f"{COMMAND}: the first training step begins after "
              f"{found['first_step']['seconds']:.1f} s")
