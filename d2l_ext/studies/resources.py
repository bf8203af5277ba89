"""What a network costs: parameters, multiply-adds and memory, layer by layer.

Everything is derived from the graph that Gluon would compile, with MXNet's own shape inference:
nothing is computed, and parameters need not exist yet. Published counts differ by their conventions
more than by mistakes. Here,

* one *multiply-add* is one product of an input with a weight and its addition to a sum, in
  convolutions and dense layers only; a window that reaches into the padding counts in full, and a
  bias addition is none. He et al., *Deep Residual Learning for Image Recognition* (2015, table 1),
  count so too, and call it FLOPs;
* *FLOPs* are all arithmetic of a forward pass in inference: two for a multiply-add, one for a bias
  addition and for each pixel in each pooling window, and what `_COSTS` says for other layers;
* *parameters* are what training may change, not running statistics and constants (*buffers*). One
  that several layers share counts once, where it is first used.
"""
import ast
import collections
import contextlib
import html
import json
import math
import threading

import pandas as pd

from ..arguments import check_choice, check_int, check_shape
from ..devices import mx
from ..graphs import check_net

gluon = mx.gluon

DTYPE_BYTES = {'float32': 4, 'float16': 2, 'bfloat16': 2, 'int8': 1}

# FLOPs for each element of the input or of the output, whichever has more; what MXNet 1.9.1's
# gradient needs: input 'i', output 'o', one more array 'm' like the output; and where the result
# goes: into a 'new' array, 'over' the input, or it is the input 'same' as it is, in another shape.
_Cost = collections.namedtuple('_Cost', 'flops keeps place')
_PRODUCTS = ('Convolution', 'Deconvolution', 'FullyConnected')
_COSTS = {name: cost for names, cost in (
    (' '.join(_PRODUCTS), _Cost(None, 'i', 'new')),
    ('Pooling-max', _Cost(1, 'iom', 'new')),  # 'm': the place of each maximum
    ('Pooling', _Cost(1, 'io', 'new')),
    ('Flatten Reshape expand_dims squeeze _copy BlockGrad', _Cost(0, '', 'same')),
    ('Concat stack SliceChannel slice slice_axis slice_like transpose SwapAxis Pad broadcast_like '
     'Embedding Cast amp_cast amp_multicast _zeros _ones', _Cost(0, '', 'new')),
    ('Dropout', _Cost(0, 'm', 'over')),  # passes everything on in inference
    ('elemwise_add broadcast_add _plus_scalar elemwise_sub broadcast_sub _minus_scalar '
     '_rminus_scalar negative _mul_scalar _div_scalar', _Cost(1, '', 'over')),
    ('elemwise_mul broadcast_mul elemwise_div broadcast_div _power_scalar square sqrt abs exp log '
     'erf clip _maximum_scalar _minimum_scalar hard_sigmoid', _Cost(1, 'i', 'over')),
    ('relu sigmoid tanh softsign Activation-relu', _Cost(1, 'o', 'over')),
    ('Activation LeakyReLU', _Cost(1, 'io', 'over')),
    ('mean sum _contrib_AdaptiveAvgPooling2D', _Cost(1, '', 'new')),
    ('softmax log_softmax', _Cost(5, 'o', 'new')),  # maximum, difference, exp, sum, division
    # Scale and shift; with statistics of the input mean 1, centring 1, variance 2, division 1 too.
    ('BatchNorm _contrib_SyncBatchNorm', _Cost(2, 'i', 'over')),
    ('LayerNorm InstanceNorm GroupNorm', _Cost(7, 'i', 'new')),
    ('LRN', _Cost(None, 'io', 'new')),
) for name in names.split()}

_UNKNOWN = _Cost(None, 'io', 'new')
_INPUT = 'input of summary'  # no parameter has a name with spaces

# One operation of the net. `layer` is its place, such as 0.2 for the third child of the first one;
# `kind` a Gluon layer or, for arithmetic that a block does by itself, an MXNet operator.
# `output_shape` is a list of shapes if there are several outputs. What is not known is None.
Row = collections.namedtuple('Row', 'layer kind output_shape weights biases mult_adds flops '
                                    'activation_bytes')


def _paths(block, path=''):
    """Return {block: place} for `block` and all below it; a block with two places has the first."""
    found = {block: path or '(net)'}
    for name, child in block._children.items():
        for below, place in _paths(child, f'{path}.{name}' if path else name).items():
            found.setdefault(below, place)
    return found


@contextlib.contextmanager
def _restored(objects):
    """Give the attributes of `objects` back the values that they have now, whatever happens."""
    kept = [(vars(item), dict(vars(item))) for item in objects]
    try:
        yield
    finally:
        for attributes, old in kept:
            attributes.clear()
            attributes.update(old)


# While a net is traced its blocks have other names and hooks; another thread must not see them.
_TRACING = threading.Lock()


def _trace(net, params, paths):
    """Return the graph of `net`, its nodes named ``<layer>/<name>``."""
    called = [net]
    with _TRACING, _restored([*paths, *params.values()]), mx.name.NameManager():
        for block, path in paths.items():
            # Gluon puts the prefix before the names. A reader's own hooks would expect arrays.
            vars(block).update(_prefix=f'{path}/', _empty_prefix=False,
                               _forward_pre_hooks={0: lambda block, _: called.append(block)},
                               _forward_hooks={0: lambda *_: called.pop()})
        for param in params.values():
            vars(param).update(_var=None)  # the old one may date from before the shape was known
        data = mx.sym.var(_INPUT)
        data = data.as_np_ndarray() if mx.util.is_np_array() else data
        try:
            return mx.sym.Group(gluon.block._flatten(net(data), 'output')[0])
        except Exception as error:
            raise ValueError(
                f'layer {paths[called[-1]]} ({type(called[-1]).__name__}) cannot be traced; it '
                'must be a HybridBlock that works on symbols, as hybridize() asks. It says: '
                f'{type(error).__name__}: {str(error).strip()}') from error


def _infer_shapes(graph, shape):
    """Return the shapes of all results in `graph`; raise ValueError for a layer that cannot fit."""
    known = {_INPUT: shape} if _INPUT in graph.list_arguments() else {}
    try:
        shapes = graph.infer_shape_partial(**known)[1]
    except mx.MXNetError as error:
        name, _, reason = str(error).partition('operator ')[2].partition(': ')
        raise ValueError(
            f'layer {_layer(name)} cannot take what reaches it when the input has the shape '
            f"{shape}. MXNet says: {reason.split('Check failed: ')[-1].strip()}") from None
    # MXNet writes 0, with NumPy semantics -1, for a size that it does not know.
    return [tuple(found) if all(n > 0 for n in found or ()) and (found or mx.util.is_np_shape())
            else None for found in shapes]


def _layer(name):
    return name.rpartition('/')[0] or name  # a SymbolBlock brings its names along


class _Node:
    """A node of the graph: an operation, or a variable, whose `op` is 'null'."""

    def __init__(self, entry):
        self.op, self.name, self.attrs = entry['op'], entry['name'], entry.get('attrs', {})
        self.layer = _layer(self.name)
        self.inputs = [tuple(source[:2]) for source in entry['inputs']]  # (node, output) each
        self.shapes, self.in_shapes = [], []  # None where not known
        variant = self.attrs.get('act_type', self.attrs.get('pool_type', 'max'))
        self.cost = _COSTS.get(f'{self.op}-{variant}', _COSTS.get(self.op, _UNKNOWN))

    def mult_adds(self):
        if self.op not in _PRODUCTS:
            return 0
        # Weights are (outputs, inputs / groups, *window); in transposed convolutions each pixel of
        # the input, not of the output, meets the window once.
        pixels = self.in_shapes[0] if self.op == 'Deconvolution' else self.shapes[0]
        return math.prod(pixels) * math.prod(self.in_shapes[1][1:])

    def flops(self):
        size = sum(map(math.prod, self.shapes))
        if self.op in _PRODUCTS:
            return 2 * self.mult_adds() + size * (len(self.inputs) > 2)
        if self.op == 'LRN':  # squares and sum over nsize channels, scale and shift, power, product
            return size * (2 * int(self.attrs['nsize']) + 3)
        if self.op == 'Pooling' and self.attrs.get('global_pool', 'False') not in ('True', '1'):
            return size * math.prod(ast.literal_eval(self.attrs['kernel']))
        return self.cost.flops * max([size, *map(math.prod, self.in_shapes[:1])])


class _Graph:
    """The operations of a net with their shapes, and how its activations live in memory."""

    def __init__(self, net, shape):
        self.paths, self.params = _paths(net), net.collect_params()
        outputs = _trace(net, self.params, self.paths)
        self.buffers = {name for name, param in self.params.items() if not param._differentiable
                        or isinstance(param, gluon.Constant)}.union(outputs.list_auxiliary_states())
        self.heads = [tuple(head[:2]) for head in json.loads(outputs.tojson())['heads']]
        results = outputs.get_internals()  # all of them, in the order of the nodes
        graph = json.loads(results.tojson())
        self.nodes = [_Node(entry) for entry in graph['nodes']]
        for (i, *_), found in zip(graph['heads'], _infer_shapes(results, shape)):
            self.nodes[i].shapes.append(found)
        self.operations = [i for i, node in enumerate(self.nodes) if node.op != 'null']
        self.activations, trainable = set(), set()
        for i, node in enumerate(self.nodes):
            node.in_shapes = [self.nodes[j].shapes[output] for j, output in node.inputs]
            node.known = node.cost is not _UNKNOWN and None not in node.shapes + node.in_shapes
            if node.op != 'null' or node.name == _INPUT:
                self.activations.update(self.results(i))
            elif node.name in self.params and self.params[node.name].grad_req != 'null':
                trainable.update(self.results(i))
            if node.op != 'BlockGrad' and trainable.intersection(node.inputs):
                trainable.update(self.results(i))  # something before it can be trained
        self.has_gradient = trainable.intersection(self.heads)
        for i in reversed(self.operations):
            if self.has_gradient.intersection(self.results(i)):
                self.has_gradient.update(trainable.intersection(self.nodes[i].inputs))

    def results(self, i):
        return [(i, output) for output in range(len(self.nodes[i].shapes))]

    def elements(self, entries):
        """Return how many elements the results have together; unknown ones count as 0."""
        shapes = [self.nodes[i].shapes[output] for i, output in entries]
        return sum(0 if shape is None else math.prod(shape) for shape in shapes)

    def backward_mult_adds(self):
        """One product for the gradient of each of the two factors that needs one."""
        return sum(node.mult_adds() * len(self.has_gradient.intersection(node.inputs[:2]))
                   for node in self.nodes if node.op in _PRODUCTS and node.known)

    def kept(self):
        """Return how many elements backward needs of forward, an array counted once."""
        array, kept, masks = {}, set(), 0
        for i in self.operations:
            node, results = self.nodes[i], self.results(i)
            if node.cost.place == 'same':
                array[results[0]] = array.get(node.inputs[0], node.inputs[0])
            if self.has_gradient.intersection(results):
                keeps = node.cost.keeps
                entries = ('i' in keeps) * node.inputs + ('o' in keeps) * results
                kept.update(array.get(entry, entry) for entry in entries)
                masks += ('m' in keeps) * self.elements(results)
        return masks + self.elements(kept & self.activations)

    def workspace(self):
        """Return the elements of the largest input and output of one convolution or dense layer."""
        return max((self.elements([node.inputs[0], (i, 0)]) for i, node in enumerate(self.nodes)
                    if node.op in _PRODUCTS and (i, 0) in self.has_gradient), default=0)

    def peak(self, entries):
        """Return the most elements of `entries` alive at once when each goes as soon as it can.

        An activation lives from the operation that makes it to the last one that reads it. Its
        gradient lives from the latter to the former: the same time, passed in reverse.
        """
        last = {entry: i for i in self.operations for entry in self.nodes[i].inputs}
        last.update(dict.fromkeys(self.heads, len(self.nodes)))
        array, start, end = {}, {}, {}
        for i, node in enumerate(self.nodes):
            for entry in entries.intersection(self.results(i)):
                array[entry] = next((array[read] for read in node.inputs if read in array and (
                    node.cost.place == 'same' or node.cost.place == 'over'
                    and end[array[read]] == i
                    and self.elements([read]) == self.elements([entry]))), entry)
                start.setdefault(array[entry], i)
                end[array[entry]] = max(end.get(array[entry], 0), last.get(entry, i))
        return max(self.elements(a for a in start if start[a] <= i <= end[a])
                   for i in range(len(self.nodes)))


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
        graph = _Graph(net, shape)
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
        return table, notes

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
