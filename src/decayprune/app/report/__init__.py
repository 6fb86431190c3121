"""What a run achieved, for people and for programs.

:class:`Report` reads the folder that ``decayprune prune --out DIR`` writes, finished or not, and
checks it field by field; ``str(report)`` is a text table, ``report.to_json()`` the figures, and
:func:`write_html` one self-contained page with plots. Nothing here trains, measures or imports
torch: a report can be rebuilt on any machine from the folder alone.
"""

from decayprune.app.report.page import write_html
from decayprune.app.report.run import Report

__all__ = ["Report", "write_html"]
