"""Time the section's training against d2l's own loop: python -m tests.benchmarks.

Both train turn by turn, each in a fresh process; the ratio of a pair is taken within the pair.
Needs Fashion-MNIST (it is downloaded if it is not there) and a machine with nothing else to do.
Prints a table and writes chapters/results/benchmarks.json.
"""
import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from d2l_ext.data import FASHION_MNIST_MD5, find_fashion_mnist
from d2l_ext.files import atomic_write
from d2l_ext.records import environment, results_folder

BASE = 'd2l.train_ch6'
# Batches timed in one turn: enough for some ten seconds each on two cores.
BATCHES = {BASE: 3, 'd2l.train_ch6, all cores': 4, 'd2l_ext.train_ch5, float32': 5,
           'd2l_ext.train_ch5': 8}


def measure(name, mxnet_home):
    """Return what peers.py says of one turn, with MXNet's own defaults for everything."""
    env = {key: value for key, value in os.environ.items() if key != 'OMP_NUM_THREADS'}
    env.update(MXNET_HOME=str(mxnet_home), MPLBACKEND='Agg')
    command = [sys.executable, str(pathlib.Path(__file__).with_name('peers.py')), name,
               str(BATCHES[name])]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f'{name} failed:\n{result.stderr}')
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks', description=__doc__)
    parser.add_argument('--pairs', type=int, default=5, help='how often each is timed (default: 5)')
    pairs = parser.parse_args().pairs
    turns = {name: [] for name in BATCHES}
    with tempfile.TemporaryDirectory() as mxnet_home:
        # d2l's loader reads MXNet's own data folder only.
        folder = pathlib.Path(mxnet_home) / 'datasets' / 'fashion-mnist'
        folder.mkdir(parents=True)
        for name in FASHION_MNIST_MD5:
            shutil.copy(find_fashion_mnist() / name, folder)
        for i in range(pairs):
            for name, results in turns.items():
                results.append(measure(name, mxnet_home))
                speed = results[-1]['images_per_second']
                print(f'{i + 1}/{pairs}  {name:28} {speed:7.1f} images/s', flush=True)
    rows = {}
    for name, results in turns.items():
        ratios = [result['images_per_second'] / base['images_per_second']
                  for result, base in zip(results, turns[BASE])]
        rows[name] = {
            'images_per_second': statistics.median(r['images_per_second'] for r in results),
            'ratio': statistics.median(ratios), 'ratio_min': min(ratios), 'ratio_max': max(ratios),
            'peak_gib': max(result['peak_gib'] for result in results), 'turns': results}
    record = {'name': 'benchmarks', 'batch_size': 128, 'resize': 224, 'pairs': pairs, 'rows': rows,
              'environment': environment(),
              'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
              'command': 'python -m tests.benchmarks'}
    with atomic_write(results_folder() / 'benchmarks.json') as file:
        file.write((json.dumps(record, indent=1) + '\n').encode())
    print(f"\nNiN of section 7.3, 224x224, batch 128, {environment()['processor']}")
    print(f"{'':28} images/s  against {BASE}          peak memory  input")
    for name, row in rows.items():
        shares = [turn['input_share'] for turn in row['turns'] if 'input_share' in turn]
        share = f'{statistics.median(shares):.1%}' if shares else 'not measured'
        print(f"{name:28} {row['images_per_second']:8.1f}  {row['ratio']:5.2f} "
              f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f})         "
              f"{row['peak_gib']:6.2f} GiB  {share}")


if __name__ == '__main__':
    main()
