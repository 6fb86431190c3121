"""What people run: the command, its runs, the study, and the report."""
