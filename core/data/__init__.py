"""Preference data: from files, hub names, lists or streams to pairs of token ids.

In the order the data flows: :mod:`.source` opens the rows (:mod:`.opening` what has a name, with
:mod:`.files` to find and check local files and :mod:`.quiet` to hush the loader), :mod:`.rows` gives them one
by one under tdpo's names (:mod:`.columns` names their columns and tells their form), :mod:`.pairing` turns a
row into a pair (:mod:`.text` and :mod:`.chat` find its prompt, :mod:`.encoding` its tokens) and :mod:`.spool`
does so for all rows, in bounded memory. Importing this package imports none of them.
"""
