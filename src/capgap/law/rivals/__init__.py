"""Published laws of the loss, fitted to the same runs as the law of capacity gap."""
