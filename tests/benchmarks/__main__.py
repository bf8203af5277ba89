"""Measure what the package costs and how fast it is: python -m tests.benchmarks.

Parts: training (section 7.3's loop beside d2l's, Gluon's and PyTorch's), inference (float32,
bfloat16, int8; beside PyTorch, OpenVINO and ONNX Runtime), limits (how close it comes to what the
processor can do, layer by layer), memory (beside what `summary` predicts), startup, scaling
(against image size, batch size, threads, 1x1 layers). Each prints tables and writes a record of its
own, so that one can be measured again without the others. The records go into the folder of this
kind of processor in chapters/results/speed.

Needs a machine with nothing else to do, and Fashion-MNIST, which is downloaded if it is not there.
Runs on the CPU. The others are compared with where they are installed.
"""
import argparse
import datetime
import math
import os
import shlex
import sys

from d2l_ext.studies.records import results_folder

from . import inference, limits, memory, scaling, startup, training
from .kinds import kind_at_hand
from .turns import Failed

PARTS = {'training': training, 'inference': inference, 'limits': limits, 'memory': memory,
         'startup': startup, 'scaling': scaling}
BATCH_SIZE, RESIZE = 128, 224
# On two cores with bfloat16 at half rate: in all, and for each pair of turns more.
MINUTES = {'training': (3, 2.4), 'inference': (12, 2.4), 'limits': (0.3, 0.4), 'memory': (0, 0.4),
           'startup': (0, 0.3), 'scaling': (6, 0)}


def parse_args(argv):
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks',
                                     description=__doc__.partition(': python')[0] + '.',
                                     epilog=__doc__.partition('\n\n')[2])
    parser.add_argument('parts', nargs='*', metavar='PART', choices=[*PARTS, 'all'], default='all',
                        help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument('--pairs', type=int, default=5,
                        help='how often each competitor takes its turn (default: 5)')
    parser.add_argument('--batch-size', type=int, default=BATCH_SIZE)
    parser.add_argument('--resize', type=int, default=RESIZE,
                        help='height and width of the images in pixels, at least 67')
    parser.add_argument('--folder', help='where the records go; by default to the committed ones')
    parser.add_argument('--python', nargs='+', default=[sys.executable], metavar='PYTHON',
                        help='interpreters to start, each of an environment with the '
                             'requirements (default: this one)')
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.batch_size < 1 or args.resize < 67:
        parser.error('--pairs and --batch-size must be at least 1, --resize at least 67')
    if not args.folder and (args.batch_size, args.resize) != (BATCH_SIZE, RESIZE):
        parser.error('the committed records are of another setting: say --folder where these go')
    args.parts = [part for part in PARTS if part in args.parts or 'all' in args.parts]
    args.options = ''.join(
        f" --{name.replace('_', '-')} {shlex.quote(str(getattr(args, name)))}"
        for name in ('pairs', 'batch_size', 'resize', 'folder')
        if getattr(args, name) != parser.get_default(name))
    return args


def main(argv=None):
    args = parse_args(argv)
    os.environ['D2L_EXT_DEVICE'] = 'cpu'
    minutes = sum(fixed + args.pairs * more
                  for fixed, more in (MINUTES[part] for part in args.parts))
    print(f"{', '.join(args.parts)}: about {math.ceil(minutes)} minutes on two cores at the "
          f'default setting, it is {datetime.datetime.now():%H:%M}', flush=True)
    try:
        folder = args.folder or results_folder() / 'speed' / kind_at_hand()
        for part in args.parts:
            more = {'pythons': args.python} if part == 'startup' else {}
            PARTS[part].run(args.pairs, args.batch_size, args.resize, folder,
                            f'python -m tests.benchmarks {part}{args.options}', **more)
    except Failed as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
