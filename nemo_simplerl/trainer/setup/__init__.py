"""What a run has before its roles: the world of ranks, files on disk, tokenizer and prompts, engine, grader."""
