"""Write the tables of tests/README.md from the records: python -m tests.benchmarks.tables.

A column for each kind of processor that has been measured.
"""
import pathlib
import re

from d2l_ext.studies.records import SPEED_KINDS, speed_records

from . import inference, limits, memory, startup, training
from .turns import spread

README = pathlib.Path(__file__).parents[1] / 'README.md'


def table(head, rows, kinds):
    """Return a Markdown table; `rows` is ``{name: {kind: text}}``."""
    lines = [[head, *(SPEED_KINDS[kind] for kind in kinds)], ['---'] * (1 + len(kinds)),
             *([name, *(row.get(kind, '') for kind in kinds)] for name, row in rows.items())]
    return ''.join(f"| {' | '.join(line)} |\n" for line in lines)


def put(rows, kind, found):
    """Add a column of a kind of processor, ``{name: text}``."""
    for name, text in found.items():
        rows.setdefault(name, {})[kind] = text


def measured(record):
    return f"{record['date']}, {record['pairs']} turns"


def training_table():
    """Images/s, how many times those of d2l, and the comparisons."""
    records, shares, rows = speed_records(), speed_records(limits.NAME), {}
    for kind, record in records.items():
        put(rows, kind, {'': measured(record)} | {
            f'`{name}`': f"{row['images_per_second']:.1f}, {spread(row, digits='.1f')}"
            for name, row in record['rows'].items()})
    # After all loops of all kinds.
    for kind, record in records.items():
        torch, found = record['pytorch'], record['comparisons']
        for name, key in (('faster than PyTorch', f'{training.OURS} against {training.TORCH}'),
                          ('with batch normalization',
                           'with batch normalization against without')):
            if key in found:
                put(rows, kind, {name: spread(found[key])})
        if torch:
            put(rows, kind, {"PyTorch's version, its best of "
                             f"{len(torch['tried'])} settings": f"{torch['version']}, "
                                                                f"{torch['best']}"})
    for kind, record in shares.items():
        put(rows, kind, {"of the pace of matrix products": spread(record['training'],
                                                                  digits='.0%')})
    return table('loop', rows, records)


def inference_table():
    """Images/s of batches, milliseconds of one image, accuracy compared with float32."""
    records, rows = speed_records(inference.NAME), {}
    for kind, record in records.items():
        exact = record['rows']['float32']['accuracy']
        put(rows, kind, {'': measured(record)} | {
            f'`{name}`': ', '.join([f"{row['images_per_second']:.0f}",
                                    f"{row['latency_ms']:.1f} ms",
                                    *([f"{100 * (row['accuracy'] - exact):+.1f}"]
                                      if 'accuracy' in row else [])])
            for name, row in record['rows'].items()})
        if record.get('peers'):
            put(rows, kind, {'versions of these': ', '.join(
                f'{name} {version}' for name, version in record['peers'].items())})
    return table('path', rows, records)


def rest_table():
    """Peak memory and seconds until something happens."""
    records, rows = {}, {}
    for kind, record in speed_records(memory.NAME).items():
        records[kind] = record
        put(rows, kind, {
            f'peak memory in {name}, `summary` predicts': f"{row['peak_gib']:.2f} GiB, of it "
            f"{record['started_gib']:.2f} before training; {row['predicted_gib']:.2f} GiB"
            for name, row in record['rows'].items()})
    for kind, record in speed_records(startup.NAME).items():
        records[kind] = record
        for version, found in record['pythons'].items():
            python = f"Python {version.rpartition('.')[0]}"
            added = found['imports'][startup.NEEDED]['added']
            put(rows, kind, {
                f'{python}: `import d2l_ext`, more than `import mxnet`': f'{added:.2f} s',
                **({f'{python}: both, in a notebook': f"{found['notebook']['seconds']:.1f} s"}
                   if 'notebook' in found else {}),
                f'{python}: `{startup.COMMAND}` to its first training step':
                    f"{found['first_step']['seconds']:.1f} s"})
    return table('', rows, [kind for kind in SPEED_KINDS if kind in records])


TABLES = {'training': training_table, 'inference': inference_table, 'rest': rest_table}


def with_tables(text):
    """Return the text of the README with the tables between their marks made anew."""
    for name, make in TABLES.items():
        text = re.sub(f'(<!-- {name} -->\n).*?(<!-- end -->)',
                      lambda found, make=make: found[1] + make() + found[2], text, count=1,
                      flags=re.DOTALL)
    return text


def main():
    README.write_text(with_tables(README.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
    main()
