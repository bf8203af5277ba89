"""A watch over training: sums of losses and right answers, and whether they make sense."""
import math

from ..devices import mx
from .batches import batch_sums, check_sums
from .dead_starts import DEAD_AFTER, is_dead, told
from .finite import ADVICE, check_finite

nd = mx.nd

# How many batches pass between two looks at the running sums. A look waits for the device, so it
# must be rare; it is also how long a collapsed run goes on before anybody says so.
_LOOK_EVERY = 50


class Watch:
    """Adds up what the batches of an epoch give, and looks now and then whether it makes sense."""

    def __init__(self, net, ctx, say):
        self.net, self.ctx, self.say = net, ctx, say
        self.zero_run = nd.zeros(1, ctx=ctx)  # batches since a logit was other than 0
        self.explained, self.num_classes = False, None  # a worker may never get an image

    def begin(self, epoch):
        """Begin an epoch."""
        self.epoch, self.batches = epoch, 0
        self.loss = nd.zeros(1, ctx=self.ctx, dtype='float64')
        self.sums = nd.zeros(3, ctx=self.ctx, dtype='float64')

    def add(self, outputs):
        """Take in what a step returns; only now and then wait for it."""
        if not outputs:
            return
        previous, zero_run = self.loss, self.zero_run + 1
        for X, y, logits, l in outputs:
            self.loss = self.loss + l.sum().astype('float64').as_in_context(self.ctx)
            self.sums = self.sums + batch_sums(X, y, logits).as_in_context(self.ctx)
            zero_run = zero_run * (logits.abs().max() == 0).as_in_context(self.ctx)
        self.zero_run = zero_run
        self.num_classes = logits.shape[1]
        self.batches += 1
        # One batch computes while the next is prepared; more would only fill the memory.
        previous.wait_to_read()
        if self.batches % _LOOK_EVERY == 0:
            self.look(enough=DEAD_AFTER)

    def look(self, enough):
        """Return loss and right answers so far; raise on broken numbers, tell of a dead start."""
        right, outside, broken = (float(s) for s in self.sums.asnumpy())
        check_sums(outside, broken, self.num_classes)
        loss, zero_run = self.loss.asscalar(), int(self.zero_run.asscalar())
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss became {loss} in epoch {self.epoch}. {ADVICE}')
        if zero_run >= enough and not self.explained:
            # Else a ReLU may have turned NaN into those zeros.
            check_finite(self.net, self.ctx, f'in epoch {self.epoch}')
            self.explained = is_dead(self.net, self.ctx)
            if self.explained:
                self.say(told(zero_run, self.num_classes), flush=True)
        return loss, right

    def end(self):
        """Return loss and right answers of the whole epoch, as :meth:`look` does."""
        # A single batch of zeros may come from weights that start at zero, and pass.
        return self.look(enough=max(2, min(DEAD_AFTER, self.batches)))
