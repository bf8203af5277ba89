"""Draw the pictures from the records: python -m tests.benchmarks.picture.

The README's, 07_03_nin.png, and the cost as work grows, benchmarks_scaling.png.
"""
import matplotlib
from matplotlib import pyplot as plt

from d2l_ext import load_record, results_folder
from d2l_ext.__main__ import BOOK
from d2l_ext.studies.plotting import COLORS
from d2l_ext.studies.records import SPEED_KINDS, speed_records

from . import scaling


def draw_speed(record, axes, processor):
    """Draw the images/s of each training loop."""
    names = list(record['rows'])[::-1]
    speeds = [record['rows'][name]['images_per_second'] for name in names]
    threads = [record['rows'][name]['turns'][0]['threads'] for name in names]
    bars = axes.barh([f"{name}, {number} thread{'s' * (number > 1)}"
                      for name, number in zip(names, threads)], speeds, color=COLORS[0])
    axes.bar_label(bars, [f"{speed:.0f} ({record['rows'][name]['ratio']:.1f}x)"
                          for name, speed in zip(names, speeds)], padding=3, fontsize='small',
                   bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1})
    axes.set(xlabel='training images/s', xlim=(0, 1.5 * max(speeds)),
             title=f"{record['resize']}x{record['resize']}, {processor}")


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
    draw_speed(speed, right, SPEED_KINDS[kind])
    figure.savefig(results_folder() / '07_03_nin.png', dpi=200)
    for kind, record in speed_records(scaling.NAME).items():
        scaling.draw(record).savefig(
            results_folder() / 'speed' / kind / f'{scaling.NAME}.png', dpi=120)


if __name__ == '__main__':
    main()
