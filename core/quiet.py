"""Other libraries' bars and notices, kept out of ours."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence progress bars and notices of transformers and bitsandbytes in the block; errors still raise."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Its 8-bit layers say at every call that they round their inputs.
    bits = getLogger("bitsandbytes")
    bits_level = bits.level
    bits.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            # It tells of tied and adapted heads, which are dealt with where they are saved and merged.
            warnings.filterwarnings("ignore", module=r"peft\.")
            yield
    finally:
        bits.setLevel(bits_level)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
