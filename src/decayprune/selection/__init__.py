"""Who leaves: schedules, importances, and the part of a ranking that meets a target."""
