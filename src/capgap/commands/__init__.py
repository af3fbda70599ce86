"""The commands for people: run, plan, check and share a study, and use its law."""
