"""Sources of text and models, and the token streams that training reads."""
