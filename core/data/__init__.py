"""Preference data: from files, hub names or lists to pairs of token ids.

In the order the data flows: :mod:`.source` opens the rows (:mod:`.files` finds and checks local files,
:mod:`.columns` names their columns and tells their form), :mod:`.pairing` turns a row into a pair
(:mod:`.text` and :mod:`.chat` find its prompt, :mod:`.encoding` its tokens) and :mod:`.spool` does so
for all rows, in bounded memory. Importing this package imports none of them.
"""
