"""How commands start: options they share, the check of what they are given, and the words they end with."""
