"""Figures: what is drawn where, read back from Matplotlib."""
import numpy as np
import pytest
from matplotlib import pyplot as plt

import d2l_ext
from d2l_ext.batches import Batches
from d2l_ext.devices import mx
from d2l_ext.studies import plotting

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
    d2l_ext.show_images(IMAGES, 2, 3)
    d2l_ext.plot_confusion(np.eye(3, dtype=int), 'abc')
    assert len(plt.get_fignums()) == 2
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
