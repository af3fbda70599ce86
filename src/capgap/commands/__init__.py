"""What a person calls: running, planning, checking and sharing a study, and using its law."""
