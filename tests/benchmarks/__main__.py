"""Measure what the package costs and how fast it is: python -m tests.benchmarks.

Parts: training (section 7.3's loop beside d2l's, Gluon's and PyTorch's), inference (float32,
bfloat16, int8), limits (how close it comes to what the processor can do, layer by layer), scaling
(against image size, batch size, threads, 1x1 layers), startup. Each prints tables and writes a
record of its own, so that one can be measured again without the others.

Needs a machine with nothing else to do, and Fashion-MNIST, which is downloaded if it is not there.
Runs on the CPU. PyTorch is compared with where it is installed.
"""
import argparse
import datetime
import math
import os
import shlex
import sys

from d2l_ext.studies.records import results_folder

from . import inference, limits, scaling, startup, training
from .turns import Failed

PARTS = {'training': training, 'inference': inference, 'limits': limits, 'scaling': scaling,
         'startup': startup}
BATCH_SIZE, RESIZE = 128, 224
# On two cores: in all, and for each pair of turns more.
MINUTES = {'training': (3, 1.75), 'inference': (4, 0.8), 'limits': (0.2, 0.3), 'scaling': (3.3, 0),
           'startup': (0, 0.15)}


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
    args.folder = args.folder or results_folder()
    return args


def main(argv=None):
    args = parse_args(argv)
    os.environ['D2L_EXT_DEVICE'] = 'cpu'
    minutes = sum(fixed + args.pairs * more
                  for fixed, more in (MINUTES[part] for part in args.parts))
    print(f"{', '.join(args.parts)}: about {math.ceil(minutes)} minutes on two cores at the "
          f'default setting, it is {datetime.datetime.now():%H:%M}', flush=True)
    try:
        for part in args.parts:
            PARTS[part].run(args.pairs, args.batch_size, args.resize, args.folder,
                            f'python -m tests.benchmarks {part}{args.options}')
    except Failed as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
