"""What the structures that stay can take over from those that leave, by ridge regression.

A layer that reads structures computes ``y = W x + b``. When the inputs ``R`` leave, the best affine
prediction of them from the inputs ``K`` that stay goes into the columns that are left, and into the
bias. ``moments`` gathers what that needs, ``calibration`` runs the model for it and looks on
(``watched``) while layers read, ``ridge`` is the
arithmetic, ``compensated`` applies it when a selector picks. ``sensitivity`` ranks by how much the
model's outputs change without a structure, and ``learned`` holds both. The data are a user's
``batches``, or those of the ``training`` as they pass.

Sources: CORP (arXiv 2602.05243), GRAIL; ranking by variance is that of variance-based pruning.
"""
