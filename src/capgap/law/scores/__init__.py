"""How well every law and rule chooses for students, budgets and teachers that it has not seen."""
