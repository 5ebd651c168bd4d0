"""What a machine has, what is wrong with it, and what the lack of each package costs."""
