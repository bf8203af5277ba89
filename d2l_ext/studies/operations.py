"""The operations of a net, read from its graph: shapes, costs, memory.

The conventions stand in :mod:`d2l_ext.studies.resources`.
"""
import ast
import collections
import contextlib
import json
import math
import threading

from ..devices import mx
from ..graphs.numpy_mode import as_called
from ..graphs.state import put_back

gluon = mx.gluon

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
            put_back(attributes, old)


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
        try:
            return mx.sym.Group(gluon.block._flatten(as_called(net)(data), 'output')[0])
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
    # MXNet writes 0 for a size that it does not know.
    return [tuple(found) if found and all(n > 0 for n in found) else None for found in shapes]


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


class Operations:
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
