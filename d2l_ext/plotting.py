"""Figures: curves over epochs, images, confusion matrices."""
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart with any kind of colour vision; line styles and markers
# differ too, for black-and-white print.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_LINES = ('-', '--', '-.', ':')
_MARKERS = 'osD^vPX'


def plot_curve(axes, histories, key, label, i):
    """Draw the mean of `key` over the histories, and a band from the lowest to the highest."""
    epochs = [row['epoch'] for row in histories[0]]
    values = np.array([[row[key] for row in history] for history in histories])
    color = COLORS[i % len(COLORS)]
    axes.plot(epochs, values.mean(axis=0), _LINES[i % len(_LINES)], color=color,
              marker=_MARKERS[i % len(_MARKERS)], markersize=4, label=label)
    if len(histories) > 1:
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2)


def plot_histories(groups, figsize=(9, 3.2)):
    """Draw loss, training and test accuracy over epochs; bands run from worst to best seed.

    Parameters
    ----------
    groups : dict or list
        ``{label: histories}`` with a list of histories (one a seed) each, or one history as
        ``train_ch5`` returns it.
    figsize : pair of float
        In inches.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Loss, accuracy.
    """
    if not isinstance(groups, dict):
        groups = {'': [groups]}
    figure, axes = plt.subplots(1, 2, figsize=figsize, layout='constrained')
    i = 0
    for label, histories in groups.items():
        plot_curve(axes[0], histories, 'loss', label or None, i)
        for key, what in (('train_acc', 'training'), ('val_acc', 'validation'),
                          ('test_acc', 'test')):
            if all(key in row for history in histories for row in history):
                plot_curve(axes[1], histories, key, f'{label} {what}'.strip(), i)
                i += 1
    axes[0].set(xlabel='epoch', ylabel='cross-entropy loss')
    axes[1].set(xlabel='epoch', ylabel='accuracy')
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize='small')
    return axes


def show_images(images, num_rows, num_cols, titles=None, scale=1.5):
    """Draw grey images in a grid.

    Parameters
    ----------
    images : sequence of array
        At least one image, each of shape (height, width) or (1, height, width), NumPy's or
        MXNet's. Images beyond the grid are left out.
    num_rows, num_cols : int
        Of the grid.
    titles : sequence of str, optional
        One an image.
    scale : float
        Height and width of a cell in inches.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One a cell, row by row.
    """
    figure, axes = plt.subplots(num_rows, num_cols, squeeze=False, layout='constrained',
                                figsize=(num_cols * scale, num_rows * scale))
    axes = axes.flatten()
    for panel in axes:
        panel.axis('off')
    for i, (panel, image) in enumerate(zip(axes, images)):
        image = image.asnumpy() if hasattr(image, 'asnumpy') else np.asarray(image)
        panel.imshow(image.reshape(image.shape[-2:]), cmap='gray_r')
        if titles:
            panel.set_title(titles[i], fontsize='small')
    return axes


def show_samples(data_iter, num_rows=2, num_cols=9):
    """Draw the first images that `data_iter` yields, each under the name of its class."""
    X, y = next(iter(data_iter))
    titles = [data_iter.classes[int(label)] for label in y.asnumpy()]
    return show_images(X, num_rows, num_cols, titles)


def plot_confusion(matrix, classes, figsize=(6, 5)):
    """Draw a confusion matrix, its counts written in the cells.

    Parameters
    ----------
    matrix : array of int, shape (classes, classes)
        Images by true class (row) and predicted class (column).
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    matplotlib.axes.Axes
    """
    matrix = np.asarray(matrix)
    figure, axes = plt.subplots(figsize=figsize, layout='constrained')
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, count, ha='center', va='center', fontsize='small',
                          color='white' if share[i, j] > 0.5 else 'black')
    axes.set(xlabel='predicted class', ylabel='true class')
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha='right')
    axes.set_yticks(range(len(classes)), classes)
    return axes


def plot_speed(record, axes=None):
    """Draw the images/s of each training loop in a record of ``python -m tests.benchmarks``.

    Parameters
    ----------
    record : dict
        With the medians under `rows`.
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    if axes is None:
        _, axes = plt.subplots(figsize=(7, 2.4), layout='constrained')
    names = list(record['rows'])[::-1]
    speeds = [record['rows'][name]['images_per_second'] for name in names]
    bars = axes.barh([f"{name}, {record['rows'][name]['turns'][0]['threads']} thread(s)"
                      for name in names], speeds, color=COLORS[0])
    axes.bar_label(bars, [f"{speed:.0f} ({record['rows'][name]['ratio']:.1f}x)"
                          for name, speed in zip(names, speeds)], padding=3, fontsize='small')
    axes.set(xlabel='training images/s',
             title=f"{record['resize']}x{record['resize']}, batch size {record['batch_size']}",
             xlim=(0, 1.3 * max(speeds)))
    return axes
