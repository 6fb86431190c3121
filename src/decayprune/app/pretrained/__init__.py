"""What pruning is worth to a pretrained network, against what one would do otherwise.

``task`` says what a network and its data have to offer, ``minilm`` (on ``wordnet``) and
``efficientnet`` (on ``fashion``) are two; ``arms`` is what is compared, ``rivals`` that of others,
``loop`` the training that all share, ``execute`` one run of it, ``recipe`` what ``decayprune
reproduce`` runs of it. The whole experiment, with its queue and its tables, is
``benchmarks/pretrained``.
"""
