"""Fair comparisons: the same task with and without smooth pruning, over many seeds.

``trial`` says what one run is, ``plan`` what its host is to do, ``controls`` what could embarrass
us, ``job`` runs it and writes one JSON file, ``grid`` runs many and skips what exists,
``figures`` makes paired statistics of the files, ``paper`` holds the published configurations.
"""
