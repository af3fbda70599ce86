"""Where text and models come from, and the token streams that training reads."""
