"""Training, reading, writing and drawing on many devices.

mesh.py       devices as a mesh, and the processes that bring them
rules.py      where parameters lie on it
steps.py      the training step compiled: `mesh_step`, `pmap_step`, `single_step`
executors.py  what the training loop sees of all that
placement.py  what the pipeline sees of all that
"""
