"""What the command runs: networks, data sets, a plain training loop, and the main job.

Nothing here is needed to prune a model of your own in a loop of your own; it is also the longest
example of how the library is used. Modules: ``settings``, ``models``, ``data`` and ``batches``,
``loop``, ``methods`` (builds a host from a plan) and ``plan`` (the one of the settings),
``runfolder`` (what a run leaves on disk) and ``run`` (the phases of the main job).
"""
