"""What engines that live in processes of their own have in common."""
