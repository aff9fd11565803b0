"""Global random states, left as they were found."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keep_random_states() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch (its GPUs' too) back at the end of the block.

    Opening a model may draw: transformers fills weights before it loads them, peft an adapter's. Usable as a
    decorator. A library that was not imported before the block has no state to keep.
    """
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state() if torch else None
    gpu_states = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)
        if torch and gpu_states is not None:
            torch.cuda.set_rng_state_all(gpu_states)
