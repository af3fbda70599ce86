"""The law of capacity gap as statistics: from the table of runs to optima, lines and a choice."""
