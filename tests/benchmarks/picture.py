"""Draw the pictures from the records: python -m tests.benchmarks.picture.

The README's, 07_03_nin.png, and the cost as work grows, benchmarks_scaling.png.
"""
import matplotlib
from matplotlib import pyplot as plt

from d2l_ext import load_record, results_folder
from d2l_ext.__main__ import BOOK
from d2l_ext.studies.plotting import COLORS
from d2l_ext.studies.records import speed_records

from . import limits, scaling


def draw_speed(record, axes, limit):
    """Draw the images/s of each training loop, and of the processor's matrix products."""
    names = list(record['rows'])[::-1]
    speeds = [record['rows'][name]['images_per_second'] for name in names]
    bars = axes.barh([f"{name}, {record['rows'][name]['turns'][0]['threads']} thread(s)"
                      for name in names], speeds, color=COLORS[0])
    axes.bar_label(bars, [f"{speed:.0f} ({record['rows'][name]['ratio']:.1f}x)"
                          for name, speed in zip(names, speeds)], padding=3, fontsize='small',
                   bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1})
    axes.set(xlabel='training images/s', xlim=(0, 1.5 * max(speeds)),
             title=f"{record['resize']}x{record['resize']}, batch size {record['batch_size']}")
    axes.axvline(limit, color=COLORS[1], linestyle='--', zorder=0, label='pace of matrix products')
    axes.legend(loc='upper right', fontsize='small')


def main():
    matplotlib.use('Agg')
    record = load_record(results_folder() / '07_03_nin_book.json')
    kind, speed = next(iter(speed_records().items()))  # the fastest processor
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.2), layout='constrained')
    for i, run in enumerate(record['runs']):
        left.plot(range(1, 6), [row['test_acc'] for row in run['history']], color=COLORS[0],
                  linewidth=1, label=None if i else f"here, {len(record['runs'])} seeds")
    left.plot(range(1, 6), [row[2] for row in BOOK], 'k:', label="the book's run")
    left.set(title='Section 7.3 at full scale', xlabel='epoch', ylabel='test accuracy', ylim=(0, 1),
             xticks=range(1, 6))
    left.grid(alpha=0.3)
    left.legend(loc='lower right', fontsize='small')
    limit = speed_records(limits.NAME)[kind]
    draw_speed(speed, right, limit['limit_images_per_second'][limit['precision']])
    figure.savefig(results_folder() / '07_03_nin.png', dpi=200)
    for kind, record in speed_records(scaling.NAME).items():
        scaling.draw(record).savefig(
            results_folder() / 'speed' / kind / f'{scaling.NAME}.png', dpi=120)


if __name__ == '__main__':
    main()
