"""How a summary of resources is printed: in text, in HTML, as a DataFrame."""
from test_resources import sequence

from d2l_ext import nets
from d2l_ext.devices import mx
from d2l_ext.studies.resources import summary

nn = mx.gluon.nn

STORED = """\
HybridSequential, input (2, 1, 28, 28), float32
------------------------------------------------------------------------------------------------
layer  kind        output shape    weights  biases  params  mult adds    flops  activation bytes
------------------------------------------------------------------------------------------------
0      Conv2D      (2, 6, 24, 24)      150       6     156    172,800  352,512            27,648
0.act  Activation  (2, 6, 24, 24)        0       0       0          0    6,912            27,648
1      BatchNorm   (2, 6, 24, 24)        6       6      12          0   13,824            27,648
2      MaxPool2D   (2, 6, 12, 12)        0       0       0          0    6,912             6,912
3      Dense       (2, 10)           8,640      10   8,650     17,280   34,580                80
------------------------------------------------------------------------------------------------
total                                8,796      22   8,818    190,080  414,740            89,936
------------------------------------------------------------------------------------------------
parameters:        8,818 and 12 in buffers
multiply-adds:     190,080 forward, 207,360 backward
inference memory:  0.07 MB: parameters 0.04, activations 0.03
training memory:   0.21 MB: parameters 0.04, gradients 0.04, activations 0.08, activation gradients
                   0.03, workspace 0.03"""


def small_net():
    return sequence(nn.Conv2D(6, 5, activation='relu'), nn.BatchNorm(), nn.MaxPool2D(2),
                    nn.Dense(10))


def test_printed_table():
    assert str(summary(small_net(), (1, 28, 28), batch_size=2)) == STORED
    result = summary(small_net(), (1, 28, 28))
    assert repr(result) == str(result)


def test_printed_table_is_aligned():
    table, footer = str(summary(nets.nin(), (1, 224, 224), batch_size=128)).split('parameters: ')
    assert len({len(line) for line in table.splitlines()[1:]}) == 1
    assert all(len(line) <= 100 for line in footer.splitlines())


def test_html():
    class Odd(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            return F.relu(x)

    text = summary(sequence(Odd(), nn.Dense(1000)), (784,))._repr_html_()
    assert text.startswith('<table') and text.count('</tr>') == 4
    assert '785,000' in text and '<pre>HybridSequential, input (1, 784)' in text
    net = sequence(nn.Dense(2))
    net._children['<b>'] = nn.Dense(2)
    assert '&lt;b&gt;' in summary(net, (2,))._repr_html_()


def test_dataframe():
    result = summary(small_net(), (1, 28, 28))
    frame = result.to_dataframe()
    assert list(frame.columns) == ['layer', 'kind', 'output_shape', 'weights', 'biases', 'params',
                                   'mult_adds', 'flops', 'activation_bytes']
    assert frame.params.sum() == result.total_params
    assert frame.mult_adds.sum() == result.total_mult_adds
    assert frame.output_shape.iloc[0] == (1, 6, 24, 24)
