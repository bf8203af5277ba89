"""Inference's peers, on the file that our own `export_onnx` writes: OpenVINO and ONNX Runtime.

They are for comparison only; the rows of one that is not installed are left out. ONNX Runtime has
no bfloat16 on x86: its session option for it is for ARM, and its convolutions on CPUs take none.
"""
import functools
import importlib
import importlib.metadata
import importlib.util

# Library and precision.
VARIANTS = {f'{name}, {precision}': (module, precision)
            for name, module, precisions in (
                ('OpenVINO', 'openvino', ('float32', 'bfloat16', 'int8')),
                ('ONNX Runtime', 'onnxruntime', ('float32', 'int8')))
            for precision in precisions}
# OpenVINO's int8 comes from another package.
NEEDS = {('openvino', 'int8'): ('onnx', 'openvino', 'nncf')}


def installed(variant):
    """Return whether all can be imported that one of VARIANTS needs."""
    needed = NEEDS.get(VARIANTS[variant], ('onnx', 'onnxruntime', VARIANTS[variant][0]))
    return all(map(importlib.util.find_spec, needed))


def versions(variants):
    """Return the versions of the libraries behind `variants`."""
    names = {name for variant in variants
             for name in NEEDS.get(VARIANTS[variant], VARIANTS[variant][:1]) if name != 'onnx'}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def export(net, path, resize):
    """Write `net` to `path`.onnx."""
    from d2l_ext import export_onnx

    export_onnx(net, f'{path}.onnx', (1, resize, resize))


def quantize_openvino(images, path):
    """Write NNCF's int8 of `path`.onnx to `path`-openvino.xml and .bin, calibrated on `images`."""
    nncf, openvino = map(importlib.import_module, ('nncf', 'openvino'))
    dataset = nncf.Dataset([X[None] for X in images])
    openvino.save_model(nncf.quantize(openvino.Core().read_model(f'{path}.onnx'), dataset,
                                      subset_size=len(images)), f'{path}-openvino.xml')


def quantize_onnxruntime(images, path):
    """Write ONNX Runtime's int8 of `path`.onnx to `path`-int8.onnx, calibrated on `images`."""
    quantization = importlib.import_module('onnxruntime.quantization')

    class Reader(quantization.CalibrationDataReader):
        left = iter([{'data': X[None]} for X in images])

        def get_next(self):
            return next(self.left, None)

    quantization.quantize_static(
        f'{path}.onnx', f'{path}-int8.onnx', Reader(), per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8)


def classifier(variant, path):
    """Return one of VARIANTS as a function from float32 images, a NumPy array, to logits.

    On as many threads as d2l_ext takes.
    """
    from d2l_ext.hardware.threads import num_threads

    module, precision = VARIANTS[variant]
    library = importlib.import_module(module)  # no dependency
    return {'openvino': _openvino, 'onnxruntime': _onnxruntime}[module](
        library, path, precision, num_threads())


def _openvino(openvino, path, precision, threads):
    file = f'{path}-openvino.xml' if precision == 'int8' else f'{path}.onnx'
    options = {'INFERENCE_NUM_THREADS': threads, 'PERFORMANCE_HINT': 'LATENCY'}
    if precision != 'int8':  # there what is not quantized keeps the default
        options['INFERENCE_PRECISION_HINT'] = {'float32': 'f32', 'bfloat16': 'bf16'}[precision]

    @functools.cache
    def compiled(shape):  # for a shape that is known it plans better
        model = openvino.Core().read_model(file)
        model.reshape(shape)
        return openvino.compile_model(model, 'CPU', options)

    return lambda X: compiled(X.shape)(X, share_inputs=True)[0]


def _onnxruntime(onnxruntime, path, precision, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        f'{path}-int8.onnx' if precision == 'int8' else f'{path}.onnx', options,
        providers=['CPUExecutionProvider'])
    return lambda X: session.run(['output'], {'data': X})[0]
