"""Logical names of axes, which mean nothing by themselves.

An executor that runs on several devices binds them to the axes of its mesh (`parallel.mesh`); everywhere else what
names them leaves its arrays as they are.
"""

ROWS = "rows"
GROUP_ROWS = "group_rows"
HEADS = "heads"
VOCABULARY = "vocabulary"
