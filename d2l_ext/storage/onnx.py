"""Networks in ONNX files, for PyTorch, ONNX Runtime and what else comes after MXNet."""
import types
import warnings
from unittest import mock

import numpy as np

from ..arguments import check_path, check_shape
from ..checks.nets import check_input
from ..devices import mx
from ..graphs import trace
from ..graphs.numpy_mode import as_called, computed_in_nd
from ..graphs.rewriting import rewrite
from ..graphs.state import attributes_kept
from .files import atomic_write

_OPSET = 13  # the newest operators that MXNet 1.9.1's exporter writes
_TOLERANCE = 1e-4


@computed_in_nd
def export_onnx(net, path, input_shape):
    """Write `net`, as it computes in inference, to an ONNX file, once ONNX Runtime agrees with it.

    The file has one input, ``data``, and one output, ``output``, both float32, with a batch axis of
    any length in front. Its parameters have the names that :func:`save_params` gives them.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized hybrid blocks, or a plain ``Sequential`` of them, without hooks. It stays as it
        is, except that parameters which wait for the first batch are initialized, as by that batch.
    path : str or path
        File to write; replaced only once the new content is complete.
    input_shape : tuple of int
        Of one example, such as (channels, height, width), without the batch axis.

    Raises
    ------
    ValueError
        If the net is not initialized, has no graph, cannot take `input_shape`, or does what MXNet's
        exporter cannot translate, or ONNX Runtime computes something else from it.
    ImportError
        If onnx or onnxruntime is not installed: they are in ``.requirements/onnx.txt``.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> export_onnx(net, 'nin.onnx', (1, 224, 224))  # doctest: +SKIP
    """
    path = check_path('path', path)
    input_shape = check_shape('input_shape', input_shape, 'the shape of one example')
    graph = trace(net)
    if graph is None or len(graph.list_outputs()) != 1:
        raise ValueError('net has no graph to export: it must be made of hybrid blocks, or plain '
                         'Sequentials of them, without hooks, and return one array')
    check_input(net, (1, *input_shape))
    params = _params(net, graph)
    try:
        import onnx  # noqa: F401  for _convert
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f'export_onnx needs onnx and onnxruntime ({error}). In a clone of d2l_ext type\n'
            '    python -m pip install --no-deps -r .requirements/onnx.txt\n'
            'and restart Python') from error
    _settle(graph, params, input_shape)
    graph, values = _renamed(net, graph, params)
    # Two examples, to find out whether the batch axis is free.
    X = np.random.RandomState(0).uniform(size=(2, *input_shape)).astype('float32')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of what MXNet asks SciPy for
        try:
            content = _convert(graph, values, input_shape)
            found = _run(onnxruntime, content, X)
        except Exception as error:  # the converters of MXNet can raise anything
            raise ValueError("MXNet's exporter cannot translate this net: "
                             f'{type(error).__name__}: {error}') from error
        ctx = next((param.list_ctx()[0] for param in params.values()), mx.cpu())
        with attributes_kept(net), mx.autograd.pause():
            # The graph may compute other things.
            expected = as_called(net)(mx.nd.array(X, ctx=ctx)).asnumpy()
    scale = max(1, np.abs(expected).max())
    if found.shape != expected.shape or not np.allclose(
            found, expected, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
        raise ValueError("ONNX Runtime computes other outputs from what MXNet's exporter makes of "
                         'this net, so nothing was written')
    with atomic_write(path) as file:
        file.write(content)


def _params(net, graph):
    """Return {name: parameter} of those that `graph` uses; raise ValueError if one is unusable."""
    used = {*graph.list_arguments(), *graph.list_auxiliary_states()}
    params = {name: param for name, param in net.collect_params().items() if name in used}
    for name, param in params.items():
        if param._data is None and not param._deferred_init:
            raise ValueError(f'{name} is not initialized: call net.initialize() and train, or '
                             'd2l_ext.load_params(net, ...), before export_onnx')
        if np.dtype(param.dtype) != np.float32:
            raise ValueError(f'{name} is {np.dtype(param.dtype).name}; only float32 can be '
                             "exported: call net.cast('float32') first")
    return params


def _settle(graph, params, input_shape):
    """Initialize the parameters that wait for the first batch to tell their shape."""
    names = graph.list_arguments() + graph.list_auxiliary_states()
    arg_shapes, _, aux_shapes = graph.infer_shape_partial(data=(1, *input_shape))
    shapes = {name: found for name, found in zip(names, arg_shapes + aux_shapes)
              if name in params and params[name]._deferred_init}
    for name, found in shapes.items():
        if not found or not all(found):
            raise ValueError(f'the shape of {name} cannot be inferred: call net on a batch first')
    for name, found in shapes.items():
        params[name].shape = found
        params[name]._finish_deferred_init()


def _renamed(net, graph, params):
    """Return `graph` and {name: value}, named by layer and not by how many nets were made before.

    The parameters have the names of save_params, such as ``0.1.weight``.
    """
    names = {param.name: name for name, param in net._collect_params_with_prefix().items()}
    graph = rewrite(graph, lambda new, node: new.copy({
        **node, 'name': 'output' if 'output' in node['readers']
        else names.get(node['name'], node['name'])}))
    mx.nd.waitall()  # MXNet rearranges weights of convolutions in the background, after net(X)
    # The same on all devices, so the first will do.
    values = {names.get(name, name): param.list_data()[0].as_in_context(mx.cpu())
              for name, param in params.items()}
    return graph, values


def _convert(graph, values, input_shape):
    """Return the content of an ONNX file."""
    import onnx
    from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph

    # Not mx.onnx.export_model: it declares the newest operators that onnx knows, and writes older.
    # For the same reason its check is left to the one below, which looks at the declaration.
    with mock.patch('onnx.checker.check_graph'), \
            mock.patch('onnx.mapping', _mapping(onnx), create=True):
        translated = MXNetGraph().create_onnx_graph_proto(
            graph, values, [(1, *input_shape)], [onnx.TensorProto.FLOAT], opset_version=_OPSET,
            dynamic=True, dynamic_input_shapes=[('batch', *input_shape)])
    # MXNet lists the parameters as inputs too, and adds constants that nothing uses; runtimes would
    # not treat the former as constants, and complain of both.
    used = {name for node in translated.node for name in node.input}
    _keep(translated.input, {'data'})
    _keep(translated.initializer, used)
    for node in translated.node:
        attributes = {item.name: item for item in node.attribute}
        if node.op_type == 'AveragePool' and not ('pads' in attributes
                                                  and any(attributes['pads'].ints)):
            # Nothing to count, but ONNX Runtime would count what is beyond the edge (ceil_mode).
            attributes['count_include_pad'].i = 0
    model = onnx.helper.make_model_gen_version(
        translated, opset_imports=[onnx.helper.make_opsetid('', _OPSET)])
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _mapping(onnx):
    """Return what stands for the module onnx.mapping, which MXNet asks for and onnx has dropped."""
    numpy_types = {number: onnx.helper.tensor_dtype_to_np_dtype(number)
                   for number in onnx.helper.get_all_tensor_dtypes()}
    return types.SimpleNamespace(
        TENSOR_TYPE_TO_NP_TYPE=numpy_types,
        NP_TYPE_TO_TENSOR_TYPE={numpy_type: onnx.helper.np_dtype_to_tensor_dtype(numpy_type)
                                for numpy_type in numpy_types.values()})


def _keep(items, names):
    """Remove all but those of `names` from a repeated field of a protobuf message."""
    kept = [item for item in items if item.name in names]
    del items[:]
    items.extend(kept)


def _run(onnxruntime, content, X):
    """Return what ONNX Runtime computes from `X` with the content of an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised anyway
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    return session.run(None, {'data': X})[0]
