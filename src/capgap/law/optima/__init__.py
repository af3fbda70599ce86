"""The optimum of every student and budget from its runs alone, and the line through them."""
