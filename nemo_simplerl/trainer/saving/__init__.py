"""What a run is resumed from: checkpoints, the journal of the current step, and the thread that writes them."""
