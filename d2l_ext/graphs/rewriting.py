"""A graph copied node by node, so that a rewrite says only what changes."""
import ast
import json

from ..devices import mx


def nodes_of(graph):
    """Return the nodes of a symbol in their order, as MXNet's JSON has them."""
    return [{'attrs': {}, **node}
            for node in json.loads(graph.tojson(remove_amp_cast=False))['nodes']]


def sizes(node, key, default=()):
    """Return an attribute that holds one number for each axis of the maps."""
    return ast.literal_eval(node['attrs'].get(key, '()')) or default


def maps_of(graph, shape):
    """Return the shape of each node's first output by its name, for batches of `shape`."""
    internals = graph.get_internals()
    try:
        shapes = internals.infer_shape_partial(data=shape)[1]
    except mx.MXNetError:  # the run says which layer the images do not fit
        return {}
    return {name.rpartition('_output')[0] or name: found
            for name, found in zip(internals.list_outputs(), shapes)}


class Copy:
    """The new graph while it grows: nodes with `op`, `name`, `attrs` and `inputs`.

    Inputs are entries: (number of a node, which of its outputs, 0).
    """

    def __init__(self):
        self.nodes = []

    def add(self, op, name, inputs, **attrs):
        """Add a node; return the entry of its first output."""
        return self.copy({'op': op, 'name': name, 'inputs': inputs}, **attrs)

    def copy(self, node, **attrs):
        """Add a node like `node`, with these attributes changed; return its first entry."""
        attrs = {**node.get('attrs', {}), **{key: str(value) for key, value in attrs.items()}}
        self.nodes.append({**node, 'attrs': attrs})
        return len(self.nodes) - 1, 0, 0


def rewrite(graph, change, output=lambda new, entry: entry):
    """Return a copy of a symbol with other nodes where `change` makes them.

    ``change(new, node)`` gets the growing :class:`Copy` and, in their order, the nodes; their
    inputs are already those of the new graph, and `readers` lists the operators that read them,
    'output' for that of the graph. It returns the first entry of what stands for the node, or None
    to leave it as it is. ``output(new, entry)`` returns the entry to be the output instead.
    """
    old = json.loads(graph.tojson(remove_amp_cast=False))
    readers = [[] for _ in old['nodes']]
    for node in [*old['nodes'], {'op': 'output', 'inputs': old['heads']}]:
        for i, *_ in node['inputs']:
            readers[i].append(node['op'])
    new, place = Copy(), []  # and where in it each node of the old one is
    for node, found in zip(old['nodes'], readers):
        node['inputs'] = [(place[i], *rest) for i, *rest in node['inputs']]
        node = {'attrs': {}, **node, 'readers': found}
        place.append((change(new, node) or new.copy(node))[0])
    heads = [output(new, (place[i], *rest)) for i, *rest in old['heads']]
    for node in new.nodes:
        node.pop('readers', None)  # MXNet takes no other keys than its own
    variables = [i for i, node in enumerate(new.nodes) if node['op'] == 'null']
    return mx.sym.load_json(json.dumps({'nodes': new.nodes, 'arg_nodes': variables,
                                        'heads': heads, 'attrs': old['attrs']}))
