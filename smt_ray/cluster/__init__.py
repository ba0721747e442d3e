"""Ray itself: the session of a run, what its terminal shows, who else is told."""
