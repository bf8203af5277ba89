"""The processor: its name, and whether it computes in bfloat16."""
import os
import pathlib
import platform

_CPUINFO = pathlib.Path('/proc/cpuinfo')


def processor():
    """Return the model name of the processor."""
    try:
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def flags():
    """Return the words in which Linux tells what the processor can do; none elsewhere."""
    try:
        return _CPUINFO.read_text().split()
    except OSError:
        return []


def has_bfloat16():
    """Return whether MXNet can use bfloat16 instructions (AVX512-BF16 or AMX-BF16) here."""
    if os.environ.get('MXNET_MKLDNN_ENABLED', '1').lower() in ('0', 'false'):
        return False  # only oneDNN has layers for them
    return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(flags())
