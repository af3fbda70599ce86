"""Questions that a fitted law answers: which teacher, at what cost, at equal compute."""
