"""Mathematics that looks at a model or its labels, and changes neither: the neural tangent kernel, a graph of labels."""
