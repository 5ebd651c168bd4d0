"""Problems made from a seed, with which a run needs no file of its own."""
