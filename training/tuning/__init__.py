"""`dexml tune`: which values of a training's settings, or of a search's, answer best; by tabu search, TPE or at random."""
