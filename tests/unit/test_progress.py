"""The progress bar: there in a terminal and in a notebook, silent elsewhere."""
import os
import struct
import subprocess
import sys

import pytest

from d2l_ext import progress

CODE = '''
import time
from d2l_ext import progress
progress.DELAY = {delay}
with progress.progress_bar(1000, ' images', 'epoch 1 of 5') as bar:
    for _ in range(5):
        time.sleep(0.12)
        bar.update(200)
print('done')
'''


def run_in_a_terminal(code):
    """Return what a terminal is sent by a process whose output and errors go there."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ('fcntl', 'pty', 'termios'))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != 'TQDM_DISABLE'}
    process = subprocess.Popen([sys.executable, '-c', code], stdout=slave, stderr=slave,
                               env=environment)
    os.close(slave)
    shown = b''
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # what Linux says when the other end is closed
            break
        if not data:  # and macOS
            break
        shown += data
    process.wait()
    os.close(master)
    return shown.decode()


def test_a_terminal_shows_rate_and_remaining_time_and_is_left_clean():
    shown = run_in_a_terminal(CODE.format(delay=0))
    assert 'epoch 1 of 5' in shown and ' images/s' in shown and '1000/1000' in shown
    assert '<00:0' in shown  # the remaining time
    assert shown.split('\r')[-2].strip() in ('', 'done')


def test_a_short_job_shows_nothing():
    assert run_in_a_terminal(CODE.format(delay=60)).split() == ['done']


def test_a_pipe_gets_nothing():
    done = subprocess.run([sys.executable, '-c', CODE.format(delay=0)], capture_output=True,
                          text=True, check=True)
    assert (done.stdout, done.stderr) == ('done\n', '')


def test_a_notebook_gets_a_bar_unless_it_is_not_wanted(monkeypatch):
    class OutStream:
        """Like the one that ipykernel puts in place of standard error: no terminal."""
        isatty = staticmethod(lambda: False)
        write = flush = staticmethod(lambda *_: None)

    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    assert progress.progress_bar(1, 'B', '').disable
    monkeypatch.setattr(OutStream, '__module__', 'ipykernel.iostream')
    monkeypatch.setattr(sys, 'stderr', OutStream())
    bar = progress.progress_bar(1, 'B', '')
    assert not bar.disable
    bar.close()
    monkeypatch.setenv('TQDM_DISABLE', '1')  # as tests/README.md does for a notebook that is kept
    assert progress.progress_bar(1, 'B', '').disable


@pytest.mark.parametrize('ends', ['complete', 'early', 'broken'])
def test_a_notebook_keeps_no_widget(ends, monkeypatch):
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    pytest.importorskip('ipywidgets')
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    updates = {'complete': 5, 'early': 3, 'broken': 5}[ends]
    code = CODE.format(delay=0.01).replace('range(5)', f'range({updates})')
    if ends == 'broken':
        code = code.replace("        bar.update(200)", "        bar.update(200)\n    1 / 0")
    code += f"assert (bar.n, bar.total) == ({200 * updates}, {200 * updates}) and bar.displayed\n"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    shown = []
    client = nbclient.NotebookClient(notebook, allow_errors=True)
    output = client.output

    def spy(outs, msg, *args):
        shown.append('application/vnd.jupyter.widget-view+json' in msg['content'].get('data', {}))
        return output(outs, msg, *args)

    client.output = spy
    client.execute()
    assert shown[0]  # there was a widget
    assert not any(output.get('data') for output in notebook.cells[0].outputs)
    rest = notebook.cells[0].outputs[-1]
    assert rest.get('ename') == 'ZeroDivisionError' if ends == 'broken' else rest.text == 'done\n'
    nbformat.validate(notebook)
