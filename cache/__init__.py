"""The on-disk cache of a reference model's per-token statistics: format, writer and reader.

Knows pyarrow, NumPy and files; no torch and no models.
"""
