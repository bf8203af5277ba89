"""What the two commands share, python -m d2l_ext and python -m d2l_ext.search."""
import sys

from .. import data
from ..devices import PRECISIONS, mx


def add_options(parser):
    """Add the options of both to a parser."""
    parser.add_argument('--precision', default='auto', choices=PRECISIONS,
                        help='auto: bfloat16 if the processor has instructions for it, else '
                             'float32; float16 needs a GPU')
    parser.add_argument('--dataset', choices=('auto', 'fashion-mnist', 'digits'), default='auto',
                        help="auto: Fashion-MNIST if it can be had, else scikit-learn's digits")


def load(args, ctx):
    """Return the batches that `args` ask for."""
    loader = {'auto': data.load_data, 'fashion-mnist': data.load_data_fashion_mnist,
              'digits': data.load_data_digits}[args.dataset]
    train_iter, test_iter = loader(args.batch_size, args.resize, ctx=ctx)
    if args.images is not None:
        train_iter = train_iter.take(min(args.images, len(train_iter.images)))
        test_iter = test_iter.take(min(max(1, args.images // 5), len(test_iter.images)))
    return train_iter, test_iter


def exit_status(command):
    """Return what `command()` returns, or 1 after printing its error without a traceback."""
    try:
        return command()
    except mx.MXNetError:  # a RuntimeError, too, and its traceback helps
        raise
    # RuntimeError: D2L_EXT_DEVICE=gpu, but there is none that works.
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
