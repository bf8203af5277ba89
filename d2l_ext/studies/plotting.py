"""Figures: images and confusion matrices."""
import numpy as np
from matplotlib import pyplot as plt

from ..arguments import check_int, check_number, check_type, refusal

# Okabe and Ito's colours, told apart with any kind of colour vision.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')


def check_axes(axes):
    """Return `axes`, or raise a ValueError unless Matplotlib can draw there."""
    return check_type('axes', axes, plt.Axes, 'the Axes of a Matplotlib figure')


def _check_figsize(figsize):
    if not isinstance(figsize, (tuple, list)) or len(figsize) != 2:
        raise refusal('figsize', figsize, 'a pair of numbers, width and height in inches')
    return [check_number('each of figsize', size, 0) for size in figsize]


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

    Raises
    ------
    ValueError
        If there is no image, one has another shape, there are fewer titles than images shown, or
        a number is out of range.
    """
    num_rows = check_int('num_rows', num_rows, 1)
    num_cols = check_int('num_cols', num_cols, 1)
    scale = check_number('scale', scale, 0)
    if not hasattr(images, '__len__') or not len(images):
        raise refusal('images', images, 'a sequence of at least one image')
    shown = min(len(images), num_rows * num_cols)
    if titles is not None and (not hasattr(titles, '__len__') or len(titles) < shown):
        raise refusal('titles', titles, f'at least {shown} titles, one for each image shown')
    figure, axes = plt.subplots(num_rows, num_cols, squeeze=False, layout='constrained',
                                figsize=(num_cols * scale, num_rows * scale))
    axes = axes.flatten()
    for panel in axes:
        panel.axis('off')
    for i, (panel, image) in enumerate(zip(axes, images)):
        image = image.asnumpy() if hasattr(image, 'asnumpy') else np.asarray(image)
        if image.ndim not in (2, 3) or image.shape[:-2] not in ((), (1,)):
            raise refusal('each of images', image, 'an array of (height, width) or (1, height, '
                          'width)')
        panel.imshow(image.reshape(image.shape[-2:]), cmap='gray_r')
        if titles is not None:
            panel.set_title(titles[i], fontsize='small')
    return axes


def show_samples(data_iter, num_rows=2, num_cols=9):
    """Draw the first images that `data_iter` yields, each under the name of its class.

    Parameters
    ----------
    data_iter : Batches
        Of grey images, with the names of their classes.
    num_rows, num_cols : int
        Of the grid. Only the first batch is drawn.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One a cell, row by row.

    Raises
    ------
    ValueError
        If `data_iter` knows no names, its images are not grey, or a number is out of range.
    """
    if not getattr(data_iter, 'classes', ()):
        raise refusal('data_iter', data_iter, 'batches that know the names of their classes, such '
                      'as load_data_digits(18)[0]')
    X, y = next(iter(data_iter))
    titles = [data_iter.classes[int(label)] for label in y.asnumpy()]
    return show_images(X, num_rows, num_cols, titles)


def _check_confusion(matrix, classes):
    if not hasattr(classes, '__len__') or not len(classes):
        raise refusal('classes', classes, 'a sequence of names')
    matrix = np.asarray(matrix.asnumpy() if hasattr(matrix, 'asnumpy') else matrix)
    if matrix.dtype.kind not in 'iu' or matrix.shape != 2 * (len(classes),) or matrix.min() < 0:
        raise refusal('matrix', matrix, f'whole numbers of at least 0 of shape '
                      f'{2 * (len(classes),)}, a row and a column for each of classes')
    return matrix


def confusion_report(matrix, classes):
    """Return a confusion matrix in words: a line for each class, and one for all.

    Each says what share of the images of the class is right and which class they are most often
    taken for.

    Parameters
    ----------
    matrix : array of int, shape (classes, classes)
        Images by true class (row) and predicted class (column).
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the matrix is not one of counts, with a row and a column for each class.
    """
    matrix, lines = _check_confusion(matrix, classes), []
    width = max(len(str(name)) for name in classes) + 1
    for i, (name, row) in enumerate(zip(classes, matrix)):
        mistakes = np.where(np.arange(len(row)) == i, 0, row)
        if not row.any():
            lines.append(f'{name:{width}} no images')
        elif not mistakes.any():
            lines.append(f'{name:{width}} {1:6.1%} right')
        else:
            lines.append(f'{name:{width}} {row[i] / row.sum():6.1%} right, most often taken for '
                         f'{classes[mistakes.argmax()]} ({mistakes.max()} of {row.sum()})')
    lines.append(f"{'all':{width}} {matrix.trace() / max(matrix.sum(), 1):6.1%}")
    return '\n'.join(lines)


def plot_confusion(matrix, classes, figsize=(6, 5)):
    """Draw a confusion matrix, its counts written in the cells.

    Parameters
    ----------
    matrix, classes
        As for :func:`confusion_report`.
    figsize : pair of float
        Width and height in inches.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the matrix is not one of counts, with a row and a column for each class, or `figsize` is
        no pair of numbers above 0.
    """
    matrix = _check_confusion(matrix, classes)
    figure, axes = plt.subplots(figsize=_check_figsize(figsize), layout='constrained')
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
