"""Which kind of processor this is: the records of each kind have a folder of their own.

The instruction set tells AVX2 from bfloat16. Two kinds of processor have bfloat16 instructions, and
only their pace tells them apart: against their own float32 both are twice as fast (Zen 5: 941 for
484 GFLOP/s on two cores), but one finishes 128 operations in a cycle of a core (two units of 512
bits), the other 64. `FULL_RATE` lies between: 128 in a cycle exceed it from 2.5 GHz on, 64 in a
cycle only beyond 5 GHz.
"""
from .limits import machine_rates
from .turns import Failed, fresh

FULL_RATE = 320  # GFLOP/s of a thread in products of bfloat16 matrices


def kind_of(flags, has_bfloat16, rate):
    """Return a key of ``SPEED_KINDS``; `rate`, a function, returns GFLOP/s of a thread."""
    if has_bfloat16:
        return 'bfloat16' if rate() > FULL_RATE else 'bfloat16_half'
    if 'avx2' in flags and 'avx512f' not in flags:
        return 'avx2'
    raise Failed('this processor has AVX-512 without bfloat16, or no AVX2, and such ones have no '
                 'folder of records: say --folder')


def kind_at_hand():
    """Return the kind of this processor, which should do nothing else: it is measured."""
    from d2l_ext.devices import has_bfloat16
    from d2l_ext.hardware.processor import flags

    def rate():
        found = fresh(machine_rates, precisions=['bfloat16'])
        return found['bfloat16'] / found['threads']

    return kind_of(flags(), has_bfloat16(), rate)
