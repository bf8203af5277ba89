"""Figures: what is drawn where, read back from Matplotlib."""
import numpy as np
import pytest
from matplotlib import pyplot as plt

import d2l_ext
from d2l_ext.batches import Batches
from d2l_ext.devices import mx
from d2l_ext.studies import plotting


def history(level=0.0, epochs=3, keys=('train_acc', 'test_acc')):
    return [{'epoch': epoch, 'loss': 2 / epoch + level, 'seconds': 1,
             **{key: 0.1 * epoch + level + i / 100 for i, key in enumerate(keys)}}
            for epoch in range(1, epochs + 1)]


def labels(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_a_history_alone():
    axes = d2l_ext.plot_histories(history())
    (loss,), (train, test) = axes[0].lines, axes[1].lines
    assert list(loss.get_xdata()) == [1, 2, 3]
    np.testing.assert_allclose(loss.get_ydata(), [2, 1, 2 / 3])
    np.testing.assert_allclose(train.get_ydata(), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(test.get_ydata(), [0.11, 0.21, 0.31])
    assert axes[0].get_legend() is None and labels(axes[1]) == ['training', 'test']
    assert not axes[0].collections and not axes[1].collections  # one run has no band
    assert [panel.get_xlabel() for panel in axes] == ['epoch', 'epoch']
    assert [panel.get_ylabel() for panel in axes] == ['cross-entropy loss', 'accuracy']


def test_bands_run_from_the_lowest_to_the_highest_seed():
    axes = d2l_ext.plot_histories({'NiN': [history(0), history(0.3), history(0.6)]})
    assert labels(axes[0]) == ['NiN'] and labels(axes[1]) == ['NiN training', 'NiN test']
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), np.array([2, 1, 2 / 3]) + 0.3)
    assert [len(panel.collections) for panel in axes] == [1, 2]
    corners = axes[1].collections[0].get_paths()[0].vertices  # of the training accuracy
    for epoch in (1, 2, 3):
        heights = corners[corners[:, 0] == epoch, 1]
        assert min(heights) == pytest.approx(0.1 * epoch)
        assert max(heights) == pytest.approx(0.1 * epoch + 0.6)


def test_groups_look_different_in_colour_and_in_black_and_white():
    axes = d2l_ext.plot_histories({name: [history(i / 10)] for i, name in enumerate('abc')})
    assert labels(axes[0]) == ['a', 'b', 'c'] and len(axes[1].lines) == 6
    for panel in axes:
        for looks in ([line.get_color() for line in panel.lines],
                      [(line.get_linestyle(), line.get_marker()) for line in panel.lines]):
            assert len(set(looks)) == len(panel.lines)


def test_groups_of_unequal_length():
    axes = d2l_ext.plot_histories({'short': [history(epochs=2)], 'long': [history(epochs=4)]})
    assert [len(line.get_xdata()) for line in axes[0].lines] == [2, 4]


def test_validation_accuracy_in_place_of_test_accuracy():
    rows = history(keys=('train_acc', 'val_acc'))
    rows[-1]['test_acc'] = 0.9  # in the last epoch only: no curve
    axes = d2l_ext.plot_histories(rows)
    assert labels(axes[1]) == ['training', 'validation']
    np.testing.assert_allclose(axes[1].lines[1].get_ydata(), [0.11, 0.21, 0.31])


IMAGES = np.random.RandomState(0).rand(5, 4, 6).astype(np.float32)


@pytest.mark.parametrize('kind', [np.array, mx.nd.array, list,
                                  lambda images: mx.nd.array(images[:, None])])
def test_show_images(kind):
    axes = d2l_ext.show_images(kind(IMAGES), 2, 3, titles='abcde', scale=2)
    assert axes.shape == (6,) and list(axes[0].figure.get_size_inches()) == [6, 4]
    for i, panel in enumerate(axes[:5]):
        np.testing.assert_array_equal(panel.images[0].get_array(), IMAGES[i])
        assert panel.get_title() == 'abcde'[i] and not panel.axison
    assert not axes[5].images and not axes[5].axison


def test_images_beyond_the_grid_are_left_out():
    axes = d2l_ext.show_images(IMAGES, 1, 2)
    assert axes.shape == (2,) and [panel.get_title() for panel in axes] == ['', '']
    np.testing.assert_array_equal(axes[1].images[0].get_array(), IMAGES[1])


def test_show_samples():
    batches = Batches(np.arange(24, dtype=np.uint8).reshape(6, 2, 2), np.array([2, 0, 1, 1, 0, 2]),
                      4, ctx=mx.cpu(), classes=('bag', 'coat', 'shirt'))
    axes = d2l_ext.show_samples(batches, 1, 3)
    assert [panel.get_title() for panel in axes] == ['shirt', 'bag', 'coat']
    np.testing.assert_allclose(axes[1].images[0].get_array() * 255, [[4, 5], [6, 7]], rtol=1e-5)


@pytest.mark.parametrize('kind', [list, np.array])
def test_plot_confusion(kind):
    matrix = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]  # the last class has no images
    axes = plotting.plot_confusion(kind(matrix), ['bag', 'coat', 'shirt'])
    written = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert written == {(0, 0): '8', (1, 0): '2', (0, 1): '1', (1, 1): '9'}  # (column, row)
    np.testing.assert_allclose(axes.images[0].get_array(), [[.8, .2, 0], [.1, .9, 0], [0, 0, 0]])
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ['bag', 'coat', 'shirt']
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('predicted class', 'true class')
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours == {'8': 'white', '9': 'white', '2': 'black', '1': 'black'}


def test_confusion_report():
    matrix = [[8, 2, 0, 0], [1, 9, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5]]
    assert d2l_ext.confusion_report(matrix, ['bag', 'coat', 'shirt', 'boot']) == (
        'bag     80.0% right, most often taken for coat (2 of 10)\n'
        'coat    90.0% right, most often taken for bag (1 of 10)\n'
        'shirt  no images\n'
        'boot   100.0% right\n'
        'all     88.0%')
    assert d2l_ext.confusion_report(np.zeros((1, 1), int), 'a') == 'a  no images\nall   0.0%'


def test_every_figure_can_be_drawn():
    d2l_ext.plot_histories({'a': [history(), history(0.1)]})
    d2l_ext.show_images(IMAGES, 2, 3)
    d2l_ext.plot_confusion(np.eye(3, dtype=int), 'abc')
    assert len(plt.get_fignums()) == 3
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()


def test_speed_and_its_limit():
    rows = {name: {'images_per_second': speed, 'ratio': speed / 10, 'turns': [{'threads': 2}]}
            for name, speed in (('slow', 10.), ('fast', 40.))}
    record = {'resize': 224, 'batch_size': 128, 'rows': rows}
    axes = d2l_ext.plot_speed(record)
    assert [bar.get_width() for bar in axes.patches] == [40, 10]  # the first row is at the top
    assert [text.get_text() for text in axes.texts] == ['40 (4.0x)', '10 (1.0x)']
    assert not axes.lines and axes.get_legend() is None
    line, = d2l_ext.plot_speed(record, limit=50).lines
    assert list(line.get_xdata()) == [50, 50]
