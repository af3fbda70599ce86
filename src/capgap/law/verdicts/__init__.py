"""What the runs show about the published law, about the init, and between studies."""
