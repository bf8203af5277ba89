"""What a network costs: parameters, multiply-adds and memory, layer by layer.

Everything is derived from the graph that Gluon would compile, with MXNet's own shape inference:
nothing is computed, and parameters need not exist yet. Published counts differ by their conventions
more than by mistakes. Here,

* one *multiply-add* is one product of an input with a weight and its addition to a sum, in
  convolutions and dense layers only; a window that reaches into the padding counts in full, and a
  bias addition is none. He et al., *Deep Residual Learning for Image Recognition* (2015, table 1),
  count so too, and call it FLOPs;
* *FLOPs* are all arithmetic of a forward pass in inference: two for a multiply-add, one for a bias
  addition and for each pixel in each pooling window, and for other layers what
  :mod:`~d2l_ext.studies.operations` says;
* *parameters* are what training may change, not running statistics and constants (*buffers*). One
  that several layers share counts once, where it is first used.
"""
import collections
import html
import math

import pandas as pd

from ..arguments import check_choice, check_int, check_shape, wrapped
from ..graphs import check_net
from ..graphs.numpy_mode import computed_in_nd
from .operations import Operations

DTYPE_BYTES = {'float32': 4, 'float16': 2, 'bfloat16': 2, 'int8': 1}

# One operation of the net. `layer` is its place, such as 0.2 for the third child of the first one;
# `kind` a Gluon layer or, for arithmetic that a block does by itself, an MXNet operator.
# `output_shape` is a list of shapes if there are several outputs. What is not known is None.
Row = collections.namedtuple('Row', 'layer kind output_shape weights biases mult_adds flops '
                                    'activation_bytes')


class Summary:
    """What :func:`summary` found out; printed, it is a table.

    Attributes
    ----------
    rows : list of Row
        One for each operation, in the order in which they run.
    total_params, total_weights, total_biases, total_buffers : int
        Elements. Biases are what is added: biases of layers, beta of normalizations.
    total_mult_adds, total_flops, activation_bytes : int
        Of one forward pass over the whole batch, summed over the rows. The unknown is not in them.
    backward_mult_adds : int
        Of one backward pass. For ``Y = X W`` the gradients of W and of X each take as many as the
        forward pass; X needs none if no trainable parameter comes before it, as in the first layer.
    unknown : tuple of str
        What this module cannot count, each layer or parameter named; empty if all is counted.
    """

    def __init__(self, net, shape, dtype):
        self.title = f'{type(net).__name__}, input {shape}, {dtype}'
        self.rows, self.unknown, size = [], (), DTYPE_BYTES[dtype]
        graph = Operations(net, shape)
        blocks, sizes = {path: block for block, path in graph.paths.items()}, {}
        for node in (graph.nodes[i] for i in graph.operations):
            counts = self._count(graph, sizes, node.layer, {
                graph.nodes[entry[0]].name: graph.nodes[entry[0]].shapes[0]
                for entry in node.inputs if entry not in graph.activations})
            # An operation goes by the name of its Gluon layer, unless it is only part of a block.
            block = blocks.get(node.layer)
            whole = type(block).__module__.startswith('mxnet.gluon') and (
                block._reg_params or not block._children)
            kind = type(block).__name__ if whole else node.attrs.get('op_type', node.op)
            self.unknown += () if node.known else (f'{node.layer} {kind}',)
            self.rows.append(Row(
                node.layer, kind if node.known else f'{kind} (unknown)',
                node.shapes[0] if len(node.shapes) == 1 else node.shapes, *counts,
                *((node.mult_adds(), node.flops()) if node.known else (None, None)),
                None if None in node.shapes else size * sum(map(math.prod, node.shapes))))
        for block, path in graph.paths.items():
            for param in block.params.values():
                counts = self._count(graph, sizes, path, {param.name: param.shape})
                if any(counts):
                    self.rows.append(Row(path, 'not used', None, *counts, 0, 0, 0))
        (self.total_weights, self.total_biases, self.total_mult_adds, self.total_flops,
         self.activation_bytes) = (sum(row[i] or 0 for row in self.rows) for i in range(3, 8))
        self.unknown, elements = tuple(dict.fromkeys(self.unknown)), sum(sizes.values())
        self.total_params = self.total_weights + self.total_biases
        self.total_buffers = elements - self.total_params
        self.backward_mult_adds = graph.backward_mult_adds()
        gradients = sum(n for name, n in sizes.items() if graph.params[name].grad_req != 'null')
        self._training = {
            'parameters': 4 * elements, 'gradients': 4 * gradients,
            'optimizer states': 4 * gradients, 'activations': size * graph.kept(),
            'activation gradients': size * graph.peak(graph.activations & graph.has_gradient),
            'workspace': size * graph.workspace()}
        self._inference = {'parameters': size * elements,
                           'activations': size * graph.peak(graph.activations)}

    def _count(self, graph, sizes, layer, shapes):
        """Add the new ones of `shapes`, {parameter: shape}, to `sizes`; return weights, biases."""
        counts = [0, 0]
        for name in [name for name in shapes if name not in sizes]:
            owned = name in graph.params
            if owned and shapes[name] is not None and all(n > 0 for n in shapes[name]):
                sizes[name] = math.prod(shapes[name])
                if name not in graph.buffers:
                    counts[name.endswith(('bias', 'beta'))] += sizes[name]
            else:
                why = 'of unknown shape' if owned else 'that the net does not own'
                self.unknown += (f'{layer} {name} (a parameter {why})',)
        return counts

    def training_memory(self, optimizer_states=0):
        """Return the memory of one training step, {part: bytes}, without the libraries' own.

        - `parameters` (with buffers), `gradients`, `optimizer states`: in float32. The optimizer
          keeps `optimizer_states` arrays for each parameter: SGD 0, with momentum 1, Adam 2.
        - `activations`: what forward keeps for backward: the input of a convolution, dense layer
          or normalization, the output of a ReLU or softmax, input, output and places of the maxima
          of a maximum pooling, the mask of a dropout. An array counts once.
        - `activation gradients`: the most of them alive at once when each goes as soon as it can.
        - `workspace`: oneDNN, MXNet's library for layers on the CPU, copies the input of a
          convolution and the gradient of its output into its own layout; this is the largest sum
          of the two. MXNet has up to four such arrays, and one if the environment variable
          MXNET_CPU_TEMP_COPY is 1; only then can memory be predicted well.

        Arrays are shared as Chen et al., *Training Deep Nets with Sublinear Memory Cost* (2016,
        section 3), describe for MXNet's compiled graphs.
        """
        states = check_int('optimizer_states', optimizer_states, 0)
        return {**self._training, 'optimizer states': states * self._training['optimizer states']}

    def inference_memory(self):
        """Return the smallest possible memory of one forward pass, {part: bytes}.

        These are `parameters` (with buffers) and `activations`: the most alive at once when each
        goes after its last use and what works element by element overwrites its input. In a chain
        of layers that is the largest two consecutive ones, the input of the net among them.
        """
        return dict(self._inference)

    def to_dataframe(self):
        """Return the rows, with a column `params`, as a DataFrame; unknown numbers are missing."""
        frame = pd.DataFrame([row._asdict() for row in self.rows], columns=Row._fields)
        frame.insert(5, 'params', frame.weights + frame.biases)
        return frame.astype(dict.fromkeys(frame.columns[3:], 'Int64'))

    def _printed(self):
        """Return a DataFrame of strings, its last row the totals, and the lines below it."""
        frame = self.to_dataframe()
        frame.output_shape = [str(shape or '-') for shape in frame.output_shape]
        rows = [*frame.values.tolist(), ['total', '', '', *frame[frame.columns[3:]].sum()]]
        table = pd.DataFrame([[cell if isinstance(cell, str) else '?' if cell is pd.NA
                               else f'{cell:,}' for cell in row] for row in rows],
                             columns=[column.replace('_', ' ') for column in frame.columns])
        notes = [self.title,
                 f'parameters:        {self.total_params:,} and {self.total_buffers:,} in buffers',
                 f'multiply-adds:     {self.total_mult_adds:,} forward, '
                 f'{self.backward_mult_adds:,} backward']
        for name, memory in (('inference', self._inference), ('training', self.training_memory())):
            parts = ', '.join(f'{part} {n / 1e6:,.2f}' for part, n in memory.items() if n)
            notes.append(f"{name + ' memory:':<18} {sum(memory.values()) / 1e6:,.2f} MB: {parts}")
        notes += [f"NOT COUNTED:       {'; '.join(self.unknown)}"] if self.unknown else []
        return table, [wrapped(note, ' ' * 19) for note in notes]

    def __repr__(self):
        table, notes = self._printed()
        cells = [list(table.columns), *table.values.tolist()]
        widths = [max(map(len, column)) for column in zip(*cells)]
        head, *rows, total = ('  '.join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))) for row in cells)
        rule = '-' * len(head)
        return '\n'.join([notes[0], rule, head, rule, *rows, rule, total, rule, *notes[1:]])

    def _repr_html_(self):
        table, notes = self._printed()
        return table.to_html(index=False) + '<pre>' + html.escape('\n'.join(notes)) + '</pre>'


@computed_in_nd
def summary(net, input_shape, batch_size=1, dtype='float32'):
    """Return a :class:`Summary` of what `net` costs for a batch of inputs.

    Nothing is computed and `net` stays as it is. The conventions stand at the top of this module.

    Parameters
    ----------
    net : mxnet.gluon.Block
        HybridBlocks, or a plain ``Sequential`` of them; initialized or not. What this module does
        not know is named in the table, below it and in `unknown`, and is not in the totals.
    input_shape : tuple of int
        Of one example, such as (channels, height, width), without the batch axis.
    batch_size : int
        Examples in the batch; all numbers but the parameters grow with it.
    dtype : {'float32', 'float16', 'bfloat16', 'int8'}
        Of the activations, and of the parameters in inference.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If an argument is out of range, or a layer, then named, cannot be traced or take its input.

    Examples
    --------
    >>> result = summary(mx.gluon.nn.Dense(10), (784,))
    >>> result.total_params, result.total_mult_adds
    (7850, 7840)
    """
    shape = check_shape('input_shape', input_shape, 'the shape of one example without the batch '
                        'axis, such as (1, 224, 224)')
    check_choice('dtype', dtype, DTYPE_BYTES)
    return Summary(check_net(net), (check_int('batch_size', batch_size, 1), *shape), dtype)
