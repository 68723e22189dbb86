"""Scoring generated images: features, distances between distributions, nearest neighbours.

Evaluation belongs to the suite, not to a method: nothing here knows how images were made.
:mod:`.features` and :mod:`.fidelity` import torch-fidelity, which takes seconds, so this
package imports neither.
"""
