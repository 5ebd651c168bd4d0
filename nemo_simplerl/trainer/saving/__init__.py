"""What a run can go on from: checkpoints, the journal of the step in hand, and the thread that writes them."""
