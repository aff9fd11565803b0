"""What tdpo raises when the person who runs it has to act."""


class TdpoError(Exception):
    """A mistake in what the user gave, or a fault of the surroundings.

    The message is one line: what is wrong, where (file, row, option), and what to do. The command line
    prints it to stderr and exits with status 2.
    """


class CacheError(TdpoError):
    """A cache folder that cannot be read, written or used as asked."""
