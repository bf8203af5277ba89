"""Train section 7.3's NiN from the command line: python -m d2l_ext."""
import argparse
import os
import signal
import sys
import time

if __name__ == '__main__':
    from .diagnose import diagnose, import_problem  # they work where MXNet does not

    if '--diagnose' in sys.argv:
        sys.exit(diagnose())
    try:
        from . import devices  # noqa: F401  which imports it
    except (ImportError, OSError) as error:
        sys.exit(f'error: {import_problem(error)}')

from .arguments import check_path
from .checks.batches import checked_batches
from .devices import mx, resolve_precision, try_gpu
from .hardware.processor import processor
from .hardware.threads import num_threads
from .nets import nin
from .scale.team import Team
from .scale.workers import KVSTORES, connect
from .storage.checkpoints import read_history
from .studies.commands import add_options, exit_status, load
from .studies.initialization import INITS, start_as_identity
from .studies.records import checkpoint_path
from .training import Run, train_ch5

# Epoch, loss, train acc, test acc as section 7.3 prints them, trained on one GPU.
BOOK = ((2.2627, .154, .362), (1.6522, .381, .578), (1.8721, .296, .360),
        (1.3249, .481, .529), (1.1868, .532, .544))

# The book's setting takes half an hour or more on two cores. The reduced one shows a network
# that learns within a minute or two, on processors without bfloat16, too; hence the smallest
# images that the network takes. With so few of them, it must learn from the first step on: hence
# Adam, a small rate and identity, chosen on digits held out from training.
FULL = {'images': None, 'resize': 224, 'batch_size': 128, 'optimizer': 'sgd', 'lr': 0.1,
        'init': 'xavier'}
REDUCED = {'images': 4000, 'resize': 67, 'batch_size': 16, 'optimizer': 'adam', 'lr': 0.0003,
           'init': 'identity'}


def parse_args(argv):
    parser = argparse.ArgumentParser(
        prog='python -m d2l_ext', allow_abbrev=False,
        description="Train the Network in Network of section 7.3 and print the book's table. On "
                    'a CPU a reduced setting runs, which takes about two minutes; --full is the '
                    "book's own.",
        epilog='Examples: "python -m d2l_ext --full" trains as the book does; "python -m d2l_ext '
               '--full --resume" goes on where that was stopped; "python -m d2l_ext --lr 0.001 '
               '--seed 1" tries another learning rate in the reduced setting.')
    parser.add_argument('--full', action='store_true',
                        help="the book's setting: 60,000 images of 224x224, batch size 128, "
                             'learning rate 0.1, Xavier initialization (what runs on a GPU anyway)')
    parser.add_argument('--epochs', type=int, default=5,
                        help='how often to go through the training images (default: 5)')
    parser.add_argument('--optimizer', choices=('adam', 'sgd'),
                        help='how the weights follow their gradients; each needs a learning rate '
                             'of its own')
    parser.add_argument('--lr', type=float, help='learning rate')
    parser.add_argument('--batch-size', type=int, help='images in a training step')
    parser.add_argument('--resize', type=int,
                        help='height and width of the images in pixels, at least 67')
    parser.add_argument('--images', type=int,
                        help='train on this many images; test on a fifth as many')
    parser.add_argument('--init', choices=('he', 'identity', 'xavier'),
                        help='initialization of the weights; identity: each convolution at first '
                             'hands on what it gets')
    parser.add_argument('--seed', type=int, default=0,
                        help='of everything random; the same seed repeats a run (default: 0)')
    add_options(parser)
    parser.add_argument('--checkpoint', metavar='FILE',
                        help="where the state is kept after each epoch (default: the user's "
                             'cache folder)')
    parser.add_argument('--resume', action='store_true',
                        help='go on from the checkpoint of the same setting')
    parser.add_argument('--kvstore', choices=KVSTORES,
                        help='train on several machines at once, started by python -m '
                             'd2l_ext.distributed; batch size and learning rate are those of all '
                             'workers together')
    parser.add_argument('--diagnose', action='store_true',
                        help='print what is installed and found, and what to do about problems')
    args = parser.parse_args(argv)
    defaults = FULL if args.full or try_gpu().device_type == 'gpu' else REDUCED
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.reduced = defaults is REDUCED
    if args.kvstore is None and 'DMLC_ROLE' in os.environ:
        parser.error('a launcher started this process as one of several (DMLC_ROLE is set): add '
                     '--kvstore dist_sync, or each would train alone')
    if args.images is not None and args.images < 1:
        parser.error(f'--images must be at least 1, not {args.images}')
    if not 0 < args.lr < float('inf'):
        parser.error(f'--lr must be a finite number above 0, not {args.lr}')
    return args


def default_checkpoint(args, train_iter, precision):
    """Return a path in the user's cache folder that belongs to this setting."""
    setting = {name: getattr(args, name) for name in FULL}
    return checkpoint_path('section-7.3', [setting, train_iter.name, precision], args.seed)


def build(args, ctx, kvstore='device'):
    """Return the section's net and its trainer."""
    net = nin()
    net.initialize(INITS['he' if args.init == 'identity' else args.init], ctx=ctx)
    if args.init == 'identity':
        mx.random.seed(args.seed)
        net(mx.nd.zeros((1, 1, 67, 67), ctx))  # any images: the weights get shapes and values
        start_as_identity(net)
        # Or a ReLU of the last block, only ten channels wide, might be 0 for all images.
        for layer in net[7]:
            layer.bias.set_data(mx.nd.ones(10))
    return net, mx.gluon.Trainer(net.collect_params(), args.optimizer, {'learning_rate': args.lr},
                                 kvstore=kvstore)


def estimate_seconds(args, num_epochs, train_iter, test_iter, ctx):
    """Return about how long so many epochs take, from three steps of a net that is thrown away."""
    run = Run(*build(args, ctx), ctx, args.precision, train_iter=train_iter,
              test_iter=test_iter)
    X, y = next(checked_batches(run.net, ctx, 'train_iter', train_iter))
    for step in range(3):
        if step == 1:  # the first one also plans memory
            start = time.time()
        run.step(X, y)
        mx.nd.waitall()
    per_batch = (time.time() - start) / 2
    # A batch forward costs about a third of a whole step.
    return num_epochs * per_batch * (len(train_iter) + len(test_iter) / 3)


def print_rows(rows, beside_book):
    """Print rows of a history, beside the book's or not; before the first epoch the header."""
    for row in rows:
        header = book = ('', '', '')
        if beside_book:
            header, book = ('     book', '   book', '   book'), (9 * ' ', 7 * ' ', 7 * ' ')
            if row['epoch'] <= len(BOOK):
                loss, train_acc, test_acc = BOOK[row['epoch'] - 1]
                book = f'{loss:9.4f}', f'{train_acc:7.3f}', f'{test_acc:7.3f}'
        if row['epoch'] == 1:
            print('epoch      loss{}  train acc{}  test acc{}  seconds'.format(*header))
        print(f"{row['epoch']:5}  {row['loss']:8.4f}{book[0]}  {row['train_acc']:9.3f}{book[1]}  "
              f"{row['test_acc']:8.3f}{book[2]}  {row['seconds']:7.1f}", flush=True)


def run(args):
    workers = connect(args.kvstore) if args.kvstore else Team()
    if workers.rank:  # one worker is enough to speak for all
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115  until the process ends
    ctx = try_gpu()
    precision = resolve_precision(args.precision, ctx)
    train_iter, test_iter = load(args, ctx)
    checkpoint = check_path('--checkpoint', args.checkpoint or default_checkpoint(
        args, train_iter, precision))
    kept = read_history(checkpoint) if args.resume and checkpoint.exists() else []
    print('Section 7.3, Network in Network')
    print(f'  device     {ctx}, {processor()}')
    print(f'  threads    {num_threads()}')
    print(f'  precision  {precision}')
    if args.kvstore:
        print(f'  workers    {workers.number}, each with its part of every batch')
    print(f'  data       {train_iter.name}: {len(train_iter.images):,} training and '
          f'{len(test_iter.images):,} test images, resized to {args.resize}x{args.resize}')
    print(f'  training   {args.epochs} epochs, batch size {args.batch_size}, {args.optimizer}, '
          f'learning rate {args.lr},\n             {args.init} initialization, seed {args.seed}')
    if args.reduced:
        print("  This is a reduced setting: the section's network, but few and small images, and "
              "an optimizer\n  and an initialization with which it starts at once. The book's own "
              '(60,000 images of 224x224,\n  batch size 128, sgd, learning rate 0.1, xavier '
              'initialization) is: python -m d2l_ext --full')
    if args.epochs > len(kept):
        minutes = estimate_seconds(args, args.epochs - len(kept), train_iter, test_iter,
                                   ctx) / 60 / workers.number
        print(f'  time       about {minutes:.0f} minutes' if minutes > 2
              else f'  time       about {60 * minutes:.0f} seconds', flush=True)
    net, trainer = build(args, ctx, args.kvstore or 'device')
    beside_book = not args.reduced and train_iter.name == 'Fashion-MNIST'
    print_rows(kept, beside_book)
    history = train_ch5(net, train_iter, test_iter, args.batch_size, trainer, ctx, args.epochs,
                        precision=args.precision, checkpoint=checkpoint, resume=args.resume,
                        seed=args.seed, report=lambda row: print_rows([row], beside_book))
    if args.reduced and history:
        print(f"\nThe section's network, trained here, classifies {history[-1]['test_acc']:.0%} of "
              f'{len(test_iter.images):,} test images right; guessing, 10%.\nHow it is built '
              'and why it learns: chapters/07_03_nin.ipynb (type: jupyter lab chapters).')
    return 0


def stop(number, frame):
    """End after SIGTERM, which a machine sends that shuts down, as after Ctrl-C."""
    raise KeyboardInterrupt(number)


def main(argv=None):
    try:
        return exit_status(lambda: run(parse_args(argv)))
    except KeyboardInterrupt as interrupt:
        print('\nstopped')
        return 128 + (interrupt.args or (signal.SIGINT,))[0]  # as shells have it


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main())
